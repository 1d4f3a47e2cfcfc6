"""What a model is worth: exact validation loss, and what its concept stream does."""
