"""What sits between two blocks of the decoder: one class a mixer, with all that depends on it."""
