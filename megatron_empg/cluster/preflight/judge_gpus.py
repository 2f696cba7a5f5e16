"""What NVML's facts mean. Without GPUs every check is SKIP with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from megatron_empg.cluster.preflight.facts import Gpu, Node
from megatron_empg.cluster.preflight.judge import GIB, Check, Finding, Requirements, Status, part_of, unlike

Verdict = tuple[Status, str, str] | None
"""(status, detail, fix) of one GPU; None is fine."""

# NVIDIA's XID catalogue: raised by the program on the GPU rather than by hardware or driver.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 69})
# Memory, NVLink, bus and firmware: the GPU must be reset, the node drained.
FATAL_XIDS = frozenset({46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143})
_XID_HOURS = 24.0


def presence(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """As many GPUs of the same model everywhere."""
    described = {
        node.name: " + ".join(
            f"{n} x {name}" for name, n in sorted(Counter(g.name for g in node.gpus.gpus).items())
        )
        or "no GPU"
        for node in nodes
        if node.gpus
    }
    odd = unlike(described)
    here = any(node.gpus and (node.gpus.gpus or node.gpus.device_files) for node in nodes)
    expected = bool(wanted.use_gpus or wanted.gpus or here)
    fix = "nvidia-smi on that node: a GPU that fell off the bus needs a reset or a reboot; or change the node list"
    for node, facts, finding in part_of(nodes, "gpus", "GPUs"):
        if finding:
            yield finding
        elif not facts.gpus and not expected:
            yield Finding(node.name, "GPUs", "SKIP", facts.absent or "no GPU on any node")
        elif not facts.gpus:
            yield Finding(node.name, "GPUs", "FAIL", facts.absent or "no GPU", fix)
        elif wanted.gpus is not None and len(facts.gpus) != wanted.gpus:
            yield Finding(node.name, "GPUs", "FAIL", f"{described[node.name]}, {wanted.gpus} wanted", fix)
        elif node.name in odd:
            yield Finding(node.name, "GPUs", "FAIL", odd[node.name], fix)
        else:
            yield Finding(node.name, "GPUs", "PASS", described[node.name])


def by_gpu(check: str, verdict: Callable[[Gpu, Requirements], Verdict], fine: str) -> Check:
    """A check that looks at each GPU by itself."""

    def run(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
        for node, facts, finding in part_of(nodes, "gpus", check):
            if finding or not facts.gpus:
                yield finding or Finding(node.name, check, "SKIP", facts.absent or "no GPU")
                continue
            verdicts = [(gpu.index, found) for gpu in facts.gpus if (found := verdict(gpu, wanted))]
            if not verdicts:
                yield Finding(node.name, check, "PASS", fine)
                continue
            order: list[Status] = ["FAIL", "WARN", "SKIP", "PASS"]
            worst = min((found[0] for _, found in verdicts), key=order.index)
            text = "; ".join(f"GPU {index}: {found[1]}" for index, found in verdicts)
            fixes = dict.fromkeys(found[2] for _, found in verdicts if found[2])
            yield Finding(node.name, check, worst, text, "; ".join(fixes))

    return run


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


def nvlink(gpu: Gpu, wanted: Requirements) -> Verdict:
    if gpu.nvlinks_up is None:
        return "SKIP", "no NVLink", ""
    if not gpu.nvlinks_down:
        return None
    down = ", ".join(map(str, gpu.nvlinks_down))
    return "FAIL", f"NVLink {down} down", "nvidia-smi nvlink --status; restart the fabric manager, else drain"


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
    by_gpu("NVLink", nvlink, "all links up"),
    by_gpu("persistence", persistence, "on"),
    xids,
)
