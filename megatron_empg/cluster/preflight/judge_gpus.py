"""What NVML's facts mean. Without GPUs every check is SKIP with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from megatron_empg.cluster.preflight.facts import GpuFacts, GpuList, NodeFacts, ProductFacts
from megatron_empg.cluster.preflight.judge import (
    GIB,
    Check,
    CheckFinding,
    CheckVerdict,
    Requirements,
    Status,
    by_node,
    unlike,
    without,
)

LookAtGpu = Callable[[GpuFacts, Requirements], "CheckVerdict | None"]
"""What to say of one GPU; None is fine."""

# NVIDIA's XID catalogue: raised by the program on the GPU rather than by hardware or driver.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 69})
# Memory, NVLink, bus and firmware: the GPU must be reset, the node drained.
FATAL_XIDS = frozenset({46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143})
_XID_HOURS = 24.0


def presence(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Every node has as many GPUs of the same model, and each of them answers.

    A node that has fewer than another has lost some; the other has not.
    """
    known = {node.name: node.gpus for node in nodes if node.gpus}
    models = {}
    for name, facts in known.items():
        if _present(facts):
            models[name] = " + ".join(sorted({gpu.name for gpu in _present(facts)}))
    odd = unlike(models)
    most = max((len(_present(facts)) for facts in known.values()), default=0)
    expected = bool(wanted.use_gpus or wanted.gpus or most or any(facts.device_files for facts in known.values()))
    fix = "nvidia-smi on that node: a GPU that fell off the bus needs a reset or a reboot; or change the node list"

    @by_node("GPUs", part="gpus")
    def of_node(node: NodeFacts, facts: GpuList, wanted: Requirements) -> CheckVerdict:
        number, text = len(_present(facts)), describe(facts)
        lost = [f"GPU {gpu.index} does not answer ({gpu.lost})" for gpu in facts.gpus if gpu.lost]
        if not facts.gpus and not expected:
            return CheckVerdict("SKIP", facts.absent or "no GPU on any node")
        if not facts.gpus:
            return CheckVerdict("FAIL", facts.absent or "no GPU", fix)
        if lost:
            return CheckVerdict("FAIL", "; ".join([*lost, text]), fix)
        if wanted.gpus is not None and number != wanted.gpus:
            return CheckVerdict("FAIL", f"{text}, {wanted.gpus} wanted", fix)
        if wanted.gpus is None and number < most:
            return CheckVerdict("FAIL", f"{text}, another node has {most}", fix)
        if node.name in odd:
            return CheckVerdict("FAIL", f"{text}: {odd[node.name]}", fix)
        doubt = _doubt(number, facts.on_bus)
        if wanted.gpus is None and doubt:
            return CheckVerdict("WARN", f"{text}: {doubt}", "say how many there must be: --gpus N")
        return CheckVerdict("PASS", text)

    return of_node(nodes, wanted)


def describe(facts: GpuList) -> str:
    """Number and model of those that answer."""
    counts = sorted(Counter(gpu.name for gpu in _present(facts)).items())
    return " + ".join(f"{number} x {name}" for name, number in counts) or "no GPU"


def _present(facts: GpuList) -> list[GpuFacts]:
    return [gpu for gpu in facts.gpus if not gpu.lost]


def _doubt(number: int, on_bus: int | None) -> str:
    """Why so many GPUs may be too few, where nobody has said how many there should be."""
    if on_bus is not None and number < on_bus:
        return f"the machine's bus lists {on_bus}"
    if (number & (number - 1)) != 0:
        return "not a usual number for a machine"
    return ""


def by_gpu(check: str, look: LookAtGpu, fine: str) -> Check:
    """A check that looks at each GPU by itself; `fine` is said where there is nothing to say of any."""

    @by_node(check, part="gpus")
    def of_node(node: NodeFacts, facts: GpuList, wanted: Requirements) -> CheckVerdict:
        if not facts.gpus:
            return CheckVerdict("SKIP", facts.absent or "no GPU")
        verdicts = {}
        for gpu in facts.gpus:
            found = _of_gpu(look, gpu, wanted)
            if found:
                verdicts[gpu.index] = found
        if verdicts:
            return _together(verdicts)
        return CheckVerdict("PASS", fine)

    return of_node


def _of_gpu(look: LookAtGpu, gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    """What has not answered fails the first check, and no other."""
    if gpu.lost:
        return CheckVerdict("SKIP", "does not answer")
    return look(gpu, wanted)


def _together(verdicts: Mapping[int, CheckVerdict]) -> CheckVerdict:
    """One of a node, from those of its GPUs by their index."""
    order: list[Status] = ["FAIL", "WARN", "SKIP", "PASS"]
    worst = min((found.status for found in verdicts.values()), key=order.index)
    text = "; ".join(f"GPU {index}: {found.detail}" for index, found in verdicts.items())
    fixes = dict.fromkeys(found.fix for found in verdicts.values() if found.fix)
    return CheckVerdict(worst, text, "; ".join(fixes))


def memory(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    if gpu.memory_free is None or not gpu.memory_total:
        return CheckVerdict("SKIP", "memory cannot be read")
    if gpu.memory_free >= wanted.gpu_memory_free * gpu.memory_total:
        return None
    held = (gpu.memory_total - gpu.memory_free) / GIB
    return CheckVerdict(
        "FAIL", f"{held:.1f} GiB are held by others", "end the left-over processes nvidia-smi lists"
    )


def errors(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    """Uncorrectable memory errors and failed row remaps."""
    if gpu.remap_failed:
        return CheckVerdict(
            "FAIL", "a memory row could not be remapped", "drain the node; the GPU must be replaced"
        )
    if gpu.remap_pending:
        return CheckVerdict("FAIL", "a row remap waits for a reset", "nvidia-smi --gpu-reset, or reboot the node")
    if gpu.ecc_uncorrected:
        fix = "reset the GPU, and drain the node if it comes back"
        return CheckVerdict("FAIL", f"{gpu.ecc_uncorrected} uncorrectable memory errors", fix)
    if gpu.ecc_on is False:
        return CheckVerdict("WARN", "ECC is off", "nvidia-smi --ecc-config=1, then reset")
    if gpu.ecc_on is None:
        return CheckVerdict("SKIP", "ECC cannot be read")
    return None


def throttling(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    if gpu.throttle is None:
        return CheckVerdict("SKIP", "reasons for low clocks cannot be read")
    if not gpu.throttle:
        return None
    return CheckVerdict(
        "FAIL", ", ".join(gpu.throttle), "check cooling and power supplies, and drain the node until then"
    )


def power(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    if gpu.power_limit is None or gpu.power_default is None:
        return CheckVerdict("SKIP", "the power cap cannot be read")
    if gpu.power_limit >= 0.99 * gpu.power_default:
        return None
    text = f"capped at {gpu.power_limit:.0f} W, {gpu.power_default:.0f} by default"
    return CheckVerdict("WARN", text, "nvidia-smi --power-limit: one capped GPU slows all")


def nvlink(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """All links up; of cards that are bridged, or not, by hand: as many as on the best card of that model."""
    most: dict[str, int] = {}
    for node in nodes:
        for gpu in node.gpus.gpus if node.gpus else ():
            most[gpu.name] = max(most.get(gpu.name, 0), gpu.nvlinks_up or 0)

    def look(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
        if gpu.nvlinks_up is None:
            return CheckVerdict("SKIP", "no NVLink")
        if not gpu.nvlinks_down:
            return None
        fix = "nvidia-smi nvlink --status; restart the fabric manager, else drain"
        down = f"NVLink {', '.join(map(str, gpu.nvlinks_down))} down"
        if gpu.nvlinks_up < most[gpu.name]:
            return CheckVerdict("FAIL", f"{down}, another {gpu.name} has {most[gpu.name]} up", fix)
        if any(word in gpu.name for word in _CARDS):
            if gpu.nvlinks_up:
                return None
            return CheckVerdict("SKIP", "no NVLink bridge")
        if gpu.nvlinks_up:
            return CheckVerdict("FAIL", down, fix)
        return CheckVerdict(
            "WARN", f"none of the {len(gpu.nvlinks_down)} links is up, on no GPU of this model", fix
        )

    return by_gpu("NVLink", look, "all links up, or as many as on other cards")(nodes, wanted)


_CARDS = ("PCIe", "PCIE", "NVL")
"""In the names of cards whose links need bridges, which may be missing."""


def arithmetic(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Matrix products are right, to the bit."""
    return _where_gpus("arithmetic", nodes, lambda node, gpus: _products(node, gpus, wanted))


def _products(node: NodeFacts, gpus: GpuList, wanted: Requirements) -> CheckVerdict:
    missing = without(node, "products")
    if missing:
        return missing
    products = node.products or []
    faults = _wrong_products(products, gpus)
    fewest = 1
    if wanted.gpus is not None:
        fewest = wanted.gpus
    if faults:
        fix = "drain the node: such a GPU ruins a policy unseen; dcgmi diag -r 3 says more, then replace it"
        return CheckVerdict("FAIL", "; ".join(faults), fix)
    if len(products) < fewest:
        text = f"torch sees {len(products)} of {len(gpus.gpus)} GPUs"
        fix = "see CUDA_VISIBLE_DEVICES there, and what python -c 'import torch; torch.cuda.init()' says"
        return CheckVerdict("FAIL", text, fix)
    return CheckVerdict("PASS", f"{len(products)} GPUs multiply exactly")


def _wrong_products(products: Sequence[ProductFacts], gpus: GpuList) -> list[str]:
    """A line for each GPU that multiplies wrongly, by NVML's number where it is known."""
    numbers = {gpu.uuid.removeprefix("GPU-"): gpu.index for gpu in gpus.gpus if gpu.uuid}
    faults = []
    for product in products:
        if product.faults:
            number = numbers.get(product.uuid.removeprefix("GPU-"), product.index)
            faults.append(f"GPU {number}: {'; '.join(product.faults)}")
    return faults


def _where_gpus(
    check: str, nodes: Sequence[NodeFacts], look: Callable[[NodeFacts, GpuList], CheckVerdict]
) -> Iterator[CheckFinding]:
    """A check of nodes that have GPUs; the others are skipped, whatever else they have not told."""
    for node in nodes:
        if node.gpus is None or not node.gpus.gpus:
            found = CheckVerdict("SKIP", (node.gpus and node.gpus.absent) or "no GPU")
        else:
            found = look(node, node.gpus)
        yield CheckFinding(node.name, check, found.status, found.detail, found.fix)


def persistence(gpu: GpuFacts, wanted: Requirements) -> CheckVerdict | None:
    if gpu.persistence is None:
        return CheckVerdict("SKIP", "persistence mode cannot be read")
    if gpu.persistence:
        return None
    return CheckVerdict(
        "WARN", "persistence mode is off: slow starts", "systemctl enable --now nvidia-persistenced"
    )


def xids(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Driver errors of the last day in the kernel's log."""
    return _where_gpus("Xid", nodes, lambda node, gpus: _driver_errors(node))


def _driver_errors(node: NodeFacts) -> CheckVerdict:
    if node.xids is None:
        return CheckVerdict("SKIP", node.unanswered.get("xids", "the kernel's log was not read"))
    recent = [xid for xid in node.xids if xid.hours_ago < _XID_HOURS and xid.code not in APPLICATION_XIDS]
    if not recent:
        return CheckVerdict("PASS", "none in a day")
    text = ", ".join(f"Xid {xid.code} of {xid.device}, {xid.hours_ago:.1f} h ago" for xid in recent[-5:])
    fatal = any(xid.code in FATAL_XIDS for xid in recent)
    fix = "drain the node; reset or replace the GPU (NVIDIA's XID catalogue says which)"
    return CheckVerdict("FAIL" if fatal else "WARN", text, fix)


GPU_CHECKS: tuple[Check, ...] = (
    presence,
    by_gpu("GPU memory", memory, "free"),
    by_gpu("GPU errors", errors, "no ECC errors, no remaps pending"),
    by_gpu("clocks", throttling, "not throttled"),
    by_gpu("power cap", power, "default"),
    nvlink,
    by_gpu("persistence", persistence, "on"),
    arithmetic,
    xids,
)
