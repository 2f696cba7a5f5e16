"""Step entropies, advantages and their tokens, against loops that a reader can follow."""

import math
import statistics

import pytest
import torch

from megatron_empg.actor.actor import Score
from megatron_empg.actor.packing import Sequence
from megatron_empg.recipe import AlgorithmSection
from megatron_empg.trainer.advantages import (
    annotated_episodes,
    assign_advantages,
    assignment_metrics,
    step_entropies,
    training_sequences,
)
from megatron_empg.trainer.batch import Batch

SPANS = [
    [(2, 5), (8, 9)],
    [(1, 4)],
    [(3, 4), (6, 10), (12, 13)],
    [(2, 3), (5, 11)],
]
REWARDS = [1.0, 0.0, 1.0, 0.0]
GROUPS = [0, 0, 7, 7]


@pytest.fixture
def batch() -> Batch:
    sequences = []
    for spans in SPANS:
        own = sum(end - start for start, end in spans)
        sequences.append(Sequence(torch.arange(14), torch.tensor(spans), {"rollout_logprobs": torch.zeros(own)}))
    turns = [
        [{"text": f"{i}.{t}", "observation": None} for t in range(len(spans))] for i, spans in enumerate(SPANS)
    ]
    return Batch(
        sequences, torch.tensor(REWARDS), torch.tensor(GROUPS), torch.zeros(4, 2).long(),
        [{"task_id": str(i), "outcome": "success", "question": "?", "turns": t} for i, t in enumerate(turns)],
    )  # fmt: skip


@pytest.fixture
def scores(batch: Batch) -> list[Score]:
    generator = torch.Generator().manual_seed(2)
    sizes = [s.num_own_tokens for s in batch.sequences]
    return [Score(-torch.rand(n, generator=generator), 2 * torch.rand(n, generator=generator)) for n in sizes]


def entropies_by_hand(scores: list[Score]) -> list[list[float]]:
    by_episode = []
    for spans, score in zip(SPANS, scores, strict=True):
        values, means = score.entropies.double().tolist(), []
        for start, end in spans:
            means.append(statistics.fmean(values[: end - start]))
            values = values[end - start :]
        assert not values
        by_episode.append(means)
    return by_episode


def trajectory_by_hand(normalize_std: bool = True) -> list[float]:
    advantages = []
    for reward, group in zip(REWARDS, GROUPS, strict=True):
        rest = [r for r, g in zip(REWARDS, GROUPS, strict=True) if g == group]
        advantage = reward - statistics.fmean(rest)
        advantages.append(advantage / (statistics.stdev(rest) + 1e-6) if normalize_std else advantage)
    return advantages


def empg_by_hand(scores: list[Score], k: float, k_f: float, zeta: float, center: bool) -> list[list[float]]:
    entropies = entropies_by_hand(scores)
    flat = [h for row in entropies for h in row]
    low, high = min(flat), max(flat)
    norm = [[(h - low) / (high - low + 1e-8) for h in row] for row in entropies]
    mean_scale = statistics.fmean(math.exp(-k * h) for row in norm for h in row)
    modulated = []
    for advantage, row in zip(trajectory_by_hand(), norm, strict=True):
        bonuses = [zeta * math.exp(-k_f * following) for following in row[1:]] + [0.0]
        modulated.append(
            [advantage * math.exp(-k * h) / mean_scale + b for h, b in zip(row, bonuses, strict=True)]
        )
    shift = statistics.fmean(a for row in modulated for a in row) if center else 0.0
    return [[a - shift for a in row] for row in modulated]


def test_step_entropy_is_the_mean_over_the_steps_own_tokens(batch: Batch, scores: list[Score]) -> None:
    expected = [h for row in entropies_by_hand(scores) for h in row]
    assert step_entropies(batch.sequences, scores).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("constants", [(1.0, 1.0, 0.1, True), (0.5, 2.0, 0.3, False), (0.0, 1.0, 0.0, True)])
def test_step_advantages_are_the_papers(batch: Batch, scores: list[Score], constants: tuple) -> None:
    names = ("k", "k_f", "zeta", "center")
    algorithm = AlgorithmSection(name="grpo", modulation="empg", empg=dict(zip(names, constants, strict=True)))
    assignment = assign_advantages(batch, scores, algorithm)
    expected = [a for row in empg_by_hand(scores, *constants) for a in row]
    assert assignment.step_advantages.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("name", "normalize"), [("grpo", True), ("dapo", True), ("grpo", False)])
def test_without_modulation_a_step_has_its_trajectorys(batch: Batch, scores: list[Score], name, normalize) -> None:
    algorithm = AlgorithmSection(name=name, modulation="none", grpo={"normalize_std": normalize})
    assignment = assign_advantages(batch, scores, algorithm)
    by_episode = trajectory_by_hand(normalize)
    expected = [a for a, spans in zip(by_episode, SPANS, strict=True) for _ in spans]
    assert assignment.trajectory.tolist() == pytest.approx(by_episode, rel=1e-5)
    assert assignment.step_advantages.tolist() == pytest.approx(expected, rel=1e-5)
    assert assignment.modulation is None


def test_every_own_token_gets_the_advantage_of_its_step(batch: Batch, scores: list[Score]) -> None:
    assignment = assign_advantages(batch, scores, AlgorithmSection())
    steps = iter(assignment.step_advantages.tolist())
    for sequence, score, spans in zip(training_sequences(batch, scores, assignment), scores, SPANS, strict=True):
        expected = [a for start, end in spans for a in [next(steps)] * (end - start)]
        assert sequence.values["advantages"].tolist() == expected
        assert torch.equal(sequence.values["old_logprobs"], score.logprobs)


def test_annotations_lie_beside_their_own_turn(batch: Batch, scores: list[Score]) -> None:
    assignment = assign_advantages(batch, scores, AlgorithmSection())
    first, second = annotated_episodes(9, batch, assignment, count=4)
    assert (first["task_id"], second["task_id"]) == ("0", "2"), "one of each question"
    assert (second["step"], second["reward"]) == (9, 1.0)
    assert [turn["text"] for turn in second["turns"]] == ["2.0", "2.1", "2.2"]
    assert [turn["tokens"] for turn in second["turns"]] == [1, 4, 1]
    assert [turn["entropy"] for turn in second["turns"]] == pytest.approx(entropies_by_hand(scores)[2], rel=1e-6)
    assert [turn["advantage"] for turn in second["turns"]] == assignment.step_advantages[3:6].tolist()
    assert second["turns"][-1]["bonus"] == 0.0
    assert annotated_episodes(9, batch, assignment, count=0) == []


def test_metrics_of_an_assignment(batch: Batch, scores: list[Score]) -> None:
    metrics = assignment_metrics(assign_advantages(batch, scores, AlgorithmSection()))
    flat = [h for row in entropies_by_hand(scores) for h in row]
    assert metrics["policy/step_entropy_min"] == pytest.approx(min(flat))
    assert metrics["policy/step_entropy_median"] == pytest.approx(statistics.median(flat))
    assert metrics["policy/step_entropy_max"] == pytest.approx(max(flat))
    assert metrics["empg/advantage_mean"] == pytest.approx(0.0, abs=1e-6)


def test_an_empty_batch_is_no_fault() -> None:
    empty = Batch([], torch.empty(0), torch.empty(0).long(), torch.empty(0, 2).long())
    assignment = assign_advantages(empty, [], AlgorithmSection())
    assert training_sequences(empty, [], assignment) == []
    assert assignment_metrics(assignment) == {}
    assert annotated_episodes(1, empty, assignment, count=4) == []


def test_the_loss_sees_the_modulation_weighted_by_tokens(batch: Batch, scores: list[Score]) -> None:
    assignment = assign_advantages(batch, scores, AlgorithmSection())
    metrics = assignment_metrics(assignment)
    lengths = [end - start for spans in SPANS for start, end in spans]
    advantages = assignment.step_advantages.tolist()
    seen = sum(length * a for length, a in zip(lengths, advantages, strict=True)) / sum(lengths)
    assert metrics["empg/advantage_token_mean"] == pytest.approx(seen, abs=1e-6)
    assert abs(seen) > 1e-3  # while the mean over steps is 0
    assert metrics["empg/bonus_only_tokens"] == 0.0


def test_the_share_of_the_bonus_is_one_where_nothing_else_trains(batch: Batch, scores: list[Score]) -> None:
    def share(zeta: float, rewards: list[float] = REWARDS) -> dict[str, float]:
        batch.rewards = torch.tensor(rewards)
        settings = AlgorithmSection(empg={"zeta": zeta})  # type: ignore[arg-type]
        return assignment_metrics(assign_advantages(batch, scores, settings))

    assert share(0.0)["empg/bonus_share"] == 0.0
    assert 0.0 < share(0.1)["empg/bonus_share"] < share(0.5)["empg/bonus_share"] < 1.0
    equal = share(0.1, [1.0] * 4)
    assert (equal["empg/bonus_share"], equal["empg/bonus_only_tokens"]) == pytest.approx((1.0, 1.0))
    half = share(0.1, [1.0, 0.0, 1.0, 1.0])  # the second group is equal
    tokens = [sum(end - start for start, end in spans) for spans in SPANS]
    assert half["empg/bonus_only_tokens"] == pytest.approx(sum(tokens[2:]) / sum(tokens))
    assert "empg/bonus_share" not in share(0.0, [1.0] * 4)  # nothing trains at all
