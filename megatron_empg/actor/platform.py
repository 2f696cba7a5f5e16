"""What differs between a GPU and a CPU: device, collective backend, and letting Megatron-core run without CUDA.

`prepare()` must run before ``megatron.core`` is imported. Where CUDA exists it only repairs Megatron's optimizers.
Elsewhere it also answers Megatron's calls of ``torch.cuda`` with their CPU counterparts, so that the unmodified
library trains over gloo. What is replaced, and why, is said in `megatron_empg.upstream`.
"""

import os

import torch

from megatron_empg.upstream import megatron_cpu, megatron_optimizer, torch_cpu, transformer_engine

CPU = torch.device("cpu")
_prepared = False


def device() -> torch.device:
    """The device of this process: its CUDA device, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return CPU


def collective_backend() -> str:
    """``nccl`` on GPU, ``gloo`` on CPU."""
    if not torch.cuda.is_available():
        return "gloo"
    return "nccl"


def choose_device() -> None:
    """Make this process's CUDA device that of its rank on the node (LOCAL_RANK).

    Before anything else touches CUDA, which would make a context on the first device for every rank.
    """
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        # A launcher may show each rank its own device alone.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def prepare() -> None:
    """Make megatron-core importable and runnable here. Safe to call again."""
    global _prepared
    # Not TF32, whatever the environment (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE) or an import has chosen.
    torch.set_float32_matmul_precision("highest")
    if _prepared:
        return
    _prepared = True
    choose_device()
    transformer_engine.hide_half_installed()
    megatron_cpu.drop_warnings_of_missing_parts()
    if not torch.cuda.is_available():
        _do_without_cuda()
    megatron_optimizer.own_step_after_loading()
    megatron_optimizer.keep_step_in_reshardable_loading()

    from megatron_empg.actor import optimizer_shards

    optimizer_shards.apply()


def _do_without_cuda() -> None:
    torch_cpu.fill_tables_of_functions()
    random_module = megatron_cpu.import_without_compiling()
    torch_cpu.answer_cuda_calls()
    torch_cpu.make_tensors_on_cpu()
    torch_cpu.keep_tensors_on_cpu()
    torch_cpu.tell_megatron_cuda_types()
    megatron_cpu.track_the_cpu_generator(random_module)
    megatron_cpu.drop_warning_of_cpu_generator(random_module)
