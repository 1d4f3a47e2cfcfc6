"""The `cocomix` command."""
