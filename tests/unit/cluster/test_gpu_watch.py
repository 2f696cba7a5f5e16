"""GPU events from NVML (a stand-in: there is no driver here) through the run folder to the verdict."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_empg.cluster import gpu_watch
from megatron_empg.cluster.gpu_watch import EventLog, NodeEvent, watch_node
from megatron_empg.cluster.preflight.gpu import GpuEvent, NoNvml
from megatron_empg.common.errors import HUNG


def events_of(monkeypatch, *found):
    """GpuEvents that tells these and then has no more to say."""
    left = list(found)

    def wait(_):
        if not left:
            raise NoNvml("no more")
        return left.pop(0)

    class Told:
        def __enter__(self):
            return SimpleNamespace(wait=wait)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(gpu_watch, "GpuEvents", Told)
    return left


def test_events_reach_the_reader_once_each(tmp_path, monkeypatch, capsys):
    log = EventLog(tmp_path)
    assert list(log.new()) == []
    events_of(monkeypatch, GpuEvent(3, 31), None, GpuEvent(1, None))
    watch_node(tmp_path, "node2")
    assert list(log.new()) == [NodeEvent("node2", 3, 31), NodeEvent("node2", 1, None)]
    assert list(log.new()) == []
    events_of(monkeypatch, GpuEvent(0, 94))
    watch_node(tmp_path, "node1")
    assert list(log.new()) == [NodeEvent("node1", 0, 94)]
    assert "NVML's events of node1 are not watched: no more" in capsys.readouterr().out


def test_a_gpu_off_the_bus_is_told_once(tmp_path, monkeypatch):
    left = events_of(monkeypatch, GpuEvent(None, 79), GpuEvent(None, 79))
    watch_node(tmp_path, "node2")
    assert [str(event) for event in EventLog(tmp_path).new()] == ["a GPU of node2: Xid 79"]
    assert len(left) == 1


def test_a_line_being_written_is_left_for_later(tmp_path):
    log, path = EventLog(tmp_path), tmp_path / "heartbeats/gpu_node1.jsonl"
    path.parent.mkdir()
    path.write_text('{"node": "node1", "gpu": 0')
    assert list(log.new()) == []
    path.write_text('{"node": "node1", "gpu": 0, "xid": 48}\n')
    assert [event.xid for event in log.new()] == [48]


@pytest.mark.parametrize("torn", ['{"node": "node1", "gp', "[]", '{"of": "another version"}', "[" * 100_000])
def test_a_torn_line_does_not_end_the_watchdog(tmp_path, torn):
    log, path = EventLog(tmp_path), tmp_path / "heartbeats/gpu_node1.jsonl"
    path.parent.mkdir()
    path.write_text(torn + '\n{"node": "node1", "gpu": 0, "xid": 48}\n')
    assert [event.xid for event in log.new()] == [48]


@pytest.mark.parametrize(
    ("xid", "fatal"), [(31, False), (43, False), (94, False), (48, True), (79, True), (None, True)]
)
def test_the_programs_own_errors_leave_the_node_in(xid, fatal):
    assert NodeEvent("node1", 0, xid).fatal is fatal


def test_the_command_ends_naming_the_gpu_and_notes_the_node(tmp_path):
    """A warning is printed and watched on; the fatal one ends it with the exit code of a hang."""
    path = tmp_path / "heartbeats/gpu_node2.jsonl"
    path.parent.mkdir()
    path.write_text('{"node": "node2", "gpu": 5, "xid": 31}\n')

    def fail_later():
        time.sleep(3)
        with path.open("a") as file:
            file.write('{"node": "node2", "gpu": 5, "xid": 79}\n')

    threading.Thread(target=fail_later).start()
    done = subprocess.run(
        [sys.executable, "-m", "megatron_empg.cluster.watchdog", str(tmp_path)], text=True, timeout=60,
        env={**os.environ, "SLURM_JOB_ID": "12", "SLURM_PROCID": "0"}, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.returncode == HUNG
    said = done.stdout.splitlines()
    assert said.index("watchdog: GPU 5 of node2: Xid 31") < said.index("watchdog: unfit: GPU 5 of node2: Xid 79")
    assert Path(tmp_path, "bad_nodes").read_text() == "12 node2 GPU 5 of node2: Xid 79\n"


def test_the_other_nodes_tasks_watch_their_own_gpus_until_the_step_ends(tmp_path):
    task = subprocess.Popen(
        [sys.executable, "-m", "megatron_empg.cluster.watchdog", str(tmp_path)], text=True,
        env={**os.environ, "SLURM_PROCID": "1", "SLURMD_NODENAME": "node2"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert task.stdout.readline().startswith("watchdog: NVML's events of node2 are")
        time.sleep(1)
        assert task.poll() is None
    finally:
        task.kill()
        task.communicate()
