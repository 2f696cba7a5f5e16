"""Every layout up to four ranks scores and trains as one rank does: TP, SP, PP, interleaved, CP, DP, products."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.actor_cases import (
    answer,
    fresh_actor,
    largest_difference,
    policy_loss,
    run_cases,
    sequences,
    turn_entropies,
    weights_of,
    with_old_logprobs,
)
from tests.distributed.loss_cases import Trained, assert_equal, update_few_own_tokens
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

LENGTHS = [120, 9, 38, 83, 77, 24]
STEPS = 5


@dataclass(frozen=True)
class Case:
    """Scores, then five updates, of one model in one layout."""

    layout: dict[str, Any]
    model: str = "tied"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        words = [f"{name}={value}" for name, value in {**self.layout, **self.settings}.items()]
        return " ".join([self.model, *words])

    def __call__(self, folder: Path) -> dict[str, Any]:
        actor = fresh_actor(folder, self.layout, model=self.model, **self.settings)
        batch = torch.load(folder / f"{self.model}.pt", weights_only=False)
        scores = actor.score(batch, temperature=0.9)
        reports = [actor.update(batch, policy_loss(), temperature=0.9)]
        first = weights_of(actor)
        reports += [actor.update(batch, policy_loss(), temperature=0.9) for _ in range(STEPS - 1)]
        assert all(report.applied for report in reports)
        return {
            "scores": torch.cat([torch.stack([s.logprobs, s.entropies]) for s in scores], dim=1),
            "turn_entropies": turn_entropies(batch, scores),
            "loss": [r.loss for r in reports], "grad_norm": [r.grad_norm for r in reports],
            "tokens": [r.tokens for r in reports], "clipped": reports[0].means["clipped"],
            "first": first, "last": weights_of(actor),
        }  # fmt: skip


def few_own_tokens(folder: Path) -> Trained:
    return update_few_own_tokens(folder, {}, samples=2, model="tied")


def few_own_tokens_context_and_data_parallel(folder: Path) -> Trained:
    """Two ranks hold parts of no sample, and take means over it together."""
    return update_few_own_tokens(folder, {"context": 2, "data": 2}, samples=1, model="tied")


SHARDED = {"distributed_optimizer": True}
OVERLAPPED = {"distributed_optimizer": True, "overlap": True}
ONE = [Case({}), Case({}, "untied-one-group"), Case({}, "experts")]
TWO = [
    Case({"tensor": 2}),
    Case({"tensor": 2, "sequence_parallel": True}),
    Case({"tensor": 2, "sequence_parallel": True}, "untied-one-group"),  # fewer key-value heads than ranks
    Case({"pipeline": 2}),
    Case({"pipeline": 2}, "untied-one-group"),
    Case({"pipeline": 2, "virtual_pipeline": 2}),
    Case({"pipeline": 2, "virtual_pipeline": 2}, "untied-one-group"),
    Case({"data": 2}),
    Case({"data": 2}, settings={"overlap": True}),
    Case({"data": 2}, settings=OVERLAPPED),
    Case({"context": 2}),
    Case({"context": 2}, settings={"context_exchange": "a2a", **SHARDED}),
    Case({"context": 2}, "untied-one-group"),  # one group cannot be split, so not by all-to-all
    Case({"data": 2, "expert": 2}, "experts", SHARDED),
    Case({"tensor": 2, "sequence_parallel": True, "expert": 2}, "experts"),
]
FOUR = [
    Case({"tensor": 2, "pipeline": 2}),
    Case({"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "sequence_parallel": True}, "untied-one-group"),
    Case({"tensor": 2, "context": 2, "sequence_parallel": True}, settings=SHARDED),
    Case({"tensor": 2, "data": 2}, settings=OVERLAPPED),
    Case({"pipeline": 2, "context": 2}),
    Case({"pipeline": 2, "virtual_pipeline": 2, "context": 2}, settings=OVERLAPPED),
    Case({"pipeline": 2, "data": 2}, settings=SHARDED),
    Case({"pipeline": 2, "virtual_pipeline": 2, "data": 2}, "untied-one-group", OVERLAPPED),
    Case({"context": 2, "data": 2}, settings=OVERLAPPED),
    Case({"pipeline": 2, "data": 2, "expert": 2}, "experts", OVERLAPPED),
    Case({"tensor": 4}),
    Case({"context": 4}),
    Case({"pipeline": 4}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("layouts")
    for name, shape in (("tied", "qwen2"), ("untied-one-group", "qwen2-one-group"), ("experts", "qwen3_moe")):
        model = save_random_model(made / name, shape)
        torch.save(with_old_logprobs(model, sequences(LENGTHS)), made / f"{name}.pt")
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 1, [*ONE, few_own_tokens], str(folder))


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 2, TWO, str(folder))


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 4, [*FOUR, few_own_tokens_context_and_data_parallel], str(folder))


def assert_trained_alike(results: list[dict[str, Any]], case: Case, one: list[dict[str, Any]]) -> None:
    expected = answer(one, Case({}, case.model))
    for rank in range(len(results)):  # every rank says the same, which is what one rank says
        actual = answer(results, case, rank)
        torch.testing.assert_close(actual["scores"], expected["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(actual["turn_entropies"], expected["turn_entropies"], atol=1e-5, rtol=0)
        assert actual["tokens"] == expected["tokens"]
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    # Adam's first step is lr (3e-4) times the gradient's sign, whose rounding shows where it is nearly 0.
    assert largest_difference(answer(results, case)["first"], expected["first"]) <= 1e-4


@pytest.mark.parametrize("case", ONE, ids=lambda case: case.__name__)
def test_the_cases_can_tell_right_from_wrong(case: Case, one: list[dict[str, Any]]) -> None:
    """Updates move the weights by far more than the tolerance, and some tokens are clipped."""
    trained = answer(one, case)
    assert largest_difference(trained["first"], trained["last"]) > 1e-3
    assert 0 < trained["clipped"] < 1
    assert len({round(loss, 4) for loss in trained["loss"]}) > 1


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.__name__)
def test_two_ranks(case: Case, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert_trained_alike(two, case, one)


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.__name__)
def test_four_ranks(case: Case, one: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    assert_trained_alike(four, case, one)


def test_ranks_without_a_sample_take_part_in_the_means(
    one: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    for rank in range(4):
        assert_equal(answer(four, few_own_tokens_context_and_data_parallel, rank), answer(one, few_own_tokens))
