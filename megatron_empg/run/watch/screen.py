"""`empg watch` on a terminal: frames until the run ends or the watcher does. The terminal is left as it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console
from rich.live import Live

from megatron_empg.run.watch.frame import Frame
from megatron_empg.run.watch.view import State, Watched


def watch(watched: Watched, console: Console, *, every: float, once: bool) -> None:
    """Show the run every so many seconds until it has finished, or Ctrl-C.

    One frame where `once`, where there is no terminal, and for a run that has finished. The last frame stays.
    """
    if not once and console.is_terminal and watched.look().state is not State.FINISHED:
        with suppress(KeyboardInterrupt):
            _live(watched, console, every)
    console.print(Frame(watched.look()))


def _live(watched: Watched, console: Console, every: float) -> None:
    """Frames on a screen of their own, until the run has finished."""
    wake = threading.Event()
    with _signals(wake), Live(console=console, screen=True, auto_refresh=False) as live:
        while (view := watched.look()).state is not State.FINISHED:
            live.update(Frame(view), refresh=True)
            wake.wait(every)
            wake.clear()


@contextmanager
def _signals(wake: threading.Event) -> Iterator[None]:
    """Another size of the window draws at once; SIGTERM ends as Ctrl-C does, so that the screen is given back."""

    def resized(number: int, frame: FrameType | None) -> None:
        wake.set()

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, resized),
        signal.SIGTERM: signal.signal(signal.SIGTERM, ended),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
