"""What the rollout service says while it plays, on its way through the run folder."""

import time
from pathlib import Path

from megatron_empg.run import playing as module
from megatron_empg.run.names import RunPaths
from megatron_empg.run.playing import Playing, evaluation_pass, read_playing, told_while_playing


def wait_for(folder: Path, done: int) -> Playing:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        told = read_playing(folder)
        if told is not None and told.done >= done:
            return told
        time.sleep(0.01)
    raise AssertionError(f"{done} episodes were never told: {read_playing(folder)}")


def test_the_count_of_episodes_is_there_while_they_are_played_and_gone_after(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    RunPaths(tmp_path).heartbeats.mkdir()
    assert read_playing(tmp_path) is None
    with told_while_playing(tmp_path, evaluation_pass("test_id", greedy=False), 3) as playing:
        assert wait_for(tmp_path, 0) == Playing("test_id, sampled", 3, 0)
        playing.one_more("an episode")
        playing.one_more("another one")
        assert wait_for(tmp_path, 2) == Playing("test_id, sampled", 3, 2)
    assert not RunPaths(tmp_path).playing.exists()


def test_where_there_is_no_run_nothing_is_written(tmp_path) -> None:
    with told_while_playing(tmp_path, "first questions", 8):
        time.sleep(0.05)
        assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_version_or_half_written_says_nothing(tmp_path) -> None:
    RunPaths(tmp_path).heartbeats.mkdir()
    for text in ('{"what": "x"', '{"something": 1}', "[]", "[" * 100_000):
        RunPaths(tmp_path).playing.write_text(text, encoding="utf-8")
        assert read_playing(tmp_path) is None
