"""Every algorithm by its recipe key."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.registry import AlgorithmKey, Algorithms
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import choices
from tests.unit.algorithms.experiences import experience, random_experience

KEY: TypeAdapter[AlgorithmSection] = TypeAdapter(AlgorithmKey)
NAMES = list(choices(Algorithms))


def probed(section: AlgorithmSection, batch: Experience) -> list[Scores]:
    """Scores of what the algorithm wants scored, all tokens alike."""
    found = []
    for probe in section.probes(batch):
        tokens = sum(sample.num_own_tokens for sample in probe.samples)
        found.append(Scores(torch.full((tokens,), -1.0), torch.ones(tokens)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_name_is_the_algorithm_with_its_defaults(name: str) -> None:
    section = KEY.validate_python(name)
    assert section.name == name
    assert section == type(section)()
    assert KEY.validate_python({"name": name}) == section


def test_without_a_name_the_keys_are_those_of_grpo() -> None:
    section = KEY.validate_python({"clip_low": 0.1})
    assert section.name == "grpo"
    assert section.model_dump()["clip_low"] == 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_written_out_is_read_back(name: str) -> None:
    section = KEY.validate_python({"name": name, "updates_per_batch": 2, "loss_mean": "sequence"})
    assert KEY.validate_python(section.model_dump()) == section


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("ppo", "'ppo'.*'grpo', 'dapo'"),
        ({"name": "grpo", "gamma": 0.9}, "Extra inputs are not permitted"),
        ({"name": "gigpo", "gamma": 1.5}, "less than or equal to 1"),
        ({"name": "gspo", "clip_low": -0.1}, "greater than or equal to 0"),
        ({"name": "igpo", "gain": "entropy"}, "'probability' or 'logprob'"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        KEY.validate_python(keys)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batch",
    [
        random_experience(0),
        experience(rewards=[]),
        experience(rewards=[[1.0]], gold=[[7]]),
        experience(rewards=[[0.5, 0.5], [1.0]], gold=[[7], [7]]),
        experience(rewards=[[0.0, 1.0], [2.0], [0.0]], groups=[5, 1, 3], gold=[[7]] * 3),
    ],
    ids=["random", "empty", "one turn", "equal rewards", "groups of one"],
)
def test_every_batch_has_finite_advantages_in_double(name: str, batch: Experience) -> None:
    section = KEY.validate_python(name)
    advantages = section.advantages(batch, probed(section, batch))
    assert advantages.turns.shape == batch.turn_lengths.shape
    assert advantages.episodes.shape == batch.rewards.shape
    for values in (advantages.turns, advantages.episodes):
        assert values.dtype == torch.float64
        assert values.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_equal_rewards_teaches_nothing(name: str) -> None:
    batch = experience(rewards=[[0.1], [0.1], [0.1]], gold=[[7]] * 3)
    section = KEY.validate_python(name)
    assert section.advantages(batch, probed(section, batch)).turns.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_has_a_loss(name: str) -> None:
    assert KEY.validate_python(name).surrogate().statistics


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_episodes_does_not_matter(name: str) -> None:
    batch = random_experience(9)
    order = list(reversed(range(len(batch.rewards))))
    turned = batch.select(order)
    section = KEY.validate_python(name)
    there = section.advantages(batch, probed(section, batch)).turns
    back = section.advantages(turned, probed(section, turned)).turns
    torch.testing.assert_close(back, there[batch.turns_of(order)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("chosen", "named"), [([1, 0, 1], "1"), ([0, 3], "3"), ([-1], "-1"), ([0] * 4, "0")])
def test_an_episode_is_chosen_once_and_must_be_there(chosen: list[int], named: str) -> None:
    batch = experience(rewards=[[0.1], [0.2, 0.3], [0.4]])
    with pytest.raises(ValueError, match=rf"episode {named} was chosen of 3: .* each once"):
        batch.select(chosen)
    assert batch.select([2, 1]).rewards.tolist() == [0.4, 0.5]
    assert batch.select([]).rewards.tolist() == []
