"""The end of what a worker wrote."""

from __future__ import annotations

import asyncio
import os

_CHUNK = 1 << 16
_CHUNKS_AT_THE_END = 64  # a writer that never stops must not hold up whoever reads


class LogTail:
    """Reads a pipe on the running event loop, as it fills, and keeps the last `limit` bytes."""

    def __init__(self, descriptor: int, limit: int) -> None:
        """Takes the reading end of a pipe over."""
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._limit = limit
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    def text(self) -> str:
        """What was written last, up to now."""
        for _ in range(_CHUNKS_AT_THE_END):
            if not self._read():
                break
        return self._kept.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Stop reading. The text stays."""
        if self._descriptor is None:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    def _read(self) -> bool:
        """Read a piece. False when there is none."""
        if self._descriptor is None:
            return False
        try:
            piece = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not piece:
            self.close()
            return False
        self._kept = (self._kept + piece)[-self._limit :]
        return True
