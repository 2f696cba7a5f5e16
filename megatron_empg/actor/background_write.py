"""Writes a rank's part of a checkpoint in a thread, from a copy, while training goes on.

Megatron-core plans an asynchronous save and leaves the writing to its caller. Its own writers are processes: one
forked from a rank with open collectives, and a manager for their results that outlives a killed rank. A thread
ends with its rank and needs neither; torch and the file system release the interpreter lock for the long parts.
"""

import threading
from pathlib import Path
from typing import Any

import torch

from megatron_empg.actor.manifest import file_records
from megatron_empg.actor.platform import device
from megatron_empg.upstream import megatron_checkpointing


class BackgroundWrite:
    """One rank's write of ``folder``, started at once. `request` is Megatron's AsyncRequest for it."""

    def __init__(self, request: Any, folder: Path) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        """What was written, as in the manifest."""
        self.error = ""
        """Why writing failed; nothing if it did not."""
        self._request, self._folder = request, folder
        self._written: dict[int, Any] = {}
        self._buckets = _copied_to_cpu(megatron_checkpointing.buckets_of(request))
        # Not a daemon: the interpreter would tear the thread down inside torch.
        self._thread = threading.Thread(target=self._write, name="checkpoint")
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until this rank's files are written, or writing has failed."""
        self._thread.join()

    def finalize(self) -> None:
        """Megatron's metadata, from what all ranks wrote; all ranks together."""
        megatron_checkpointing.finish(self._request, self._written)

    def _write(self) -> None:
        path: Any = self._folder
        try:
            for number, bucket in enumerate(self._buckets):
                path = Path(bucket[0])
                self._written[number] = _write_bucket(self._request, bucket)
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
    copied = []
    for path, key, (data, tensors) in buckets:
        on_cpu = [(item, tensor.to("cpu", non_blocking=True, copy=copy)) for item, tensor in tensors]
        copied.append((path, key, (data, on_cpu)))
    torch.cuda.synchronize()
    return copied


def _write_bucket(request: Any, bucket: Any) -> Any:
    """One file; its write results. Raises what the writer met."""
    return megatron_checkpointing.write_bucket(request, bucket)
