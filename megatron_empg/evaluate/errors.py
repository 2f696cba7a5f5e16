"""What ends an evaluation, in one message."""

from megatron_empg.common.errors import EmpgError


class EvaluationError(EmpgError, RuntimeError):
    """The evaluation cannot be begun, gone on with, or believed; the message says which, why, and what to do."""
