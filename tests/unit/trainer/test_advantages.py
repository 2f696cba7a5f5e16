"""Turn entropies, advantages and their tokens, against loops that a reader can follow."""

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Credit, Scores
from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.no_part import NoModulation
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.run.episode_text import EpisodeText, TurnText
from megatron_empg.trainer.advantages import annotated_episodes, credit_metrics
from tests.support.batches import batch_of, empty_batch, plain_credit

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
    texts = []
    for episode, spans in enumerate(SPANS):
        turns = [TurnText(f"{episode}.{turn}") for turn in range(len(spans))]
        texts.append(EpisodeText(str(episode), "?", "success", turns))
    return batch_of(SPANS, REWARDS, GROUPS, texts=texts)


@pytest.fixture
def scores(batch: Batch) -> Scores:
    generator = torch.Generator().manual_seed(2)
    own = len(batch.experience.rollout_logprobs)
    return Scores(-torch.rand(own, generator=generator), 2 * torch.rand(own, generator=generator))


def credit_of(batch: Batch, scores: Scores, section: AlgorithmSection | None = None) -> Credit:
    return Algorithm(section or Grpo()).credit(batch.experience, scores, [])


def entropies_by_hand(scores: Scores) -> list[list[float]]:
    by_episode = []
    values = scores.entropies.double().tolist()
    for spans in SPANS:
        means = []
        for start, end in spans:
            means.append(statistics.fmean(values[: end - start]))
            values = values[end - start :]
        by_episode.append(means)
    assert not values
    return by_episode


def trajectory_by_hand(normalize_std: bool = True) -> list[float]:
    advantages = []
    for reward, group in zip(REWARDS, GROUPS, strict=True):
        rest = [r for r, g in zip(REWARDS, GROUPS, strict=True) if g == group]
        advantage = reward - statistics.fmean(rest)
        advantages.append(advantage / (statistics.stdev(rest) + 1e-6) if normalize_std else advantage)
    return advantages


def empg_by_hand(scores: Scores, k: float, k_f: float, zeta: float, center: bool) -> list[list[float]]:
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


def test_a_turns_entropy_is_the_mean_over_its_own_tokens(batch: Batch, scores: Scores) -> None:
    expected = [h for row in entropies_by_hand(scores) for h in row]
    assert credit_of(batch, scores).entropies.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("constants", [(1.0, 1.0, 0.1, True), (0.5, 2.0, 0.3, False), (0.0, 1.0, 0.0, True)])
def test_turn_advantages_are_the_papers(batch: Batch, scores: Scores, constants: tuple) -> None:
    modulation = Empg(**dict(zip(("k", "k_f", "zeta", "center"), constants, strict=True)))
    credit = credit_of(batch, scores, Grpo(modulation=modulation))
    expected = [a for row in empg_by_hand(scores, *constants) for a in row]
    assert credit.turns.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("section", [Grpo, Dapo])
@pytest.mark.parametrize("normalize", [True, False])
def test_without_modulation_a_turn_has_its_trajectorys(
    batch: Batch, scores: Scores, section: Any, normalize: bool
) -> None:
    credit = credit_of(batch, scores, section(modulation=NoModulation(), normalize_std=normalize))
    by_episode = trajectory_by_hand(normalize)
    expected = [a for a, spans in zip(by_episode, SPANS, strict=True) for _ in spans]
    assert credit.advantages.episodes.tolist() == pytest.approx(by_episode, rel=1e-5)
    assert credit.turns.tolist() == pytest.approx(expected, rel=1e-5)
    assert credit.modulated is None


def test_every_own_token_gets_the_advantage_of_its_turn(batch: Batch, scores: Scores) -> None:
    """Whichever episodes an optimizer step takes, in whichever order."""
    algorithm, order = Algorithm(Grpo()), [2, 0, 3]
    credit = algorithm.credit(batch.experience, scores, [])
    advantages, logprobs = iter(credit.turns.float().tolist()), iter(scores.logprobs.tolist())
    by_episode = []
    for spans in SPANS:
        lengths = [end - start for start, end in spans]
        expected = [a for length in lengths for a in [next(advantages)] * length]
        by_episode.append((expected, [next(logprobs) for _ in range(sum(lengths))]))
    samples = algorithm.samples(batch.experience, scores, credit, order)
    for sample, episode in zip(samples, order, strict=True):
        assert sample.tokens is batch.experience.samples[episode].tokens
        assert sample.streams.advantages is not None
        assert sample.streams.old_logprobs is not None
        assert sample.streams.advantages.tolist() == by_episode[episode][0]
        assert sample.streams.old_logprobs.tolist() == by_episode[episode][1]


def test_annotations_lie_beside_their_own_turn(batch: Batch, scores: Scores) -> None:
    credit = credit_of(batch, scores)
    first, second = (record.to_json() for record in annotated_episodes(9, batch, credit, count=2))
    assert (first["task_id"], second["task_id"]) == ("0", "2"), "one of each question"
    assert (second["step"], second["reward"]) == (9, 1.0)
    assert second["advantage"] == pytest.approx(trajectory_by_hand()[2], rel=1e-5)
    assert [turn["text"] for turn in second["turns"]] == ["2.0", "2.1", "2.2"]
    assert [turn["tokens"] for turn in second["turns"]] == [1, 4, 1]
    assert [turn["entropy"] for turn in second["turns"]] == pytest.approx(entropies_by_hand(scores)[2], rel=1e-6)
    assert [turn["advantage"] for turn in second["turns"]] == credit.turns[3:6].tolist()
    assert second["turns"][-1]["bonus"] == 0.0
    whole = {"task_id", "question", "outcome", "prompt", "reward", "error", "turns", "step", "advantage"}
    assert set(second) == whole
    keys = ["text", "observation", "entropy", "advantage", "tokens", "h_norm", "g", "bonus"]
    assert list(second["turns"][0]) == keys
    assert annotated_episodes(9, batch, credit, count=0) == []
    assert len(annotated_episodes(9, batch, credit, count=9)) == batch.episodes, "then the other ones of each"


def test_without_modulation_an_annotation_has_none(batch: Batch, scores: Scores) -> None:
    credit = credit_of(batch, scores, Grpo(modulation=NoModulation()))
    (record,) = annotated_episodes(9, batch, credit, count=1)
    assert list(record.to_json()["turns"][0]) == ["text", "observation", "entropy", "advantage", "tokens"]


def test_an_episode_whose_text_is_not_at_hand_is_left_out(batch: Batch, scores: Scores) -> None:
    batch.texts[0] = None
    (record,) = annotated_episodes(9, batch, credit_of(batch, scores), count=2)
    assert record.text.task_id == "2"


def test_metrics_of_a_credit(batch: Batch, scores: Scores) -> None:
    metrics = credit_metrics(credit_of(batch, scores))
    flat = [h for row in entropies_by_hand(scores) for h in row]
    assert metrics["policy/step_entropy_min"] == pytest.approx(min(flat))
    assert metrics["policy/step_entropy_median"] == pytest.approx(statistics.median(flat))
    assert metrics["policy/step_entropy_max"] == pytest.approx(max(flat))
    assert metrics["empg/advantage_mean"] == pytest.approx(0.0, abs=1e-6)


def test_an_empty_batch_is_no_fault() -> None:
    empty, algorithm = empty_batch(), Algorithm(Grpo())
    credit = plain_credit(empty, algorithm)
    nothing = Scores(torch.empty(0), torch.empty(0))
    assert algorithm.samples(empty.experience, nothing, credit, []) == []
    assert credit_metrics(credit) == {}
    assert annotated_episodes(1, empty, credit, count=4) == []


def test_the_loss_sees_the_modulation_weighted_by_tokens(batch: Batch, scores: Scores) -> None:
    credit = credit_of(batch, scores)
    metrics = credit_metrics(credit)
    lengths = [end - start for spans in SPANS for start, end in spans]
    seen = sum(length * a for length, a in zip(lengths, credit.turns.tolist(), strict=True)) / sum(lengths)
    assert metrics["empg/advantage_token_mean"] == pytest.approx(seen, abs=1e-6)
    assert abs(seen) > 1e-3  # while the mean over turns is 0
    assert metrics["empg/bonus_only_tokens"] == 0.0


def test_the_share_of_the_bonus_is_one_where_nothing_else_trains(batch: Batch, scores: Scores) -> None:
    def share(zeta: float, rewards: list[float] = REWARDS) -> dict[str, float]:
        experience = replace(batch.experience, rewards=torch.tensor(rewards))
        algorithm = Algorithm(Grpo(modulation=Empg(zeta=zeta)))
        return credit_metrics(algorithm.credit(experience, scores, []))

    assert share(0.0)["empg/bonus_share"] == 0.0
    assert 0.0 < share(0.1)["empg/bonus_share"] < share(0.5)["empg/bonus_share"] < 1.0
    equal = share(0.1, [1.0] * 4)
    assert (equal["empg/bonus_share"], equal["empg/bonus_only_tokens"]) == pytest.approx((1.0, 1.0))
    half = share(0.1, [1.0, 0.0, 1.0, 1.0])  # the second group is equal
    tokens = [sum(end - start for start, end in spans) for spans in SPANS]
    assert half["empg/bonus_only_tokens"] == pytest.approx(sum(tokens[2:]) / sum(tokens))
    assert "empg/bonus_share" not in share(0.0, [1.0] * 4)  # nothing trains at all
