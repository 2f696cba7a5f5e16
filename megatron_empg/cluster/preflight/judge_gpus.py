"""What NVML's facts mean. Without GPUs every check is SKIP with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from megatron_empg.cluster.preflight.facts import Gpu, Gpus, Node
from megatron_empg.cluster.preflight.judge import GIB, Check, Finding, Requirements, Status, part_of, unlike

Verdict = tuple[Status, str, str] | None
"""(status, detail, fix) of one GPU; None is fine."""

# NVIDIA's XID catalogue: raised by the program on the GPU rather than by hardware or driver.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 69})
# Memory, NVLink, bus and firmware: the GPU must be reset, the node drained.
FATAL_XIDS = frozenset({46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143})
_XID_HOURS = 24.0


def presence(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """As many GPUs of the same model everywhere, and each of them answers.

    A node that has fewer than another has lost some; the other has not.
    """
    known = {node.name: node.gpus for node in nodes if node.gpus}
    described = {name: describe(facts) for name, facts in known.items()}
    models = {name: " + ".join(sorted({g.name for g in _present(facts)})) for name, facts in known.items()}
    odd = unlike({name: of for name, of in models.items() if of})
    most = max((len(_present(facts)) for facts in known.values()), default=0)
    expected = bool(wanted.use_gpus or wanted.gpus or most or any(facts.device_files for facts in known.values()))
    fix = "nvidia-smi on that node: a GPU that fell off the bus needs a reset or a reboot; or change the node list"
    for node, facts, finding in part_of(nodes, "gpus", "GPUs"):
        if finding:
            yield finding
            continue
        number, text = len(_present(facts)), described[node.name]
        lost = [f"GPU {gpu.index} does not answer ({gpu.lost})" for gpu in facts.gpus if gpu.lost]
        if not facts.gpus and not expected:
            yield Finding(node.name, "GPUs", "SKIP", facts.absent or "no GPU on any node")
        elif not facts.gpus:
            yield Finding(node.name, "GPUs", "FAIL", facts.absent or "no GPU", fix)
        elif lost:
            yield Finding(node.name, "GPUs", "FAIL", "; ".join([*lost, text]), fix)
        elif wanted.gpus is not None and number != wanted.gpus:
            yield Finding(node.name, "GPUs", "FAIL", f"{text}, {wanted.gpus} wanted", fix)
        elif wanted.gpus is None and number < most:
            yield Finding(node.name, "GPUs", "FAIL", f"{text}, another node has {most}", fix)
        elif node.name in odd:
            yield Finding(node.name, "GPUs", "FAIL", f"{text}: {odd[node.name]}", fix)
        elif wanted.gpus is None and (doubt := _doubt(number, facts.on_bus)):
            yield Finding(node.name, "GPUs", "WARN", f"{text}: {doubt}", "say how many there must be: --gpus N")
        else:
            yield Finding(node.name, "GPUs", "PASS", text)


def describe(facts: Gpus) -> str:
    """Number and model of those that answer."""
    counts = sorted(Counter(gpu.name for gpu in _present(facts)).items())
    return " + ".join(f"{number} x {name}" for name, number in counts) or "no GPU"


def _present(facts: Gpus) -> list[Gpu]:
    return [gpu for gpu in facts.gpus if not gpu.lost]


def _doubt(number: int, on_bus: int | None) -> str:
    """Why so many GPUs may be too few, where nobody has said how many there should be."""
    if on_bus is not None and number < on_bus:
        return f"the machine's bus lists {on_bus}"
    return "" if number & (number - 1) == 0 else "not a usual number for a machine"


def by_gpu(check: str, verdict: Callable[[Gpu, Requirements], Verdict], fine: str) -> Check:
    """A check that looks at each GPU by itself."""

    def run(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
        for node, facts, finding in part_of(nodes, "gpus", check):
            if finding or not facts.gpus:
                yield finding or Finding(node.name, check, "SKIP", facts.absent or "no GPU")
                continue
            verdicts = [(gpu.index, found) for gpu in facts.gpus if (found := _of_gpu(verdict, gpu, wanted))]
            if not verdicts:
                yield Finding(node.name, check, "PASS", fine)
                continue
            order: list[Status] = ["FAIL", "WARN", "SKIP", "PASS"]
            worst = min((found[0] for _, found in verdicts), key=order.index)
            text = "; ".join(f"GPU {index}: {found[1]}" for index, found in verdicts)
            fixes = dict.fromkeys(found[2] for _, found in verdicts if found[2])
            yield Finding(node.name, check, worst, text, "; ".join(fixes))

    return run


def _of_gpu(verdict: Callable[[Gpu, Requirements], Verdict], gpu: Gpu, wanted: Requirements) -> Verdict:
    """What has not answered fails the first check, and no other."""
    return ("SKIP", "does not answer", "") if gpu.lost else verdict(gpu, wanted)


def memory(gpu: Gpu, wanted: Requirements) -> Verdict:
    if gpu.memory_free is None or not gpu.memory_total:
        return "SKIP", "memory cannot be read", ""
    if gpu.memory_free >= wanted.gpu_memory_free * gpu.memory_total:
        return None
    held = (gpu.memory_total - gpu.memory_free) / GIB
    return "FAIL", f"{held:.1f} GiB are held by others", "end the left-over processes nvidia-smi lists"


def errors(gpu: Gpu, wanted: Requirements) -> Verdict:
    """Uncorrectable memory errors and failed row remaps."""
    if gpu.remap_failed:
        return "FAIL", "a memory row could not be remapped", "drain the node; the GPU must be replaced"
    if gpu.remap_pending:
        return "FAIL", "a row remap waits for a reset", "nvidia-smi --gpu-reset, or reboot the node"
    if gpu.ecc_uncorrected:
        fix = "reset the GPU, and drain the node if it comes back"
        return "FAIL", f"{gpu.ecc_uncorrected} uncorrectable memory errors", fix
    if gpu.ecc_on is False:
        return "WARN", "ECC is off", "nvidia-smi --ecc-config=1, then reset"
    if gpu.ecc_on is None:
        return "SKIP", "ECC cannot be read", ""
    return None


def throttling(gpu: Gpu, wanted: Requirements) -> Verdict:
    if gpu.throttle is None:
        return "SKIP", "reasons for low clocks cannot be read", ""
    if not gpu.throttle:
        return None
    return "FAIL", ", ".join(gpu.throttle), "check cooling and power supplies, and drain the node until then"


def power(gpu: Gpu, wanted: Requirements) -> Verdict:
    if gpu.power_limit is None or gpu.power_default is None:
        return "SKIP", "the power cap cannot be read", ""
    if gpu.power_limit >= 0.99 * gpu.power_default:
        return None
    text = f"capped at {gpu.power_limit:.0f} W, {gpu.power_default:.0f} by default"
    return "WARN", text, "nvidia-smi --power-limit: one capped GPU slows all"


def nvlink(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """All links up; of cards that are bridged, or not, by hand: as many as on the best card of that model."""
    most: dict[str, int] = {}
    for gpu in (gpu for node in nodes if node.gpus for gpu in node.gpus.gpus):
        most[gpu.name] = max(most.get(gpu.name, 0), gpu.nvlinks_up or 0)

    def verdict(gpu: Gpu, wanted: Requirements) -> Verdict:
        if gpu.nvlinks_up is None:
            return "SKIP", "no NVLink", ""
        if not gpu.nvlinks_down:
            return None
        fix = "nvidia-smi nvlink --status; restart the fabric manager, else drain"
        down = f"NVLink {', '.join(map(str, gpu.nvlinks_down))} down"
        if gpu.nvlinks_up < most[gpu.name]:
            return "FAIL", f"{down}, another {gpu.name} has {most[gpu.name]} up", fix
        if any(word in gpu.name for word in _CARDS):
            return None if gpu.nvlinks_up else ("SKIP", "no NVLink bridge", "")
        if gpu.nvlinks_up:
            return "FAIL", down, fix
        return "WARN", f"none of the {len(gpu.nvlinks_down)} links is up, on no GPU of this model", fix

    yield from by_gpu("NVLink", verdict, "all links up, or as many as on other cards")(nodes, wanted)


_CARDS = ("PCIe", "PCIE", "NVL")
"""In the names of cards whose links need bridges, which may be missing."""


def arithmetic(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Matrix products are right, to the bit."""
    check = "arithmetic"
    for node, products, finding in part_of(nodes, "products", check):
        if node.gpus is None or not node.gpus.gpus:
            yield Finding(node.name, check, "SKIP", (node.gpus and node.gpus.absent) or "no GPU")
            continue
        if finding:
            yield finding
            continue
        numbers = {gpu.uuid.removeprefix("GPU-"): gpu.index for gpu in node.gpus.gpus if gpu.uuid}
        faults = [
            f"GPU {numbers.get(product.uuid.removeprefix('GPU-'), product.index)}: {'; '.join(product.faults)}"
            for product in products
            if product.faults
        ]
        fewest = 1 if wanted.gpus is None else wanted.gpus
        if faults:
            fix = "drain the node: such a GPU ruins a policy unseen; dcgmi diag -r 3 says more, then replace it"
            yield Finding(node.name, check, "FAIL", "; ".join(faults), fix)
        elif len(products) < fewest:
            text = f"torch sees {len(products)} of {len(node.gpus.gpus)} GPUs"
            fix = "see CUDA_VISIBLE_DEVICES there, and what python -c 'import torch; torch.cuda.init()' says"
            yield Finding(node.name, check, "FAIL", text, fix)
        else:
            yield Finding(node.name, check, "PASS", f"{len(products)} GPUs multiply exactly")


def persistence(gpu: Gpu, wanted: Requirements) -> Verdict:
    if gpu.persistence is None:
        return "SKIP", "persistence mode cannot be read", ""
    if gpu.persistence:
        return None
    return "WARN", "persistence mode is off: slow starts", "systemctl enable --now nvidia-persistenced"


def xids(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Driver errors of the last day in the kernel's log."""
    for node in nodes:
        if node.gpus is None or not node.gpus.gpus:
            reason = (node.gpus and node.gpus.absent) or "no GPU"
            yield Finding(node.name, "Xid", "SKIP", reason)
            continue
        if node.xids is None:
            text = node.unanswered.get("xids", "the kernel's log was not read")
            yield Finding(node.name, "Xid", "SKIP", text)
            continue
        recent = [xid for xid in node.xids if xid.hours_ago < _XID_HOURS and xid.code not in APPLICATION_XIDS]
        if not recent:
            yield Finding(node.name, "Xid", "PASS", "none in a day")
            continue
        text = ", ".join(f"Xid {xid.code} of {xid.device}, {xid.hours_ago:.1f} h ago" for xid in recent[-5:])
        fatal = any(xid.code in FATAL_XIDS for xid in recent)
        fix = "drain the node; reset or replace the GPU (NVIDIA's XID catalogue says which)"
        yield Finding(node.name, "Xid", "FAIL" if fatal else "WARN", text, fix)


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
