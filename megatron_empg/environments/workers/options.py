"""How worker processes are treated, beyond what the recipe says of steps and memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerOptions:
    """Times are in seconds, sizes in bytes.

    `episodes_per_worker`: episodes after which a worker is replaced, as engines leak. `start_timeout`: for a
    worker to import its environment, read its data and start its engine. `close_timeout`: for an episode to close,
    and for a worker to end by itself. `answer_bytes`: of one answer, as JSON. `log_bytes`: of what a worker wrote
    last, kept for errors. `memory_interval`: between two looks at the memory of the workers.
    """

    episodes_per_worker: int = 200
    start_timeout: float = 300.0
    close_timeout: float = 10.0
    answer_bytes: int = 1 << 20
    log_bytes: int = 4096
    memory_interval: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"worker option {name} is {value}: must be above 0")
