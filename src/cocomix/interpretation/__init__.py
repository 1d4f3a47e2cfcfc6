"""What concepts mean: where they are active, and what steering them does."""
