"""The quality card of a trained autoencoder: one JSON file and one page."""
