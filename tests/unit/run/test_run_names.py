"""The names of a run folder's parts, which the launcher reads with the standard library alone."""

import ast
import subprocess
import sys
from pathlib import Path

from megatron_empg.run import names
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.names import RunPaths


def test_heartbeats_and_events_are_found_under_the_names_they_are_written_under(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert (paths.all_heartbeats(), paths.all_gpu_events()) == ([], [])
    paths.heartbeats.mkdir()
    for path in (paths.heartbeat(10), paths.heartbeat(2), paths.gpu_events("node1"), paths.dump_request):
        path.touch()
    (paths.heartbeats / "rank_3.writing").touch()
    assert paths.all_heartbeats() == [paths.heartbeat(10), paths.heartbeat(2)]
    assert paths.all_gpu_events() == [paths.gpu_events("node1")]


def test_a_run_folder_has_every_name(tmp_path: Path) -> None:
    assert vars(RunPaths(tmp_path)).items() <= vars(RunFolder(tmp_path)).items()
    parts = [path for name, path in vars(RunPaths(tmp_path)).items() if name != "root"]
    assert len(set(parts)) == len(parts) > 15
    assert list(tmp_path.iterdir()) == []


def test_python_3_9_reads_them_without_any_package() -> None:
    text = Path(names.__file__).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 9))
    code = f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); import megatron_empg.run.names"
    subprocess.run([sys.executable, "-S", "-I", "-c", code], check=True, timeout=60)
