"""Preflight as a step over several nodes: processes of this machine with the environment srun gives."""

import json
from pathlib import Path

from tests.support.preflight_runs import finish, start_nodes


def test_bad_nodes_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / f"cwd{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "run").write_text("a file where the run folder should be")
    other = tmp_path / "packages" / "rich-1.2.3.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 1.2.3\n")
    pins = tmp_path / "requirements.txt"
    pins.write_text("rich==15.0.0\ntyper==0.29.2\n")
    environments = [
        {"SLURMD_NODENAME": "full"},
        {"SLURMD_NODENAME": "skewed", "EMPG_PREFLIGHT_CLOCK_OFFSET": "-45"},
        {"SLURMD_NODENAME": "outdated", "PYTHONPATH": str(other.parent)},
    ]
    report = tmp_path / "report.json"
    options = ["--requirements", str(pins), "--json", str(report), "--min-disk", "0.01", "--min-write-speed", "0"]
    codes, printed = finish(start_nodes(environments, folders, *options), 120)
    assert codes == [1, 1, 1], printed
    found = json.loads(report.read_text())
    assert found["verdict"] == "FAIL"
    failed = {(f["node"], f["check"]): f["detail"] for f in found["findings"] if f["status"] == "FAIL"}
    assert set(failed) == {("skewed", "clock"), ("outdated", "packages"), ("full", "disk")}, failed
    assert failed["skewed", "clock"].startswith("-4")
    assert "rich 1.2.3, pinned to 15.0.0" in failed["outdated", "packages"]
    assert {f["status"] for f in found["findings"] if f["check"].startswith("GPU")} == {"SKIP"}
    assert "preflight: FAIL on full, outdated, skewed" in printed
