"""What a run with a lag consumed is written down, used again, and kept as long as a run could go on from it."""

import errno
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.run.folder import RunFolder
from megatron_empg.trainer import recorded_batches
from megatron_empg.trainer.errors import TrainingError
from megatron_empg.trainer.recorded_batches import RecordedBatches, ReplayedBatches, ToldPublisher
from tests.support.batches import empty_batch


def batch(step: int, **metrics: float) -> bytes:
    """That of a stream's step, counted from 0."""
    account = StreamAccount(batches=step + 1, started=step + 1, trained=step + 1, numbers=[step])
    return empty_batch(metrics=metrics, account=account).to_bytes()


class Service:
    """Hands over batches of one group, and notes what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[tuple[int, int | None]] = []

    def rollout(self, step: int) -> bytes:
        self.asked.append(step)
        return batch(step, asked=len(self.asked))

    def published(self, version: int, account: StreamAccount | None) -> None:
        self.told.append((version, None if account is None else account.batches))


class Sender:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def publish(self, source: Any, version: int) -> None:
        if self.fails:
            raise RuntimeError("an engine is gone")


def begun(path: Path, *, keep: int = 2, keep_all: bool = False) -> tuple[Service, RecordedBatches]:
    service = Service()
    return service, RecordedBatches(service, RunFolder(path), keep=keep, keep_all=keep_all)  # type: ignore[arg-type]


def train(batches: RecordedBatches, first: int, last: int) -> list[bytes]:
    """Steps as the trainer takes them."""
    batches.published(first)
    consumed = []
    for step in range(first, last):
        consumed.append(batches.rollout(step))
        batches.published(step + 1)
    return consumed


def test_a_run_that_goes_on_uses_the_batches_that_are_there_and_asks_for_the_next(tmp_path: Path) -> None:
    _, batches = begun(tmp_path)
    consumed = train(batches, 0, 5)
    service, again = begun(tmp_path)
    assert train(again, 3, 7)[:2] == consumed[3:]
    assert service.asked == [5, 6]
    assert service.told[0] == (3, 5), "the stream goes on behind the last batch, whatever the checkpoint"
    assert service.told[1:] == [(4, 5), (5, 5), (6, 6), (7, 7)]


def test_the_first_start_begins_a_stream_of_its_own(tmp_path: Path) -> None:
    service, batches = begun(tmp_path)
    train(batches, 0, 1)
    assert service.told == [(0, None), (1, 1)]


def test_a_checkpoint_whose_batch_is_gone_cannot_be_gone_on_from(tmp_path: Path) -> None:
    _, batches = begun(tmp_path)
    train(batches, 0, 4)
    RunFolder(tmp_path).batch(4).unlink()
    with pytest.raises(TrainingError, match=r"step_000004 cannot be read .*go on from a checkpoint whose batch"):
        begun(tmp_path)[1].published(4)
    service, again = begun(tmp_path)
    again.published(3)
    assert service.told == [(3, 3)]


def test_a_batch_of_another_run_is_refused(tmp_path: Path) -> None:
    _, batches = begun(tmp_path)
    train(batches, 0, 2)
    for other in (batch(7), empty_batch().to_bytes()):
        RunFolder(tmp_path).batch(2).write_bytes(other)
        with pytest.raises(TrainingError, match="step_000002 is not the batch of step 2"):
            begun(tmp_path)[1].published(1)


def test_batches_are_kept_since_the_oldest_kept_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _, batches = begun(tmp_path)
    train(batches, 0, 6)
    assert folder.batch_steps() == [1, 2, 3, 4, 5, 6]
    (folder.checkpoints / "step_000003").mkdir(parents=True)
    batches.rollout(6)
    assert folder.batch_steps() == [1, 2, 3, 4, 5, 6, 7], "the beginning is a place to go on from, too"
    (folder.checkpoints / "step_000006").mkdir()
    batches.rollout(7)
    assert folder.batch_steps() == [3, 4, 5, 6, 7, 8], "that of step 3 says where the stream stood"


def test_all_batches_are_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _, batches = begun(tmp_path, keep=1, keep_all=True)
    (folder.checkpoints / "step_000003").mkdir(parents=True)
    train(batches, 0, 6)
    assert folder.batch_steps() == [1, 2, 3, 4, 5, 6]


def test_a_batch_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "batches").write_text("in the way")
    with pytest.raises(TrainingError, match=r"step 0: its batch could not be written .*Make room"):
        begun(tmp_path)[1].rollout(0)


@pytest.mark.parametrize(("failures", "room"), [(3, 60.0), (1, 0.0)])
def test_a_batch_waits_a_while_for_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, room: float
) -> None:
    tried: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        tried.append(path)
        if len(tried) <= failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(recorded_batches, "put_bytes", write)
    monkeypatch.setattr(recorded_batches, "PAUSE", 0.0)
    monkeypatch.setattr(recorded_batches, "ROOM_SECONDS", room)
    _, batches = begun(tmp_path)
    if room:
        batches.rollout(0)
        assert len(tried) == failures + 1
        assert RunFolder(tmp_path).batch_steps() == [1]
    else:
        with pytest.raises(TrainingError, match=r"No space left on device\. Make room"):
            batches.rollout(0)


def test_a_folder_with_a_batch_is_a_run_that_has_begun(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.begun()
    begun(tmp_path)[1].rollout(0)
    assert folder.begun()


def test_another_run_trains_on_the_same_batches(tmp_path: Path) -> None:
    consumed = train(begun(tmp_path)[1], 0, 3)
    service = Service()
    replayed = ReplayedBatches(service, RunFolder(tmp_path))  # type: ignore[arg-type]
    replayed.published(0)
    assert [replayed.rollout(step) for step in range(3)] == consumed
    assert (service.asked, service.told) == ([], [])
    with pytest.raises(
        TrainingError, match=r"no batch of step 4 .*it has those of steps 1 to 3.*keep_all_batches"
    ):
        replayed.rollout(3)
    with pytest.raises(TrainingError, match="it has none"):
        ReplayedBatches(service, RunFolder(tmp_path / "other")).rollout(0)  # type: ignore[arg-type]


def test_weights_are_told_of_once_the_engines_hold_them(tmp_path: Path) -> None:
    service, batches = begun(tmp_path)
    source: Any = None
    ToldPublisher(Sender(), batches).publish(source, 0)
    with pytest.raises(RuntimeError, match="an engine is gone"):
        ToldPublisher(Sender(fails=True), batches).publish(source, 1)
    assert service.told == [(0, None)]


def test_a_batch_behind_a_gap_is_refused(tmp_path: Path) -> None:
    _, batches = begun(tmp_path)
    train(batches, 0, 5)
    RunFolder(tmp_path).batch(4).unlink()
    with pytest.raises(TrainingError, match=r"step_000004 is missing and .*step_000005 is there.*put the first"):
        begun(tmp_path)[1].published(2)


def test_a_found_batch_that_is_of_another_step_is_refused_when_it_is_trained_on(tmp_path: Path) -> None:
    _, batches = begun(tmp_path)
    train(batches, 0, 3)
    again = begun(tmp_path)[1]
    again.published(1)
    RunFolder(tmp_path).batch(2).write_bytes(batch(2))
    with pytest.raises(TrainingError, match="step_000002 is not the batch of step 2"):
        again.rollout(1)
    with pytest.raises(TrainingError, match="step_000002 is not the batch of step 2"):
        ReplayedBatches(Service(), RunFolder(tmp_path)).rollout(1)  # type: ignore[arg-type]


def test_batches_that_cannot_be_removed_are_told_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    _, batches = begun(tmp_path, keep=1)
    train(batches, 0, 2)
    (folder.checkpoints / "step_000002").mkdir(parents=True)
    folder.batch(1).unlink()
    folder.batch(1).mkdir()
    batches.rollout(2)
    assert folder.batch_steps()[-1] == 3
    assert "step 2: batches that no checkpoint needs could not be removed" in caplog.text
