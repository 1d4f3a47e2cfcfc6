"""Text in, token and concept datasets out: Parquet shards with a manifest."""

#: The label of a position that has none; every loss skips it.
IGNORED_LABEL = -100
