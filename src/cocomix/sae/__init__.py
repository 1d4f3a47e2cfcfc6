"""Sparse autoencoders: the model, its training, and the formats that others save them in."""
