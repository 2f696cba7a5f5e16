"""The suite's findings as a table, as JSON and as a heat map of the bandwidth between pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.common.files import put_json, written_aside

if TYPE_CHECKING:
    from megatron_empg.cluster.nccl_suite.suite import SuiteFindings

_SLOWEST = 12


def publish(findings: SuiteFindings, json_path: Path | None, heat_map: Path | None) -> None:
    """Print the tables; write the files asked for."""
    show(findings)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        put_json(json_path, findings.as_json(), indent=2)
        print(f"written: {json_path}")
    if heat_map and findings.pairs:
        draw_pairs(findings, heat_map)
        print(f"written: {heat_map}")


def show(findings: SuiteFindings) -> None:
    """Print to the terminal."""
    from rich.console import Console

    console = Console(width=None if os.isatty(1) else 140, soft_wrap=True)
    for table in _tables(findings):
        console.print(table)
    for fault in findings.faults:
        console.print(f"[bold red]{fault.kind.upper()}[/] ", end="")
        console.print(fault.what, markup=False, highlight=False)
    verdict = f"{findings.verdict}: {findings.world_size} ranks over {findings.backend}"
    if findings.note:
        verdict += f"; {findings.note}"
    console.print(verdict, markup=False, highlight=False)


def _tables(findings: SuiteFindings) -> Iterator[Any]:
    if findings.correctness:
        cases = findings.correctness["cases"].items()
        rows = [[kind, findings.groups[kind], count] for kind, count in cases]
        yield _table("Correctness, byte for byte", ["group", "ranks", "cases"], rows)
    if findings.latency:
        values = [[f"{findings.latency['median_us']:.0f}", f"{findings.latency['p99_us']:.0f}"]]
        yield _table("Latency, all_reduce of 8 bytes", ["median us", "p99 us"], values)
    if findings.bandwidth:
        head = ["group", "ranks", "collective", "bytes", "us", "algorithm GB/s", "bus GB/s"]
        yield _table("Bandwidth, as nccl-tests defines it", head, [_bandwidth_row(r) for r in findings.bandwidth])
    if findings.gpus:
        rows = [
            [r["rank"], findings.nodes[int(r["rank"])], f"{r['sends']:.3f}", f"{r['receives']:.3f}"]
            for r in findings.gpus
        ]
        yield _table("Pairs, median by GPU", ["rank", "node", "sends GB/s", "receives GB/s"], rows)
    if findings.node_pairs:
        shown = findings.node_pairs[:_SLOWEST]
        rows = [[r["sender"], r["receiver"], f"{r['GB_per_s']:.3f}"] for r in shown]
        title = f"From node to node, the slowest {len(shown)} of {len(findings.node_pairs)}"
        yield _table(title, ["sender", "receiver", "GB/s"], rows)
    if findings.transfer:
        rows = [
            [r["trainers"], r["engines"], r["transfer"], r["size"], f"{r['seconds']:.3f}"]
            for r in findings.transfer
        ]
        yield _table("Weight transfer", ["trainers", "engines", "by", "bytes", "seconds"], rows)
    if findings.stress:
        times = findings.stress["all_reduce_seconds"]
        rows = [[findings.stress["rounds"], f"{min(times):.4f}", f"{max(times):.4f}"]]
        yield _table("Stress", ["rounds", "fastest all_reduce, s", "slowest"], rows)


def _bandwidth_row(row: dict[str, Any]) -> list[Any]:
    return [
        row["group"],
        row["ranks"],
        row["collective"],
        row["size"],
        f"{row['seconds'] * 1e6:.0f}",
        f"{row['algorithm_GB_per_s']:.3f}",
        f"{row['bus_GB_per_s']:.3f}",
    ]


def _table(title: str, head: list[str], rows: list[list[Any]]) -> Any:
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def draw_pairs(findings: SuiteFindings, path: Path) -> None:
    """Sender by row, receiver by column; grey was not measured. PNG or SVG by the file's name."""
    import numpy as np
    from matplotlib.figure import Figure

    size = findings.world_size
    matrix = np.full((size, size), np.nan)
    for sender, receiver, value in findings.pairs or []:
        matrix[sender, receiver] = value
    side = min(24.0, 3.0 + 0.35 * size)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("lightgrey")
    image = axes.imshow(matrix, cmap="viridis", vmin=0)
    ticks = range(0, size, -(-size // 32))
    labels = [f"{rank}: {findings.nodes[rank].split(',')[0]}" for rank in ticks]
    axes.set_xticks(list(ticks), labels, rotation=90)
    axes.set_yticks(list(ticks), labels)
    axes.set(xlabel="receiver", ylabel="sender", title=f"GB/s between pairs ({findings.backend})")
    figure.colorbar(image, ax=axes, label="GB/s")
    if size <= 16:
        for sender, receiver, value in findings.pairs or []:
            ink = "white"
            if value > 0.6 * np.nanmax(matrix):
                ink = "black"
            axes.text(receiver, sender, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        figure.savefig(aside, format=path.suffix.lstrip(".") or "png", dpi=120)
