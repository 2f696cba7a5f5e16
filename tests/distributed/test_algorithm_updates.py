"""Every algorithm and part trains two data-parallel ranks on a recorded batch, alike on both and as on one.

A batch before it has been credited, so that histories and running statistics are at work.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.actor_cases import answer, fresh_actor, run_cases, weights_of
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

UPDATES = 3
TEMPERATURE = 0.9
BUDGET = 96
"""Tokens a microbatch: a rank's share of an update takes one or two."""
QUESTIONS, GROUP_SIZE = 3, 5

NAMES: tuple[dict[str, Any], ...] = (
    {"name": "grpo"},
    {"name": "dapo", "overlong": {"buffer": 10, "max_length": 20}},
    {"name": "rloo"},
    {"name": "reinforce_pp"},
    {"name": "gspo"},
    {"name": "gigpo"},
    {"name": "sampo"},
    {"name": "igpo"},
)
MODULATIONS: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    {"name": "empg"},
    {"name": "empg", "normalize": "quantile", "weights": "token"},
    {"name": "empg", "normalize": "rank", "target_scale_ratio": 3.0, "target_bonus_ratio": 0.2},
    {"name": "aem", "set": "trajectory"},
)
BAND = {"coefficient": 0.1, "band_low": 0.99, "band_high": 1.01}
"""A random model is nearly as unsure everywhere."""
REGULARIZERS: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    {"name": "entropy", "coefficient": 0.1},
    {"name": "epo", **BAND},
    {"name": "epo", **BAND, "preset": "paper"},
    {"name": "epo", **BAND, "preset": "released"},
)
CORRECTIONS = ("none", "tis", "mis", "icepop", "sequence_rejection")
KLS: tuple[dict[str, Any], ...] = (
    {"coefficient": 0.0},
    {"coefficient": 0.1, "estimator": "k1"},
    {"coefficient": 0.1, "estimator": "k2"},
    {"coefficient": 0.1, "estimator": "k3"},
)
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"truncated": True},
    {"cut_turns": True},
    {"bonus_only": True},
    {"truncated": True, "cut_turns": True, "bonus_only": True},
)
MEANS = ("token", "sequence")


@dataclass(frozen=True)
class Combination:
    """What a recipe's section `algorithm` holds."""

    algorithm: dict[str, Any]
    modulation: dict[str, Any]
    regularizer: dict[str, Any]
    correction: str
    kl: dict[str, Any]
    masks: dict[str, Any]
    loss_mean: str

    @property
    def choices(self) -> list[str]:
        """One for each part."""
        return [json.dumps(choice) for choice in vars(self).values()]

    @property
    def section(self) -> dict[str, Any]:
        parts = {name: choice for name, choice in vars(self).items() if name != "algorithm"}
        return {**self.algorithm, **parts}

    @property
    def title(self) -> str:
        names = (self.algorithm["name"], self.modulation["name"], self.regularizer["name"])
        return "-".join([*names, self.correction, self.loss_mean])


def pairwise_combinations() -> list[Combination]:
    """Any choice of a part meets any choice of another: the columns of a Latin square do, shifted by 0 to 4."""
    found = []
    for row, algorithm in enumerate(NAMES):
        for column, correction in enumerate(CORRECTIONS):
            found.append(
                Combination(
                    algorithm,
                    MODULATIONS[(row + column) % 5],
                    REGULARIZERS[(row + 2 * column) % 5],
                    correction,
                    KLS[(row + 3 * column) % 5 % 4],
                    MASKS[(row + 4 * column) % 5],
                    MEANS[(row + column) % 2],
                )
            )
    return found


COMBINATIONS = pairwise_combinations()
PLAIN = {"modulation": {"name": "none"}, "regularizer": {"name": "none"}}
COMPARED: dict[str, dict[str, Any]] = {
    "grpo with empg": {"name": "grpo", **PLAIN, "modulation": {"name": "empg"}},
    "gigpo": {"name": "gigpo", **PLAIN},
    "sampo": {"name": "sampo", **PLAIN},
    "grpo with aem": {"name": "grpo", **PLAIN, "modulation": {"name": "aem"}},
    "grpo with epo": {"name": "grpo", **PLAIN, "regularizer": {"name": "epo", **BAND}},
}
"""Those that must do on two ranks what they do on one."""


# What is trained on


def recorded(seed: int) -> Any:
    """Three questions with five episodes each: of 1 to 5 turns of 1 to 6 own tokens, in one sample or in two."""
    from megatron_empg.rollout.service.experience import experience_of

    generator = torch.Generator().manual_seed(seed)
    episodes = QUESTIONS * GROUP_SIZE
    samples, owners = [], []
    for episode in range(episodes):
        for lengths in drawn_turns(generator):
            samples.append(drawn_sample(lengths, generator))
            owners.append(episode)
    owner = torch.tensor(owners)
    turns = sum(len(sample.turns) for sample in samples)
    earned = 0.2 * torch.randn(turns, generator=generator)
    episode_of_turn = owner.repeat_interleave(torch.tensor([len(sample.turns) for sample in samples]))
    return experience_of(
        samples,
        owner,
        rewards=torch.zeros(episodes).index_add(0, episode_of_turn, earned),
        groups=torch.arange(episodes) // GROUP_SIZE,
        rollout_logprobs=torch.zeros(sum(sample.num_own_tokens for sample in samples)),
        truncated=torch.rand(episodes, generator=generator) < 0.2,
        turn_rewards=earned,
        anchors=torch.randint(0, 3, (turns,), generator=generator),
        cut=torch.rand(turns, generator=generator) < 0.2,
        gold=[torch.randint(0, 301, (3,), generator=generator) for _ in range(episodes)],
    )


def drawn_turns(generator: torch.Generator) -> list[list[int]]:
    """The own tokens of an episode's turns, by sample."""
    count = int(torch.randint(1, 6, (1,), generator=generator))
    lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
    return [lengths[:2], lengths[2:]] if count > 3 else [lengths]


def drawn_sample(lengths: list[int], generator: torch.Generator) -> Any:
    """A prompt of four tokens, and the turns, each followed by two tokens of an observation."""
    from megatron_empg.algorithms.sample import Sample

    turns, place = [], 4
    for length in lengths:
        turns.append([place, place + length])
        place += length + 2
    return Sample(torch.randint(0, 301, (place,), generator=generator), torch.tensor(turns))


def as_sampled(experience: Any, logprobs: torch.Tensor) -> Any:
    """The same with the engine's log-probs near the actor's, and far from them in every third sample."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(len(logprobs), generator=generator)
    lengths = torch.tensor([sample.num_own_tokens for sample in experience.samples])
    far = (torch.arange(len(lengths)) % 3 == 0).repeat_interleave(lengths)
    return dataclasses.replace(experience, rollout_logprobs=logprobs + noise * torch.where(far, 1.0, 0.003))


# What a rank does


class CountingLoss:
    """A loss that notes how many turns this rank was given."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.statistics, self.turns = loss, loss.statistics, 0

    def __call__(self, logprobs: Any, entropies: Any, streams: Any, segments: Any) -> Any:
        self.turns += segments.turns
        return self.loss(logprobs, entropies, streams, segments)


@dataclass(frozen=True)
class Trained:
    """What three updates did on a rank."""

    losses: list[float]
    grad_norms: list[float]
    applied: list[bool]
    turns: int
    metrics: dict[str, float]
    before: str
    """A digest of the weights."""
    after: str


class Rank:
    """A rank with its actor, the policy before any update, and two batches that this policy has scored."""

    def __init__(self, folder: Path, layout: dict[str, int]) -> None:
        from megatron_empg.actor.reference import FrozenReference
        from megatron_empg.trainer.scoring import score_samples

        self.folder = folder
        self.actor = fresh_actor(folder, layout, budget=BUDGET)
        self.reference = FrozenReference(self.actor)
        self.batches = []
        for seed in (1, 2):
            experience = recorded(seed)
            scores = score_samples(self.actor, experience.samples, TEMPERATURE)
            self.batches.append((as_sampled(experience, scores.logprobs), scores))

    def rewind(self) -> None:
        """The first weights, and an optimizer that has not stepped."""
        self.actor.load_weights(self.folder / "model")
        for optimizer in getattr(self.actor.optimizer, "chained_optimizers", [self.actor.optimizer]):
            optimizer.optimizer.state.clear()

    def train(self, section: dict[str, Any]) -> Trained:
        """Credit both batches and train on the second one, a third of its episodes at a time."""
        from pydantic import TypeAdapter

        from megatron_empg.algorithms.algorithm import Algorithm
        from megatron_empg.algorithms.diagnostics import batch_diagnostics
        from megatron_empg.algorithms.registry import AlgorithmKey
        from megatron_empg.trainer.advantages import credit_metrics
        from megatron_empg.trainer.policy_update import split_episodes, update_metrics
        from megatron_empg.trainer.scoring import score_probes

        self.rewind()
        actor, before = self.actor, digest(self.actor)
        algorithm = Algorithm(TypeAdapter(AlgorithmKey).validate_python(section))
        for experience, scores in self.batches:
            probes = score_probes(actor, self.reference, algorithm.probes(experience), TEMPERATURE)
            credit = algorithm.credit(experience, scores, probes)
        loss, reports = CountingLoss(algorithm.loss()), []
        for episodes in split_episodes(len(experience.rewards), UPDATES, seed=0):
            samples = algorithm.samples(experience, scores, credit, episodes)
            reports.append(actor.update(samples, loss, temperature=TEMPERATURE))
        metrics = credit_metrics(credit) | batch_diagnostics(experience, scores, credit) | update_metrics(reports)
        return Trained(
            losses=[report.loss for report in reports],
            grad_norms=[report.grad_norm for report in reports],
            applied=[report.applied for report in reports],
            turns=loss.turns,
            metrics=metrics,
            before=before,
            after=digest(actor),
        )


def digest(actor: Any) -> str:
    """Of this rank's own weights, bit for bit."""
    total = hashlib.sha256()
    for name, tensor in weights_of(actor).items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def on_two_ranks(folder: Path) -> dict[str, Trained]:
    rank, trained = Rank(folder, {"data": 2}), {}
    for title, section in sections():
        try:
            trained[title] = rank.train(section)
        except Exception as error:
            error.add_note(f"of {title}: {section}")
            raise
    return trained


def sections() -> Iterator[tuple[str, dict[str, Any]]]:
    for combination in COMBINATIONS:
        yield combination.title, combination.section
    yield from COMPARED.items()


def on_one_rank(folder: Path) -> dict[str, Trained]:
    """Each rank on its own, in a world of one."""
    from megatron_empg.actor import layout

    layout.shutdown()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60))
    rank = Rank(folder, {})
    return {title: rank.train(section) for title, section in COMPARED.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("updates")
    save_random_model(folder / "model", "qwen2")
    return run_ranks(run_cases, 2, [on_two_ranks, on_one_rank], str(folder))


def test_every_choice_of_a_part_meets_every_choice_of_another() -> None:
    rows = [combination.choices for combination in COMBINATIONS]
    for one, other in itertools.combinations(range(len(rows[0])), 2):
        wanted = itertools.product({row[one] for row in rows}, {row[other] for row in rows})
        assert {(row[one], row[other]) for row in rows} == set(wanted)
    used = {choice for row in rows for choice in row}
    for choices in (NAMES, MODULATIONS, REGULARIZERS, CORRECTIONS, KLS, MASKS, MEANS):
        assert {json.dumps(choice) for choice in choices} <= used


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda combination: combination.title)
def test_three_updates_move_both_ranks_alike(combination: Combination, results: list[dict[str, Any]]) -> None:
    first, second = (answer(results, on_two_ranks, rank)[combination.title] for rank in (0, 1))
    assert first.applied == [True] * UPDATES
    assert all(math.isfinite(loss) for loss in first.losses)
    assert all(math.isfinite(norm) and norm > 0 for norm in first.grad_norms)
    assert first.losses == second.losses
    assert first.grad_norms == second.grad_norms
    assert first.before == second.before
    assert first.before != first.after
    assert first.after == second.after
    assert first.metrics == second.metrics


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda combination: combination.title)
def test_every_statistic_has_an_entry_in_the_documents(
    combination: Combination, results: list[dict[str, Any]]
) -> None:
    from megatron_empg.run.metric_names import find

    metrics = answer(results, on_two_ranks)[combination.title].metrics
    assert [name for name in metrics if find(name) is None] == []
    assert all(math.isfinite(value) for value in metrics.values())
    families = {name.split("/")[0] for name in metrics}
    modulation, regularizer = combination.modulation["name"], combination.regularizer["name"]
    assert {"empg", "aem"} & families == {modulation} - {"none"}
    assert ("epo/outside_share" in metrics) == (regularizer == "epo")
    assert ("policy/epo_penalty" in metrics) == (regularizer == "epo")
    assert ("correction/mean_weight" in metrics) == (combination.correction != "none")
    assert ("policy/kl_to_reference" in metrics) == (combination.kl["coefficient"] > 0)
    assert ("algorithm/masked_tokens" in metrics) == bool(combination.masks)
    assert {"policy/loss", "policy/grad_norm", "policy/ratio", "policy/clip_fraction"} <= metrics.keys()


def test_the_ranks_have_unequal_numbers_of_turns(results: list[dict[str, Any]]) -> None:
    for title, _ in sections():
        first, second = (answer(results, on_two_ranks, rank)[title].turns for rank in (0, 1))
        assert first != second
        assert min(first, second) > 0


def test_parts_are_at_work(results: list[dict[str, Any]]) -> None:
    """Some tokens are truncated, rejected, masked or clipped, and some turns are outside EPO's band."""
    seen: dict[str, list[float]] = {}
    for title in (combination.title for combination in COMBINATIONS):
        for name, value in answer(results, on_two_ranks)[title].metrics.items():
            seen.setdefault(name, []).append(value)
    for share in (
        "correction/truncated_share",
        "correction/rejected_tokens",
        "algorithm/masked_tokens",
        "policy/clip_fraction",
        "epo/outside_share",
        "policy/epo_outside",
    ):
        assert any(0 < value < 1 for value in seen[share]), share
    assert any(value > 0 for value in seen["policy/kl_to_reference"])


@pytest.mark.parametrize("title", COMPARED)
def test_two_ranks_train_as_one_does(title: str, results: list[dict[str, Any]]) -> None:
    alone = answer(results, on_one_rank)[title]
    assert alone.turns == sum(answer(results, on_two_ranks, rank)[title].turns for rank in (0, 1))
    for rank in (0, 1):
        trained = answer(results, on_two_ranks, rank)[title]
        assert trained.losses == pytest.approx(alone.losses, rel=1e-5)
        assert trained.grad_norms == pytest.approx(alone.grad_norms, rel=1e-5)
