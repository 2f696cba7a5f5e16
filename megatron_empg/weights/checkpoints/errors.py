"""The fault of a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or made; the message names the file or tensor and what was expected."""
