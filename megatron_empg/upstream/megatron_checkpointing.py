"""Megatron-core's asynchronous save: what it plans, and the writing that it leaves to its caller."""

from __future__ import annotations

import inspect
import queue
from pathlib import Path
from typing import Any

from megatron_empg.upstream.record import patch, private_api

_TESTED = ("0.16.1", "0.19.2")


@patch(
    "megatron-core",
    symptom="a manager process on each rank, which outlives a rank that was killed",
    trigger="the first asynchronous save of a rank",
    why="the writer makes a queue for results of other processes, and there are none: threads write",
    versions=_TESTED,
    can_go_when="the writer takes its queue from the caller, or makes none before a process is started",
)
def queue_of_this_process() -> None:
    """Give the writer a queue between threads. Safe to call again."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


@private_api(
    "megatron-core",
    symptom="ModuleNotFoundError: A compatible `nvidia-resiliency-ext` installation is required",
    trigger="an asynchronous save with megatron-core 0.19",
    why="newer releases write by a package of their own unless told otherwise, and older ones lack the argument",
    versions=("0.19.2",),
    can_go_when="megatron-core below 0.19 is no longer supported; then say async_strategy outright",
)
def planned_save(state: dict[str, Any], folder: Path, strategy: Any) -> Any:
    """Megatron's AsyncRequest to write the state; small common state may be written at once."""
    from megatron.core import dist_checkpointing

    known = inspect.signature(dist_checkpointing.save).parameters
    if "async_strategy" in known:
        how = {"async_strategy": "mcore"}
    else:
        how = {}
    return dist_checkpointing.save(state, str(folder), strategy, async_sharded_save=True, **how)


@private_api(
    "megatron-core",
    symptom="(no other way to write a planned save in a thread)",
    trigger="every save",
    why="a request is a function with arguments told apart by place: its buckets, and the queue of their results",
    versions=_TESTED,
    can_go_when="Megatron writes in a thread",
)
def buckets_of(request: Any) -> list[Any]:
    """A file each, of an AsyncRequest: ``(path, key, (objects, tensors))``; none where a rank writes nothing."""
    if request.async_fn is None:
        return []
    return list(request.async_fn_args[1])


@private_api(
    "megatron-core",
    symptom="(no other way to write a planned save in a thread)",
    trigger="every save",
    why="`write_preloaded_data` is the writer's loop over one file's data, made to run in a process of its own",
    versions=_TESTED,
    can_go_when="Megatron writes in a thread",
)
def write_bucket(request: Any, bucket: Any) -> Any:
    """One file, by Megatron's writer; its write results. Raises what the writer met."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    transforms = request.async_fn.args[0]
    results: queue.Queue[Any] = queue.Queue()
    unfinished: queue.Queue[int] = queue.Queue()
    unfinished.put(0)
    FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, results, unfinished, use_fsync=True)
    _, result = results.get_nowait()
    if isinstance(result, Exception):
        raise result
    return result


@private_api(
    "megatron-core",
    symptom="the last collective of a save waits forever for this rank's results",
    trigger="every save",
    why="the finalizing functions look for what was written in the queue that the request holds by place",
    versions=_TESTED,
    can_go_when="Megatron writes in a thread",
)
def finish(request: Any, written: dict[int, Any]) -> None:
    """Megatron's metadata, from what all ranks wrote (results by bucket); all ranks together."""
    if request.async_fn is not None:
        request.async_fn_args[2].put(written)
    for function in request.finalize_fns:
        function()
