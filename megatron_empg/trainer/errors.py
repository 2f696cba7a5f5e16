"""What ends a training run."""

from megatron_empg.common.errors import EmpgError


class TrainingError(EmpgError, RuntimeError):
    """Training must not go on; the message says what was measured and what it means."""
