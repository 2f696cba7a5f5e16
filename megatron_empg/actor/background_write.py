"""Writes a rank's part of a checkpoint in a thread, from a copy, while training goes on.

Megatron-core plans an asynchronous save and leaves the writing to its caller. Its own writers are processes: one
forked from a rank with open collectives, and a manager for their results that outlives a killed rank. A thread
ends with its rank and needs neither; torch and the file system release the interpreter lock for the long parts.
"""

import queue
import threading
from pathlib import Path
from typing import Any

import torch

from megatron_empg.actor.manifest import file_records
from megatron_empg.actor.platform import device


class BackgroundWrite:
    """One rank's write of ``folder``, started at once. `request` is Megatron's AsyncRequest for it."""

    def __init__(self, request: Any, folder: Path) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        """What was written, as in the manifest."""
        self.error = ""
        """Why writing failed; nothing if it did not."""
        self._request, self._folder = request, folder
        self._written: dict[int, Any] = {}
        self._buckets: list[Any] = []
        if request.async_fn is not None:  # None on a rank that has nothing to write
            self._buckets = _copied_to_cpu(request.async_fn_args[1])
        # Not a daemon: the interpreter would tear the thread down inside torch.
        self._thread = threading.Thread(target=self._write, name="checkpoint")
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Until this rank's files are written, or writing has failed."""
        self._thread.join()

    def finalize(self) -> None:
        """Megatron's metadata, from what all ranks wrote; all ranks together."""
        if self._request.async_fn is not None:
            self._request.async_fn_args[2].put(self._written)
        for function in self._request.finalize_fns:
            function()

    def _write(self) -> None:
        path: Any = self._folder
        try:
            for number, bucket in enumerate(self._buckets):
                path = Path(bucket[0])
                self._written[number] = _write_bucket(self._request.async_fn.args[0], bucket)
                self.files |= file_records(self._folder, [path])
        except Exception as error:
            self.error = f"{path}: {_first_cause(error)}"
        self._buckets = []


def _first_cause(error: BaseException) -> BaseException:
    """torch's own complaint about a file that could not be written hides the system's."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _copied_to_cpu(buckets: list[Any]) -> list[Any]:
    """The same with tensors that the next update cannot reach; on a GPU machine only those on the GPU are live."""
    copy = device().type == "cpu"
    copied = [
        (path, key, (data, [(item, tensor.to("cpu", non_blocking=True, copy=copy)) for item, tensor in tensors]))
        for path, key, (data, tensors) in buckets
    ]
    torch.cuda.synchronize()
    return copied


def _write_bucket(transforms: Any, bucket: Any) -> Any:
    """One file, by Megatron's writer; its write results. Raises what the writer met."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    results: queue.Queue[Any] = queue.Queue()
    unfinished: queue.Queue[int] = queue.Queue()
    unfinished.put(0)
    FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, results, unfinished, use_fsync=True)
    _, result = results.get_nowait()
    if isinstance(result, Exception):
        raise result
    return result
