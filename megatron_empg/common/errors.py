"""Which errors say themselves what is wrong and how to mend it, so that nobody needs to see where they arose."""


def is_own(error: BaseException) -> bool:
    """Whether it is of a class of the project, and meant to be read: a RuntimeError or ValueError."""
    return isinstance(error, RuntimeError | ValueError) and type(error).__module__.split(".")[0] == "megatron_empg"
