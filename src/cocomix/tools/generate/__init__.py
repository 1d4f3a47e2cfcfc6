"""A prompt continued, with concepts steered."""
