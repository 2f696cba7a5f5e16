"""The fault of a checkpoint."""

from megatron_empg.common.errors import EmpgError


class CheckpointError(EmpgError, ValueError):
    """A checkpoint cannot be written, read or made; the message names the file or tensor and what was expected."""

    exit_code = 2
