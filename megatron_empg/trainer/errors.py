"""What ends a training run."""


class TrainingError(RuntimeError):
    """Training must not go on; the message says what was measured and what it means."""
