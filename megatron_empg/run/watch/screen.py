"""`empg watch` on a terminal: frames until the run ends or the watcher does. The terminal is left as it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from rich.console import Console
from rich.live import Live

from megatron_empg.run.watch.frame import RunFrame
from megatron_empg.run.watch.view import RunState, WatchedRun


def watch(watched: WatchedRun, console: Console, *, every: float, once: bool) -> None:
    """Show the run every so many seconds until it has finished, or Ctrl-C.

    One frame where `once`, where there is no terminal, and for a run that has finished. The last frame stays.
    """
    if not once and console.is_terminal and watched.look().state is not RunState.FINISHED:
        with suppress(KeyboardInterrupt):
            _live(watched, console, every)
    console.print(RunFrame(watched.look()))


@dataclass
class _Signalled:
    """What signals have asked for. `wake` ends the wait for the next frame."""

    wake: threading.Event = field(default_factory=threading.Event)
    suspend: bool = False


def _live(watched: WatchedRun, console: Console, every: float) -> None:
    """Frames on a screen of their own, until the run has finished. Ctrl-Z gives the terminal back for a while."""
    signalled = _Signalled()
    with _signals(signalled):
        while not _shown_to_its_end(watched, console, every, signalled):
            signalled.suspend = False
            _suspend()


def _shown_to_its_end(watched: WatchedRun, console: Console, every: float, signalled: _Signalled) -> bool:
    """Whether the run has finished; False where the command is to be suspended."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while (view := watched.look()).state is not RunState.FINISHED:
            live.update(RunFrame(view), refresh=True)
            signalled.wake.wait(min(every, threading.TIMEOUT_MAX))
            signalled.wake.clear()
            if signalled.suspend:
                return False
    return True


def _suspend() -> None:
    """Stop this process as Ctrl-Z would without a handler; return when the shell lets it go on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


@contextmanager
def _signals(signalled: _Signalled) -> Iterator[None]:
    """Another size of the window draws at once, as does going on; Ctrl-Z suspends between two frames; SIGTERM ends
    as Ctrl-C does, so that the screen is given back."""

    def redraw(number: int, frame: FrameType | None) -> None:
        signalled.wake.set()

    def suspend(number: int, frame: FrameType | None) -> None:
        signalled.suspend = True
        signalled.wake.set()

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {
        signal.SIGWINCH: redraw,
        signal.SIGCONT: redraw,
        signal.SIGTSTP: suspend,
        signal.SIGTERM: ended,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
