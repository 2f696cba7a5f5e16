"""What SIGINT and SIGTERM do to a run whose processes this one has started."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """The run is to end now. `code`: the exit code that says so, 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.code = 128 + number


class Interrupts:
    """Interrupts of a run.

    Before the first step, an interrupt ends the run: also while engines start, the first questions are played and
    the first evaluation goes on, since nothing is lost by it. Once a step runs, the first one asks the run to end
    after that step, with a checkpoint, and the next one ends it. While its processes are ended or started again,
    the first one ends it as before.

    One that ends the run is raised as Interrupted, in the main thread, and none follows it.
    """

    def __init__(self) -> None:
        self._stop: Path | None = None
        self._trains: Callable[[], bool] = _never
        self.has_trained = False
        """Whether the run was seen to train; who looks at it says so."""
        self._note: Callable[[str], None] = print
        self._held = False
        self._held_back: int | None = None
        self._over = False

    def start(self, stop: Path, note: Callable[[str], None], trains: Callable[[], bool]) -> None:
        """Handle interrupts: one ends the run where `trains` says that it does not train yet, or not yet again.
        Else the first one makes the file `stop`, which training looks for after each step, and says so by `note`.

        `trains` is asked when an interrupt comes, so it may neither print nor wait.
        """
        self._stop, self._note, self._trains = stop, note, trains

    def ignore(self) -> None:
        """Ignore interrupts from now on: the run is ending already."""
        self._over = True

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """A context in which both signals are handled, even if a shell started the process with SIGINT ignored."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """An interrupt that would end the run in here does so at the end of it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        number, self._held_back = self._held_back, None
        if number is not None:
            self._end(number)

    def _handle(self, number: int, _: object) -> None:
        if self._over:
            return
        if self._held:  # no step is running that it could wait for
            self._held_back = number
        elif self._stop is not None and self._trains() and not self._stop.exists():
            self._stop.touch()
            self._note("ending after this step, with a checkpoint; interrupt again to end now")
        else:
            self._end(number)

    def _end(self, number: int) -> NoReturn:
        self._over = True
        raise Interrupted(number)


def _never() -> bool:
    """No run has started."""
    return False
