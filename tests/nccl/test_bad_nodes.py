"""Bad nodes that preflight must name: one that never answers, one whose disk is really too small."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.preflight_runs import finish, start_nodes

NAMES = [{"SLURMD_NODENAME": f"node{number}"} for number in range(3)]


def failures(report: Path) -> dict[tuple[str, str], str]:
    found = json.loads(report.read_text())["findings"]
    return {(f["node"], f["check"]): f["detail"] for f in found if f["status"] == "FAIL"}


def options(report: Path) -> list[str]:
    return ["--json", str(report), "--min-write-speed", "0", "--timeout", "20"]


def test_a_node_that_never_answers_is_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environments = [{**name, "SLURM_STEP_NUM_NODES": "3"} for name in NAMES[:2]]
    codes, printed = finish(start_nodes(environments, [tmp_path] * 2, *options(report), "--min-disk", "0.01"), 120)
    assert codes == [1, 1], printed
    assert failures(report) == {("node 2", "answer"): "no facts within 20 s"}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if os.geteuid():
        reason = "mounting a small file system needs root"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folders = [tmp_path / f"cwd{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    report = tmp_path / "report.json"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(folders[1])], check=True, timeout=20)
    try:
        codes, printed = finish(start_nodes(NAMES, folders, *options(report), "--min-disk", "0.05"), 120)
    finally:
        subprocess.run(["umount", str(folders[1])], check=True, timeout=20)
    assert codes == [1, 1, 1], printed
    assert failures(report) == {("node1", "disk"): "run: 0.01 GiB free, 0.05 wanted"}
