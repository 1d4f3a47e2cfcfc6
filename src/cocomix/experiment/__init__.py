"""A whole experiment in one file: stages are command lines, and what they share is said once."""
