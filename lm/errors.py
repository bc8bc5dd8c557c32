"""What can go wrong with a model that a person can mend."""

from data.errors import RlaifError


class ModelError(RlaifError):
    """A model cannot be found, loaded or converted."""
