"""What goes wrong with ScienceWorld's engine."""

from megatron_empg.common.errors import EmpgError


class EngineUnavailable(EmpgError, ValueError):
    """The engine cannot be run here: no Java, one that is too old, or the package is not installed."""

    exit_code = 2


class ScienceWorldFailed(EmpgError, RuntimeError):
    """The engine's Java process ended, hung or could not start. It costs one episode; the next has another."""


class EngineRaised(ScienceWorldFailed):
    """The engine raised a Java exception of its own; its process lives."""
