"""What befalls checkpoints: a slow disk, one without room, files damaged later."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def held_writes() -> Iterator[threading.Event]:
    """No file is written before the event is set, or the block ends."""
    from megatron_empg.actor import background_write

    released, write = threading.Event(), background_write._write_bucket

    def held(*arguments: Any) -> Any:
        assert released.wait(60)
        return write(*arguments)

    background_write._write_bucket = held
    try:
        yield released
    finally:
        released.set()
        background_write._write_bucket = write


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses this process larger ones."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def data_file(folder: Path) -> Path:
    return max((folder / "megatron").glob("*.distcp"), key=lambda path: path.stat().st_size)


def cut_short(folder: Path) -> None:
    data_file(folder).write_bytes(data_file(folder).read_bytes()[:-100])


def alter_one_byte(folder: Path) -> None:
    data = bytearray(data_file(folder).read_bytes())
    data[len(data) // 2] ^= 1
    data_file(folder).write_bytes(data)


DAMAGES = {
    "truncated": cut_short,
    "missing": lambda folder: data_file(folder).unlink(),
    "altered": alter_one_byte,
    "manifest": lambda folder: (folder / "manifest.json").unlink(),
}
