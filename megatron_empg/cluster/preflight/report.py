"""Findings by node, as a table and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_empg.cluster.preflight.facts import NodeFacts
from megatron_empg.cluster.preflight.judge import CheckFinding
from megatron_empg.common.files import put_json

_STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}


def show(findings: Sequence[CheckFinding]) -> None:
    """A row for everything that is not PASS, and one row a node for what passed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("node", "", "check", "found", "fix", title="Preflight", title_justify="left")
    for node in dict.fromkeys(finding.node for finding in findings):
        own = [finding for finding in findings if finding.node == node]
        for status in ("FAIL", "WARN", "SKIP"):
            alike: dict[tuple[str, str], list[str]] = {}  # one missing driver skips many checks
            for finding in own:
                if finding.status == status:
                    alike.setdefault((finding.detail, finding.fix), []).append(finding.check)
            for (detail, fix), checks in alike.items():
                texts = (", ".join(checks), detail, fix)
                table.add_row(Text(node), Text(status, _STYLES[status]), *map(Text, texts))
        # The number of GPUs is shown, since nothing else says whether it is the one that was meant.
        passed = []
        for finding in own:
            if finding.status == "PASS":
                passed.append(f"GPUs: {finding.detail}" if finding.check == "GPUs" else finding.check)
        table.add_row(Text(node), Text("PASS", _STYLES["PASS"]), f"{len(passed)} checks", ", ".join(passed))
        table.add_section()
    Console(width=None if os.isatty(1) else 160).print(table)


def verdict(findings: Sequence[CheckFinding]) -> str:
    """FAIL, WARN or PASS over everything."""
    statuses = {finding.status for finding in findings}
    for status in ("FAIL", "WARN"):
        if status in statuses:
            return status
    return "PASS"


def write_json(path: Path, nodes: Sequence[NodeFacts], findings: Sequence[CheckFinding]) -> None:
    """Verdict, findings and the facts behind them."""
    content = {
        "verdict": verdict(findings),
        "findings": [asdict(finding) for finding in findings],
        "nodes": [node.model_dump() for node in nodes],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    put_json(path, content, indent=2)
