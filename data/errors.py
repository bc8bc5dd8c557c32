"""Errors that a person can mend: each message says what is wrong, where, and what to do."""


class RlaifError(Exception):
    """Root of all errors that the command line prints as one line and answers with exit status 1."""


class UsageError(RlaifError):
    """What was typed lacks something that it needs: exit status 2."""


class FileError(RlaifError):
    """A file cannot be read or written as a whole: missing, empty, wrong format, disk full."""


class RowError(RlaifError):
    """One row cannot be used. Readers turn it into a `Failure` and go on, unless told to be strict."""
