"""torch answers calls of CUDA where there is none, so that unmodified Megatron-core trains on CPU.

Functions are replaced outright (no dispatch mode): no cost per operation, and it holds in threads. Each is to be
called once in a process, before ``megatron.core`` is imported, and never where CUDA exists.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from megatron_empg.upstream.record import patch, private_api

CPU = torch.device("cpu")
_MEGATRON_ON_CPU = "megatron-core trains without CUDA"
_TESTED = ("2.13.0",)


@private_api(
    "torch",
    symptom="Hugging Face models made after the actor have wrong rotary frequencies",
    trigger="a rank without CUDA loads a Hugging Face model",
    why=(
        "torch._dynamo and torch.utils._device keep tables of torch's own functions. Filled after the "
        "replacements of this file they would name those"
    ),
    versions=_TESTED,
    can_go_when=f"{_MEGATRON_ON_CPU}, and the replacements go",
)
def fill_tables_of_functions() -> None:
    """Let torch note its own functions. Comes before every replacement."""
    importlib.import_module("torch._dynamo")
    torch.utils._device._device_constructors()


@patch(
    "torch",
    symptom="AssertionError: Torch not compiled with CUDA enabled",
    trigger="Megatron asks for a device, a stream, its memory or a random state on CPU",
    why="megatron-core calls torch.cuda without asking whether there is a device",
    versions=_TESTED,
    can_go_when=_MEGATRON_ON_CPU,
)
def answer_cuda_calls() -> None:
    """Give the calls of ``torch.cuda`` their counterparts on CPU: one device, no streams, the one generator."""
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    for name in ("set_device", "synchronize", "empty_cache", "set_stream"):
        # A function for each: torch._dynamo keeps a rule for every one of them, and refuses two of one function.
        setattr(cuda, name, lambda *_, **__: None)
    cuda.device_count = lambda: 1
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = cuda.default_stream = lambda *_, **__: _NoStream()
    cuda.stream = lambda _stream=None: contextlib.nullcontext()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *_, **__: 0)
    cuda.memory_stats = lambda *_, **__: {}
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed)) and None
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_, **__: None


@patch(
    "torch",
    symptom="AssertionError: Torch not compiled with CUDA enabled",
    trigger='Megatron makes a tensor with device="cuda", or on a device by number, on CPU',
    why="megatron-core writes the device into its calls",
    versions=_TESTED,
    can_go_when=_MEGATRON_ON_CPU,
)
def make_tensors_on_cpu() -> None:
    """Let torch's factories make on CPU what is asked for on CUDA."""
    names = "tensor as_tensor zeros ones empty full arange rand randn zeros_like ones_like empty_like full_like"
    for name in names.split():
        setattr(torch, name, _on_cpu(getattr(torch, name)))


@patch(
    "torch",
    symptom="AssertionError: Torch not compiled with CUDA enabled",
    trigger="Megatron moves a tensor or a module to CUDA on CPU",
    why="megatron-core moves without asking whether there is a device",
    versions=_TESTED,
    can_go_when=_MEGATRON_ON_CPU,
)
def keep_tensors_on_cpu() -> None:
    """Let a move to CUDA leave tensors and modules where they are."""
    tensor: Any = torch.Tensor
    original = tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and not isinstance(args[0], int) and _names_cuda(args[0]):
            args = (CPU, *args[1:])
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original(self, *args, **kwargs)

    tensor.to = to
    tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign,assignment]


@patch(
    "torch",
    symptom="AssertionError without a word; TypeError: Wrapped parameters must be one of torch.cuda.FloatTensor",
    trigger="one of Megatron's optimizers is built, or clips gradients, on CPU",
    why="it accepts a parameter by comparing the text that Tensor.type() gives with CUDA's names",
    versions=_TESTED,
    can_go_when="megatron-core compares dtypes in place of these names",
)
def tell_megatron_cuda_types() -> None:
    """Let ``Tensor.type()`` name CUDA's type when Megatron asks, and nobody else."""
    tensor: Any = torch.Tensor
    original = tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        asked_by = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(answer, str) and not args and asked_by.startswith("megatron."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    tensor.type = type_


class _NoStream:
    """Stands in for ``torch.cuda.Stream`` and ``Event``: everything is already done."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def record_event(self) -> _NoStream:
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


def _names_cuda(place: Any) -> bool:
    if isinstance(place, bool) or place is None:
        return False
    if isinstance(place, int):
        return True
    return isinstance(place, str | torch.device) and torch.device(place).type == "cuda"


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return call
