"""What ends an evaluation, in one message."""


class EvaluationError(RuntimeError):
    """The evaluation cannot be begun, gone on with, or believed; the message says which, why, and what to do."""
