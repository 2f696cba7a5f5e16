"""All facts of this node, each part under a time limit of its own: a hanging file system costs one part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_empg.cluster.preflight import arithmetic, gpu, host
from megatron_empg.cluster.preflight.facts import FolderFacts, GpuList, NodeFacts

NO_GPU = "not checked: --no-gpu was given"
_TORCH_LIMIT = 90.0  # importing torch from a shared file system, on all nodes at once
_PRODUCT_LIMIT = 40.0  # of that, for GPUs to start and multiply


@dataclass(frozen=True)
class PreflightOptions:
    """What to look at. ``limit``: seconds for each part; checksums of a whole model have their own."""

    run_folder: Path | None = None
    model: Path | None = None
    weights: bool = True
    """False for a model that starts from random weights."""
    manifest: Path | None = None
    data: tuple[Path, ...] = ()
    packages: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    use_gpus: bool | None = None
    limit: float = 20.0
    checksum_limit: float = 600.0


def collect_node(name: str, asked: PreflightOptions) -> NodeFacts:
    """Read everything at once; what has not answered in time stands in ``unanswered``."""
    parts: dict[str, Callable[[], Any]] = {
        "gpus": gpu.read_gpus,
        "versions": partial(host.read_versions, asked.packages),
        "infiniband": host.read_infiniband,
        "shared_memory": host.read_shared_memory,
        "host_memory": host.read_host_memory,
        "limits": host.read_limits,
    }
    if asked.use_gpus is False:
        parts["gpus"] = partial(GpuList, absent=NO_GPU)
    else:
        parts["xids"] = host.read_xids
        parts["products"] = partial(arithmetic.read_products, _PRODUCT_LIMIT)
    if asked.ports:
        parts["busy_ports"] = partial(host.read_busy_ports, asked.ports)
    if asked.run_folder:
        parts["disk"] = partial(host.read_disk, asked.run_folder)
    if asked.model:
        parts["model"] = partial(_model, asked.model, asked)
    if asked.data:
        parts["data"] = partial(_data, asked.data)
    limits = dict.fromkeys(parts, asked.limit)
    for part in ("versions", "products"):
        limits[part] = max(asked.limit, _TORCH_LIMIT)
    if asked.manifest:
        limits["model"] = asked.checksum_limit
    node = NodeFacts(name=name)
    for part, answer in ask_all(parts, limits).items():
        if isinstance(answer, str):
            node.unanswered[part] = answer
        else:
            setattr(node, part, answer[0])
    return node


def _model(folder: Path, asked: PreflightOptions) -> FolderFacts:
    facts = host.read_model(folder, weights=asked.weights)
    if asked.manifest and folder.exists():
        facts.faults += host.checksum_faults(asked.manifest, folder)
    return facts


def _data(paths: Sequence[Path]) -> list[FolderFacts]:
    return [host.read_data(path) for path in paths]


def ask_all(parts: dict[str, Callable[[], Any]], limits: dict[str, float]) -> dict[str, tuple[Any] | str]:
    """Each part's answer in a tuple, or the reason why there is none. Threads that hang are left behind."""
    answers: dict[str, tuple[Any] | str] = {}

    def ask(part: str) -> None:
        try:
            answers[part] = (parts[part](),)
        except OSError as error:
            answers[part] = str(error)
        except Exception as error:  # such as a torch that cannot be imported: the node's fault, to be reported
            answers[part] = f"{type(error).__name__}: {error}"

    threads = {part: threading.Thread(target=ask, args=(part,), daemon=True) for part in parts}
    for thread in threads.values():
        thread.start()
    waited = 0.0
    for part in sorted(parts, key=limits.__getitem__):
        threads[part].join(limits[part] - waited)
        if threads[part].is_alive():
            waited = max(waited, limits[part])
        answers.setdefault(part, f"no answer within {limits[part]:.0f} s")
    return dict(answers)
