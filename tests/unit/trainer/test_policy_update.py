"""A batch's optimizer steps: which episodes each gets, and what is said of those that were applied."""

import math
import random
from typing import Any

import torch

from megatron_empg.actor.actor import UpdateReport
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.sample import Sample
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.experience import experience_of
from megatron_empg.trainer.policy_update import PolicyUpdate, split_episodes, update_metrics, update_policy
from tests.support.batches import batch_of, plain_credit


def report(value: float, tokens: int, *, norm: float = 1.0, applied: bool = True) -> UpdateReport:
    names = ("approx_kl", "clipped", "ratio", "entropy")
    return UpdateReport(value, norm, value / 10, tokens, applied, dict.fromkeys(names, value))


def test_means_are_weighted_by_tokens_and_norms_by_steps() -> None:
    metrics = update_metrics([report(1.0, 100, norm=2.0), report(3.0, 300, norm=6.0)])
    for name in ("loss", "approx_kl", "clip_fraction", "ratio", "update_entropy"):
        assert metrics[f"policy/{name}"] == 2.5, name
    assert (metrics["policy/grad_norm"], metrics["policy/grad_norm_max"]) == (4.0, 6.0)
    assert (metrics["policy/lr"], metrics["skipped_updates"]) == (0.3, 0.0)
    assert "policy/kl_to_reference" not in metrics


def test_a_step_that_was_skipped_is_counted_and_changes_no_mean() -> None:
    skipped = report(math.nan, 900, norm=math.inf, applied=False)
    metrics = update_metrics([report(1.0, 100), skipped])
    assert metrics["skipped_updates"] == 1.0
    assert metrics["policy/loss"] == metrics["policy/grad_norm_max"] == 1.0
    alone = update_metrics([skipped])
    assert {"policy/loss", "policy/grad_norm", "policy/entropy"}.isdisjoint(alone)
    assert alone["skipped_updates"] == 1.0


def test_the_kl_of_the_loss_is_reported_where_it_is_in_the_loss() -> None:
    made = report(1.0, 10)
    made.means["kl_to_reference"] = 0.25
    assert update_metrics([made])["policy/kl_to_reference"] == 0.25


class NotedActor:
    """Notes what it was to do."""

    def __init__(self) -> None:
        self.updates: list[list[Sample]] = []
        self.skipped = 0

    def update(self, samples: list[Sample], loss: Any, *, temperature: float) -> UpdateReport:
        self.updates.append(samples)
        return report(1.0, sum(sample.num_own_tokens for sample in samples))

    def skip_updates(self, count: int) -> None:
        self.skipped += count


def updated(batch: Batch, section: Grpo, seed: int = 3) -> tuple[NotedActor, PolicyUpdate]:
    actor, algorithm = NotedActor(), Algorithm(section)
    engine: Any = actor
    own = len(batch.experience.rollout_logprobs)
    scores = Scores(torch.zeros(own), torch.full((own,), 0.5))
    credit = plain_credit(batch, algorithm)
    return actor, update_policy(engine, algorithm, batch.experience, scores, credit, temperature=1.0, seed=seed)


def test_episodes_are_shuffled_by_the_seed_and_dealt_out() -> None:
    order = list(range(7))
    random.Random(11).shuffle(order)
    assert list(split_episodes(7, 3, seed=11)) == [order[0::3], order[1::3], order[2::3]]
    assert list(split_episodes(2, 3, seed=11)) in ([[0], [1]], [[1], [0]])
    assert list(split_episodes(0, 3, seed=11)) == []


def test_an_episodes_samples_stay_together() -> None:
    """Sample i begins with token i; the samples of an episode may be any number."""
    owners = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    samples = [Sample(torch.tensor([number, 1, 2]), torch.tensor([[1, 3]])) for number in range(7)]
    experience = experience_of(
        samples,
        owners,
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        groups=torch.tensor([0, 0, 1, 1]),
        rollout_logprobs=torch.zeros(14),
    )
    batch = Batch(experience, torch.zeros(4, 2, dtype=torch.long))
    actor, _ = updated(batch, Grpo(updates_per_batch=2))
    numbers = [[int(sample.tokens[0]) for sample in update] for update in actor.updates]
    for update, episodes in zip(numbers, split_episodes(4, 2, seed=3), strict=True):
        assert update == [number for episode in episodes for number in range(7) if owners[number] == episode]
    assert sorted(number for update in numbers for number in update) == list(range(7))


def four_episodes(cut: list[bool]) -> Batch:
    return batch_of([[(1, 3)]] * 4, [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], cut=torch.tensor(cut))


def test_an_update_of_masked_tokens_alone_is_skipped_and_counted() -> None:
    (masked, other) = split_episodes(4, 2, seed=3)
    batch = four_episodes([episode in masked for episode in range(4)])
    section = Grpo(updates_per_batch=2, masks=MasksSection(cut_turns=True))
    actor, update = updated(batch, section)
    assert len(actor.updates) == 1
    assert len(actor.updates[0]) == len(other)
    assert actor.skipped == 1, "the schedule goes on all the same"
    assert update.metrics["masked_updates"] == 1.0
    assert update.applied == [True]
    assert update.metrics["skipped_updates"] == 0.0
    plain, seen = updated(four_episodes([False] * 4), section)
    assert (len(plain.updates), plain.skipped) == (2, 0)
    assert "masked_updates" not in seen.metrics


def test_without_any_update_nothing_was_measured() -> None:
    section = Grpo(masks=MasksSection(cut_turns=True))
    actor, update = updated(four_episodes([True] * 4), section)
    assert (actor.updates, actor.skipped) == ([], 1)
    assert update.metrics == {"skipped_updates": 0.0, "masked_updates": 1.0}


def test_a_statistic_without_a_name_of_its_own_is_reported_by_the_loss_name() -> None:
    made = report(1.0, 10)
    made.means["epo_penalty"] = 0.5
    assert update_metrics([made])["policy/epo_penalty"] == 0.5
