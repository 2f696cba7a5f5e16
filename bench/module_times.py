"""Where an update's time goes: by module, forward and backward together, on CPU and on CUDA."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch

PARTS = {"self_attention": "projections", "core_attention": "attention", "mlp": "mlp", "output_layer": "head"}
"""Modules of megatron-core's GPTModel, by the names of `flops_by_part`."""
COMMUNICATION = "communication"


def clock() -> float:
    """Seconds; of the process alone, not of the wall, where the machine is shared (BENCH_CLOCK=cpu)."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter()


def time_by_part(actor: Any, work: Callable[[], Any]) -> dict[str, float]:
    """Wall seconds of one call of ``work`` by part of the actor; `COMMUNICATION` lies within the others."""
    spans = Spans()
    spans.watch(actor)
    spans.seconds(work)
    return {**spans.seconds(work), COMMUNICATION: communication_seconds(work)}


class Spans:
    """Time by name; a span inside another is taken out of it."""

    def __init__(self) -> None:
        self.open = ["other"]
        self.marks: list[tuple[str, Any]] = []

    def mark(self) -> None:
        stamp: Any = time.perf_counter()
        if torch.cuda.is_available():
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        self.marks.append((self.open[-1], stamp))

    def enter(self, name: str) -> None:
        self.mark()
        self.open.append(name)

    def leave(self) -> None:
        self.mark()
        self.open.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            result = function(*args, **kwargs)
            self.leave()
            return result

        return call

    def watch(self, actor: Any) -> None:
        """Note the actor's modules, forward and backward, its gradient reduction and its optimizer."""
        for chunk in actor.model:
            for path, module in chunk.module.named_modules():
                part = PARTS.get(path.rpartition(".")[2])
                if part:
                    module.register_forward_pre_hook(lambda *_, part=part: self.enter(part))
                    module.register_forward_hook(lambda *_: self.leave())
                    module.register_full_backward_pre_hook(lambda *_, part=part: self.enter(part))
                    module.register_full_backward_hook(lambda *_: self.leave())
        for name in ("prepare_grads", "get_grad_norm", "step"):
            setattr(actor.optimizer, name, self.wrap("optimizer", getattr(actor.optimizer, name)))
        actor.mcore.finalize_model_grads_func = self.wrap("reduction", actor.mcore.finalize_model_grads_func)

    def seconds(self, work: Callable[[], Any]) -> dict[str, float]:
        self.marks = []
        self.mark()
        work()
        self.mark()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        assert self.open == ["other"], "a module's backward pass did not end"
        spent: dict[str, float] = {}
        for (_, start), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            lasted = end - start if isinstance(end, float) else start.elapsed_time(end) / 1000
            spent[name] = spent.get(name, 0.0) + lasted
        return spent


def communication_seconds(work: Callable[[], Any]) -> float:
    """In collectives, overlapped or not, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        work()
    events = profiler.key_averages()
    if cuda:
        return sum(e.self_device_time_total for e in events if e.key.startswith("ncclDevKernel")) / 1e6
    return sum(e.cpu_time_total for e in events if e.key.startswith("gloo:")) / 1e6
