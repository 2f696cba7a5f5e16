"""Where a rank is in its run, for the watchdog, and for how long, for the metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_empg.run.heartbeat import Heartbeat


class Phases:
    """A rank's. Without a ``heartbeat`` nobody is told of the phases, but their seconds are taken all the same."""

    def __init__(self, heartbeat: Heartbeat | None) -> None:
        self._heartbeat = heartbeat
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._checkpoint_seconds = 0.0

    def begin(self, step: int) -> None:
        """A step begins, and its clock; `step` counts from 1."""
        self._seconds, self._started = {}, time.monotonic()
        if self._heartbeat:
            self._heartbeat.step = step

    def enter(self, phase: str) -> None:
        """The rank now does this."""
        if self._heartbeat:
            self._heartbeat.enter(phase)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Enter the phase, and add to its seconds of this step what it takes, the GPU's work included."""
        self.enter(phase)
        started = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - started

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Seconds that training stands still for a checkpoint; they count with the next step."""
        self.enter("checkpoint")
        started = time.monotonic()
        yield
        self._checkpoint_seconds += time.monotonic() - started

    def metrics(self, trained: int) -> dict[str, float]:
        """Seconds by phase of the step that ends now, and the speed of so many tokens.

        What lies between the phases is ``time/other``. Trainers do nothing while they wait for a batch.
        """
        total = time.monotonic() - self._started
        phases = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        if self._checkpoint_seconds:
            phases["time/checkpoint"] = self._checkpoint_seconds
            self._checkpoint_seconds = 0.0
        if total > 0:
            phases["trainer/idle_share"] = self._seconds.get("rollout", 0.0) / total
        if trained:
            phases["tokens_per_second"] = trained / total
        return {**phases, "time/other": total - sum(self._seconds.values()), "time/step": total}
