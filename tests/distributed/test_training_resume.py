"""The training loop over recorded batches: an interrupted run ends where an uninterrupted one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.actor_cases import (
    answer,
    assert_same,
    fresh_actor,
    optimizer_tensors,
    run_cases,
    weights_of,
)
from tests.distributed.ranks import run_ranks
from tests.distributed.recorded_batches import recorded_batch
from tests.support.models import save_random_model

STEPS = 5
LAYOUT = {"tensor": 2}


class RecordingPublisher:
    """Takes the weights as an engine would: every tensor, and then the version."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def publish(self, source: Any, version: int) -> None:
        tensors = dict(source)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        self.versions.append(version)


class ReplayingDriver:
    """Recorded batches, said to be sampled with the policy that was published last."""

    def __init__(self, folder: Any, publisher: RecordingPublisher, stop_in: int | None) -> None:
        self.folder, self.publisher, self.stop_in = folder, publisher, stop_in
        self.asked: list[int] = []

    def rollout(self, step: int) -> bytes:
        self.asked.append(step)
        if step == self.stop_in:
            self.folder.stop.touch()
        return recorded_batch(step, self.publisher.versions[-1]).to_bytes()

    def probe(self) -> int:
        return 0

    def evaluate(self, split: str, greedy: bool) -> Any:
        from megatron_empg.rollout.service.evaluation import Evaluation

        success = self.publisher.versions[-1] / 10
        return Evaluation(split, greedy, success, questions=4, errors=0, seconds=0.0)


def recipe(folder: Path, **algorithm: Any) -> Any:
    from megatron_empg.recipe import parse_recipe

    return parse_recipe({
        "run": {"folder": str(folder / "run"), "steps": STEPS, "seed": 3, "checkpoint_every": 2},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "environment": {"name": "deep_search", "settings": {"prompt": "none"}},
        "rollout": {"groups": 4, "group_size": 2, "max_turn_tokens": 30, "max_episode_tokens": 64},
        "actor": {"tensor_parallel": 2, "max_tokens_per_microbatch": 128},
        "algorithm": {"updates_per_batch": 2, "kl_to_initial_every": 2, **algorithm},
        "evaluation": {"questions": 4, "every": 2},
        "limits": {"logprob_gap": 100.0},
        "logging": {"tensorboard": False, "episodes_per_step": 1},
    })  # fmt: skip


class Killed(Exception):
    """Stands for a kill on all ranks at once: nothing after it runs."""


def train(settings: Any, root: Path, *, kill_in: int | None = None, stop_in: int | None = None) -> dict[str, Any]:
    """Start a run, or go on with the one in ``root``; everything the run leaves behind (its files on rank 0)."""
    from megatron_empg.recipe import dump_recipe
    from megatron_empg.run.folder import RunFolder
    from megatron_empg.trainer.loop import Training

    class MortalTraining(Training):
        def _step(self, step: int) -> dict[str, float]:
            if step == kill_in:
                self.checkpoints.wait()  # a kill while one is written leaves the one before: another test's
                raise Killed
            return super()._step(step)

    rank0 = dist.get_rank() == 0
    actor = fresh_actor(root.parent, LAYOUT, schedule="cosine", warmup_steps=2, total_steps=2 * STEPS)
    folder, publisher = RunFolder(root), RecordingPublisher()
    if rank0:
        folder.open(dump_recipe(settings))
        folder.stop.unlink(missing_ok=True)
    dist.barrier()
    driver = ReplayingDriver(folder, publisher, stop_in) if rank0 else None
    try:
        MortalTraining(settings, actor, folder, driver=driver, publisher=publisher).run()
    except Killed:
        pass
    finally:
        folder.close()
    dist.barrier()
    return {
        "weights": weights_of(actor), "optimizer": optimizer_tensors(actor), "random": torch.rand(3),
        "asked": driver.asked if driver else [], "published": publisher.versions,
        "log": log_of(folder) if rank0 else {"checkpoints": []},
    }  # fmt: skip


def log_of(folder: Any) -> dict[str, Any]:
    """What the run logged, without what a clock says."""
    from megatron_empg.run.metric_names import by_clock

    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return {
        "metrics": [{k: v for k, v in line.items() if not by_clock(k)} for line in lines],
        "steps": folder.steps.read_text(),
        "episodes": {path.name: path.read_text() for path in sorted(folder.episodes.iterdir())},
        "checkpoints": sorted(path.name for path in folder.checkpoints.iterdir()),
    }


def assert_same_run(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert_same(actual["weights"], expected["weights"])
    assert_same(actual["optimizer"], expected["optimizer"])
    assert torch.equal(actual["random"], expected["random"])
    assert actual["log"] == expected["log"]


def resumed(folder: Path) -> dict[str, Any]:
    """One run in one go, one ended by a STOP file in its third step, one killed in its fourth.

    Every turn's entropy is outside EPO's band, which is its history: a run that lost it would train otherwise.
    """
    settings = recipe(folder, regularizer={"name": "epo", "band_low": 1.0, "band_high": 1.0})
    whole = train(settings, folder / "whole")
    halted = train(settings, folder / "stopped", stop_in=2)
    stopped = train(settings, folder / "stopped")
    dying = train(settings, folder / "killed", kill_in=3)
    if dist.get_rank() == 0:
        with (folder / "killed/metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "policy/lo')  # torn by the kill
        (folder / "killed/checkpoints/step_000003.writing").mkdir()
    dist.barrier()
    killed = train(settings, folder / "killed")
    assert_same_run(killed, whole)
    stopped["log"]["checkpoints"] = whole["log"]["checkpoints"]  # it has one of step 3 as well
    assert_same_run(stopped, whole)
    parts = {"whole": whole, "halted": halted, "stopped": stopped, "dying": dying, "killed": killed}
    return {name: {key: part[key] for key in ("asked", "published", "log")} for name, part in parts.items()}


def probed(folder: Path) -> list[dict[str, Any]]:
    """Gold turns are scored by the policy of the step, and all turns by the initial one, across a restart too."""
    settings = recipe(folder, name="igpo", modulation="none", kl={"coefficient": 0.5}, kl_to_initial_every=0)
    whole = train(settings, folder / "probed")
    train(settings, folder / "probed_killed", kill_in=2)
    assert_same_run(train(settings, folder / "probed_killed"), whole)
    free = train(recipe(folder, name="igpo", modulation="none"), folder / "free")
    metrics: list[dict[str, Any]] = whole["log"].get("metrics", [])
    if metrics:
        last = "policy/kl_to_initial"
        assert metrics[-1][last] < free["log"]["metrics"][-1][last], "the term holds the policy back"
    return metrics


def measured(folder: Path) -> list[dict[str, Any]]:
    """Measuring what the papers look at changes nothing of the run."""
    plain = train(recipe(folder), folder / "unmeasured")
    settings = recipe(folder)
    logging = settings.logging.model_copy(update={"diagnostics_every": 2, "diagnostics_turns": 3})
    watched = train(settings.model_copy(update={"logging": logging}), folder / "measured")
    metrics: list[dict[str, Any]] = watched["log"].get("metrics", [])
    watched["log"]["metrics"] = [without_measurements(line) for line in metrics]
    plain["log"]["metrics"] = plain["log"].get("metrics", [])
    assert_same_run(watched, plain)
    return metrics


def without_measurements(line: dict[str, Any]) -> dict[str, Any]:
    wanted = ("diagnostics/entropy_change", "diagnostics/gradient_norm")
    return {name: value for name, value in line.items() if not name.startswith(wanted)}


def stale_weights(folder: Path) -> str:
    from megatron_empg.trainer.errors import TrainingError

    class Lagging(RecordingPublisher):
        """Says nothing of having missed version 2."""

        def publish(self, source: Any, version: int) -> None:
            super().publish(source, min(version, 1))

    return message_of(TrainingError, recipe(folder), folder / "stale", Lagging())


def wide_gap(folder: Path) -> str:
    from megatron_empg.trainer.errors import TrainingError

    settings = recipe(folder)
    settings.limits.logprob_gap = None
    return message_of(TrainingError, settings, folder / "gap", RecordingPublisher())


def message_of(kind: type[Exception], settings: Any, root: Path, publisher: RecordingPublisher) -> str:
    from megatron_empg.recipe import dump_recipe
    from megatron_empg.run.folder import RunFolder
    from megatron_empg.trainer.loop import Training

    actor, folder, rank0 = fresh_actor(root.parent, LAYOUT), RunFolder(root), dist.get_rank() == 0
    if rank0:
        folder.open(dump_recipe(settings))
    dist.barrier()
    driver = ReplayingDriver(folder, publisher, None) if rank0 else None
    try:
        Training(settings, actor, folder, driver=driver, publisher=publisher).run()
    except kind as error:
        return str(error)
    finally:
        folder.close()
    return ""


def modulation_switched_off(folder: Path) -> None:
    off = {"name": "empg", "k": 0.0, "zeta": 0.0, "center": False}
    plain = train(recipe(folder, modulation="none"), folder / "plain")
    switched_off = train(recipe(folder, modulation=off), folder / "off")
    switched_on = train(recipe(folder, modulation="empg"), folder / "on")
    assert_same(switched_off["weights"], plain["weights"])
    assert_same(switched_off["optimizer"], plain["optimizer"])
    name = next(iter(plain["weights"]))
    assert not torch.equal(switched_on["weights"][name], plain["weights"][name])


def fetched(folder: Path) -> dict[str, Any]:
    """A batch on this rank, sent in chunks of a hundred bytes."""
    from megatron_empg.common import ranks
    from megatron_empg.trainer import loop

    usual, ranks.CHUNK_BYTES = ranks.CHUNK_BYTES, 100
    publisher = RecordingPublisher()
    publisher.versions = [0]
    training: Any = object.__new__(loop.Training)
    training.driver = ReplayingDriver(None, publisher, None) if dist.get_rank() == 0 else None
    batch = training._fetch(0)
    ranks.CHUNK_BYTES = usual
    return {"tokens": [s.tokens for s in batch.experience.samples], "texts": batch.texts, "metrics": batch.metrics}


def ended_idle(folder: Path) -> str:
    """The episodes of the step that ends a run since there was nothing to learn from."""
    from megatron_empg.trainer.errors import TrainingError

    settings = recipe(folder)
    settings.limits.max_idle_steps = 0
    message_of(TrainingError, settings, folder / "idle", RecordingPublisher())
    dist.barrier()
    return (folder / "idle/episodes/step_000004.jsonl").read_text(encoding="utf-8")


CASES = [fetched, resumed, probed, measured, stale_weights, wide_gap, modulation_switched_off, ended_idle]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    save_random_model(folder / "model", "qwen2")
    return run_ranks(run_cases, 2, CASES, str(folder))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(results: list[dict[str, Any]]) -> None:
    runs = answer(results, resumed)
    steps = [line["step"] for line in runs["whole"]["log"]["metrics"]]
    assert steps == list(range(STEPS + 1))
    for name in ("stopped", "killed"):
        assert [line["step"] for line in runs[name]["log"]["metrics"]] == steps


def test_a_stop_ends_after_the_step_with_a_checkpoint(results: list[dict[str, Any]]) -> None:
    runs = answer(results, resumed)
    assert runs["halted"]["asked"] == [0, 1, 2]
    assert "step_000003" in runs["halted"]["log"]["checkpoints"]
    assert runs["stopped"]["asked"] == [3, 4]


def test_a_killed_run_goes_on_from_its_last_checkpoint(results: list[dict[str, Any]]) -> None:
    runs = answer(results, resumed)
    assert runs["dying"]["asked"] == [0, 1, 2]
    assert [line["step"] for line in runs["dying"]["log"]["metrics"]] == [0, 1, 2, 3]
    assert runs["killed"]["asked"] == [2, 3, 4]


def test_every_rank_gets_the_numbers_and_the_first_alone_the_texts(results: list[dict[str, Any]]) -> None:
    sent = recorded_batch(0, 0)
    first, second = (answer(results, fetched, rank) for rank in (0, 1))
    for got in (first, second):
        assert all(torch.equal(a, b.tokens) for a, b in zip(got["tokens"], sent.experience.samples, strict=True))
        assert got["metrics"] == sent.metrics
    assert (first["texts"], second["texts"]) == (sent.texts, [])


def test_every_version_is_published_before_it_samples(results: list[dict[str, Any]]) -> None:
    runs = answer(results, resumed)
    assert runs["whole"]["published"] == list(range(STEPS + 1))
    assert runs["stopped"]["published"] == [3, 4, 5]
    assert [line["policy_version"] for line in runs["whole"]["log"]["metrics"][1:]] == list(range(STEPS))


def test_a_step_with_nothing_to_learn_moves_the_schedule_on(results: list[dict[str, Any]]) -> None:
    lines = answer(results, resumed)["whole"]["log"]["metrics"]
    assert [line["train/idle"] for line in lines[1:]] == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert lines[-1]["policy/lr"] == pytest.approx(3e-5), "a cosine ends at a tenth in the run's last update"


def test_what_was_played_in_a_step_with_nothing_to_learn_can_be_read_also_when_it_ends_the_run(
    results: list[dict[str, Any]],
) -> None:
    episodes = answer(results, resumed)["whole"]["log"]["episodes"]
    for written in (episodes["step_000004.jsonl"], answer(results, ended_idle)):
        (episode,) = [json.loads(line) for line in written.splitlines()]
        assert (episode["task_id"], episode["step"]) == ("dropped", 4)
        assert "advantage" not in episode


def test_probes_are_scored_by_the_policy_they_name(results: list[dict[str, Any]]) -> None:
    trained = [line for line in answer(results, probed)[1:] if not line["train/idle"]]
    distances = [line["policy/kl_to_initial"] for line in trained]
    assert distances[0] == 0.0
    assert all(distance > 0 for distance in distances[1:]), "measured in every step, and the policy has moved"
    assert all("policy/kl_to_reference" in line for line in trained)


def test_gradients_of_turns_and_changes_of_entropy_are_measured_beside_training(
    results: list[dict[str, Any]],
) -> None:
    for line in answer(results, measured)[1:]:
        due = (line["step"] - 1) % 2 == 0 and not line["train/idle"]
        assert ("diagnostics/entropy_change" in line) == due
        assert ("diagnostics/gradient_norm" in line) == due
        if due:
            assert line["diagnostics/gradient_norm"] > 0
            assert line["diagnostics/entropy_change"] != 0


def test_stale_weights_stop_the_run(results: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        message = answer(results, stale_weights, rank)
        assert "policy versions 1 to 1, the actor holds version 2" in message
        assert "stale" in message


def test_a_gap_above_the_limit_stops_the_run(results: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        assert "above the limit of 0.001 (limits.logprob_gap)" in answer(results, wide_gap, rank)


def test_empg_switched_off_trains_bit_for_bit_as_without(results: list[dict[str, Any]]) -> None:
    answer(results, modulation_switched_off)
