"""The label that every loss leaves out."""

IGNORED_LABEL = -100
