"""What differs between a GPU and a CPU: device, collective backend, and letting Megatron-core run without CUDA.

`prepare()` must run before ``megatron.core`` is imported. Where CUDA exists it changes nothing. Elsewhere it
answers Megatron's calls of ``torch.cuda`` with their CPU counterparts, so that the unmodified library trains
over gloo. Functions are replaced outright (no dispatch mode): no cost per operation, and it holds in threads.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)
CPU = torch.device("cpu")
_TRANSFORMER_ENGINE = "transformer_engine", "transformer_engine_torch"
"""The package, and its extension for torch, which is built apart and may be missing."""
_prepared = False


def device() -> torch.device:
    """The device of this process: its CUDA device, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


def collective_backend() -> str:
    """``nccl`` on GPU, ``gloo`` on CPU."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def choose_device() -> None:
    """Make this process's CUDA device that of its rank on the node (LOCAL_RANK).

    Before anything else touches CUDA, which would make a context on the first device for every rank.
    """
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        # A launcher may show each rank its own device alone.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def transformer_engine_available() -> bool:
    """Whether Transformer Engine's layers can be used: both its parts installed, on a CUDA device."""
    return torch.cuda.is_available() and all(map(_installed, _TRANSFORMER_ENGINE))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def hide_half_installed() -> None:
    """Let importing Transformer Engine without its extension be an ImportError, the one that Megatron expects.

    The package itself answers with a FileNotFoundError, so that importing ``megatron.core`` would fail.
    """
    package, extension = _TRANSFORMER_ENGINE
    if _installed(package) and not _installed(extension):
        sys.modules[package] = None  # type: ignore[assignment]
        logger.warning("Transformer Engine lacks its part for torch (%s) and is not used", extension)


def prepare() -> None:
    """Make megatron-core importable and runnable here. Safe to call again."""
    global _prepared
    # Not TF32, whatever the environment (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE) or an import has chosen.
    torch.set_float32_matmul_precision("highest")
    if _prepared:
        return
    _prepared = True
    choose_device()
    hide_half_installed()
    # Megatron warns a dozen times, once a module, that it found neither Transformer Engine nor apex.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    if not torch.cuda.is_available():
        # Both hold tables of torch's own functions: filled after the replacements they would name ours, and
        # Hugging Face models would then load with wrong rotary frequencies.
        importlib.import_module("torch._dynamo")
        torch.utils._device._device_constructors()
        random_module = _import_without_compiling()
        _replace_cuda_calls()
        _replace_factories()
        _replace_methods()
        _replace_rng(random_module)
    from megatron_empg.actor import optimizer_repairs, optimizer_shards

    optimizer_repairs.apply()
    optimizer_shards.apply()


class _NoStream:
    """Stands in for ``torch.cuda.Stream`` and ``Event``: everything is already done."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def record_event(self) -> "_NoStream":
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


def _import_without_compiling() -> Any:
    """Import Megatron's modules that call torch.compile at import, with it switched off."""
    original = torch.compile
    torch.compile = lambda f=None, **_: f if f is not None else (lambda g: g)  # type: ignore[assignment]
    try:
        random_module = importlib.import_module("megatron.core.tensor_parallel.random")
        jit = importlib.import_module("megatron.core.jit")
    finally:
        torch.compile = original  # type: ignore[assignment]
    jit.disable_jit_fuser()
    return random_module


def _replace_cuda_calls() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    for name in ("set_device", "synchronize", "empty_cache", "set_stream"):
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


def _names_cuda(place: Any) -> bool:
    if isinstance(place, bool) or place is None:
        return False
    if isinstance(place, int):
        return True
    return isinstance(place, str | torch.device) and torch.device(place).type == "cuda"


def _replace_factories() -> None:
    def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(factory)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _names_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
            return factory(*args, **kwargs)

        return call

    names = "tensor as_tensor zeros ones empty full arange rand randn zeros_like ones_like empty_like full_like"
    for name in names.split():
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _replace_methods() -> None:
    tensor: Any = torch.Tensor
    original_to, original_type = tensor.to, tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and not isinstance(args[0], int) and _names_cuda(args[0]):
            args = (CPU, *args[1:])
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original_type(self, *args, **kwargs)
        # Megatron's optimizers accept a parameter by comparing its type with 'torch.cuda.FloatTensor'.
        asked_by = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(answer, str) and not args and asked_by.startswith("megatron."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    tensor.to, tensor.type = to, type_
    tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign,assignment]


def _replace_rng(random_module: Any) -> None:
    """The CPU has one generator; Megatron's tracker swaps its state as it would the CUDA generator's."""
    random_module._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random_module._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    logging.getLogger(random_module.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
