"""Without an entry of `megatron_empg.upstream`: what is seen of collectives and checkpoints. See `fresh`."""

from __future__ import annotations

import importlib
import inspect
import pickle
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_empg.upstream import torch_checkpoint, torch_distributed, torch_kernels
from tests.unit.upstream.one_rank import symptom_of

EARLY = ()
SECOND = timedelta(seconds=1)


def prepare() -> None:
    for name in ("torch.distributed.checkpoint", "torch.nn.attention.varlen"):
        importlib.import_module(name)


def _alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def _public(*names: str) -> bool:
    return any(hasattr(dist, name) for name in names)


# Checkpoints


def case_storage_info() -> str:
    from torch.distributed.checkpoint import filesystem

    info = torch_checkpoint.storage_info("a.distcp", 3, 5)
    assert (info.relative_path, info.offset, info.length) == ("a.distcp", 3, 5)
    return "" if hasattr(filesystem, "StorageInfo") else f"{type(info).__name__} is the only name"


def case_DescriptionUnpickler() -> str:
    from torch.distributed.checkpoint import FileSystemReader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ".metadata")
        path.write_bytes(pickle.dumps(_Told()))
        with path.open("rb") as file:
            refused = symptom_of(torch_checkpoint.DescriptionUnpickler(file).load)
        assert "it refers to" in refused, refused
        symptom_of(FileSystemReader(folder).read_metadata)
    return "the file's own code ran" if _Told.ran else ""


class _Told:
    """Notes that it was unpickled."""

    ran = False

    def __setstate__(self, _state: object) -> None:
        _Told.ran = True

    def __getstate__(self) -> dict[str, int]:
        return {"state": 1}


# Collectives


def case_single_tensor_collectives() -> str:
    gather, scatter = torch_distributed.single_tensor_collectives()
    _alone()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        whole = torch.empty(2)
        gather(whole, torch.ones(2))
        scatter(torch.empty(2), whole)
        assert not [each for each in given if "deprecated" in str(each.message)], "new names are warned of"
        dist.all_gather_into_tensor(torch.empty(2), torch.ones(2))
    return "; ".join(str(each.message) for each in given if "deprecated" in str(each.message))


def case_coalesced() -> str:
    _alone()
    tensors = [torch.ones(2), torch.ones(3)]
    for work in torch_distributed.coalesced(dist.group.WORLD, dist.all_reduce, [(each,) for each in tensors]):
        work.wait()
    return "" if _public("coalescing_manager", "coalesce") else "no public name"


def case_gloo_group() -> str:
    """Neither a group beside a default one, nor public options of gloo's own class."""
    if "Options" in vars(dist.ProcessGroupGloo):  # the one it inherits has no devices
        return ""
    store = dist.HashStore()
    torch_distributed.gloo_group(store, 0, 1, host="127.0.0.1", timeout=SECOND)
    assert not dist.is_initialized()
    return symptom_of(lambda: dist.new_group([0], backend="gloo"))


def case_broadcast_from_first() -> str:
    group = torch_distributed.gloo_group(dist.HashStore(), 0, 1, host="127.0.0.1", timeout=SECOND)
    torch_distributed.broadcast_from_first(group, torch.ones(2), SECOND).wait()
    return symptom_of(lambda: dist.broadcast(torch.ones(2), 0, group=group))


def case_collectives_begun() -> str:
    assert torch_distributed.collectives_begun() == 0
    _alone()
    before = torch_distributed.collectives_begun()
    dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1))
    assert torch_distributed.collectives_begun() == before + 2
    return "" if _public("get_sequence_number", "sequence_number") else "no public count"


def case_recorded_collectives() -> str:
    from torch._C import _distributed_c10d

    names = [name for name in dir(_distributed_c10d) if name.startswith("_dump_") and name.endswith("_json")]
    assert torch_distributed.recorded_collectives() is not None or not names
    public = [name for name in dir(dist) if "flight" in name.lower() and not name.startswith("_")]
    return "" if public else ", ".join(names)


# Kernels


def case_assert_on_device() -> str:
    torch_kernels.assert_on_device(torch.tensor(True))
    assert symptom_of(lambda: torch_kernels.assert_on_device(torch.tensor(False)))
    return "" if hasattr(torch, "assert_async") else "no public assertion on a device"


def case_packed_attention() -> str:
    """What it would say on a GPU, as far as it says it before a kernel is called."""
    from torch.nn.attention.varlen import varlen_attn

    taken = inspect.signature(varlen_attn).parameters
    assert {"scale", "window_size", "enable_gqa"} <= taken.keys()
    query, key = torch.zeros(4, 4, 8), torch.zeros(4, 2, 8)
    ends = torch.tensor([0, 4], dtype=torch.int32)
    return symptom_of(lambda: varlen_attn(query, key, key, ends, ends, 4, 4))
