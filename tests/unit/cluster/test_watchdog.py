"""The watchdog's verdict: silence, standstill, and who is named; a heartbeat as a real process writes it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_empg.cluster.watchdog import Watchdog, WatchdogArguments
from megatron_empg.common.errors import HUNG
from megatron_empg.common.options import parse_command_line
from megatron_empg.run.checkpoint_folders import SLOWEST_READ, reading_seconds, step_folder
from megatron_empg.run.heartbeat import Beat, Heartbeat, read_beats
from tests.support.serving import wait_for


def beat(rank, number, collectives, *, step=3, phase="update", where="loop.py:9 x", limit=100.0):
    return Beat(rank, f"node{rank}", 40 + rank, number, step, phase, collectives, where, limit)


def read(watchdog, *rounds):
    """(time, beats) one after the other; the verdict at the last."""
    for now, beats in rounds:
        watchdog.read(beats, now)
    return watchdog.verdict(rounds[-1][0])


def test_nobody_is_named_while_ranks_get_on_or_wait_within_limits():
    watchdog = Watchdog(silence=30)
    assert read(watchdog, (0, [])) == []
    assert read(watchdog, (0, [beat(0, 1, 5), beat(1, 1, 5)]), (99, [beat(0, 60, 5), beat(1, 60, 5)])) == []
    assert read(watchdog, (200, [beat(0, 99, 5), beat(1, 99, 6)])) == []  # one rank has moved


def test_a_silent_rank_is_named_and_those_that_wait_for_it_are_not():
    found = read(Watchdog(silence=30), (0, [beat(0, 1, 7), beat(1, 1, 6)]), (40, [beat(0, 20, 7), beat(1, 1, 6)]))
    assert found == [
        "rank 1 on node1 (pid 41): step 3, update, collective 6, in loop.py:9 x; silent for 40 s"
    ]  # fmt: skip


def test_when_all_stand_still_the_rank_behind_is_named():
    rounds = [(now, [beat(0, now, 9), beat(1, now, 8), beat(2, now, 9)]) for now in range(0, 121, 10)]
    (found,) = read(Watchdog(silence=30), *rounds)
    assert found.startswith("rank 1 on node1")
    assert "there for 120 s" in found


def test_of_ranks_in_one_place_the_one_outside_a_collective_is_named():
    waiting = "distributed_c10d.py:3 all_reduce"
    rounds = [(now, [beat(0, now, 9, where=waiting), beat(1, now, 9)]) for now in range(0, 121, 10)]
    (found,) = read(Watchdog(silence=30), *rounds)
    assert found.startswith("rank 1 on node1")


def test_a_rank_that_has_ended_is_forgotten_and_stall_shortens_limits():
    watchdog = Watchdog(silence=30, stall=10)
    assert read(watchdog, (0, [beat(0, 1, 1), beat(1, 1, 1)]), (60, [beat(0, 2, 2)])) == []
    assert len(read(watchdog, (71, [beat(0, 3, 2)]))) == 1


def test_a_heartbeat_tells_where_the_rank_is_and_leaves_with_it(tmp_path):
    with Heartbeat(tmp_path, 3, {"rollout": 7.0}) as heartbeat:
        heartbeat.step = 5
        heartbeat.enter("rollout")
        while not (found := read_beats(tmp_path)) or found[0].phase != "rollout":
            time.sleep(1.0)  # here the rank is as the heartbeat is written, and not in what reads it
        assert found[0].step == 5
        assert (found[0].rank, found[0].phase, found[0].limit, found[0].pid) == (3, "rollout", 7.0, os.getpid())
        assert "test_watchdog.py" in found[0].where
    assert read_beats(tmp_path) == []


def test_a_phase_that_a_rank_enters_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_empg.run.heartbeat.INTERVAL", 3600.0)
    with Heartbeat(tmp_path, 0) as heartbeat:
        for phase in ("rollout", "score", "update"):
            heartbeat.enter(phase)
            wait_for(lambda phase=phase: [one.phase for one in read_beats(tmp_path)] == [phase])


RANK = """
import sys, time
from pathlib import Path
from megatron_empg.run.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), int(sys.argv[2])):
    time.sleep(600)
"""


def test_the_limit_of_a_start_grows_with_the_newest_checkpoint(tmp_path):
    assert reading_seconds(tmp_path) == 0
    for step, size in ((9, 3_000_000), (12, 1_000_000)):
        shards = step_folder(tmp_path / "checkpoints", step) / "shards"
        shards.mkdir(parents=True)
        (shards / "0.distcp").write_bytes(b"0" * size)
    assert 1_000_000 / SLOWEST_READ <= reading_seconds(tmp_path) < 1_100_000 / SLOWEST_READ


def test_a_stopped_process_is_named_by_the_command_and_the_other_tells_its_stacks(tmp_path):
    """A real SIGSTOP."""
    # Sessions of their own: the kernel wakes a stopped process when its group loses the shell it came from.
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)], start_new_session=True)
        for rank in (0, 1)
    ]
    try:
        while len(read_beats(tmp_path)) < 2:
            time.sleep(0.1)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        done = subprocess.run(
            [sys.executable, "-m", "megatron_empg.cluster.watchdog", str(tmp_path), "--silence", "8"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == HUNG
        assert f"(pid {ranks[1].pid})" in done.stdout
        assert f"(pid {ranks[0].pid})" not in done.stdout
        assert "<string>" in (tmp_path / "flight_recorder/stacks_rank_0.txt").read_text()
        assert isinstance(json.loads(Path(tmp_path, "heartbeats/rank_1.json").read_text())["beat"], int)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "it is empty; name a file or folder"),
        ("absent", "'absent' does not exist"),
        ("file", "is a file"),
    ],
)
def test_what_is_no_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as ended:
        parse_command_line(WatchdogArguments, [word])
    said = capsys.readouterr().err
    assert (ended.value.code, says in said) == (2, True), said
