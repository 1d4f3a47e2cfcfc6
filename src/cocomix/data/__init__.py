"""Text in, token and concept datasets out: Parquet shards with a manifest."""
