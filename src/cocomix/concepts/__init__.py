"""Which concepts matter at which token: teacher, sparse autoencoder, attribution, labels."""
