"""The one exception a user is meant to read."""


class CocomixError(ValueError):
    """Input or state a user can mend: one sentence says what was wrong, where, and what to do."""
