"""Which played episodes train, and how many were met on the way."""

import random

import pytest

from megatron_empg.environments.base import Task
from megatron_empg.rollout.client import VersionSpan
from megatron_empg.rollout.episode import Episode, Step
from megatron_empg.trainer.batch import Batch
from megatron_empg.trainer.collect import Collection


def tasks(count: int) -> list[Task]:
    return [Task(f"task{i}", [{"role": "user", "content": f"question {i}"}], {}) for i in range(count)]


def episode(group: int, sample: int, reward: float | None, *, version: int = 4) -> Episode:
    """Two turns of 2 and 3 own tokens; a reward of None stands for an episode that ended in an error."""
    steps = [
        Step(3, 5, "search x", "stop", [VersionSpan(version, 0, 2)], "found x", {"malformed": sample == 1}),
        Step(9, 12, "answer y", "stop", [VersionSpan(version, 0, 3)]),
    ]
    outcome = "error" if reward is None else ("success" if reward > 0 else "failure")
    tokens = [100 * group + 10 * sample + i % 10 for i in range(12)]
    error = "EngineError: gone" if reward is None else None
    return Episode(
        f"task{group}",
        group,
        sample,
        3,
        tokens,
        steps,
        [-0.1, -0.2, -0.3, -0.4, -0.5],
        reward or 0.0,
        outcome,
        error,
    )


def played(rewards: list[list[float | None]]) -> list[Episode]:
    return [episode(g, s, reward) for g, row in enumerate(rewards) for s, reward in enumerate(row)]


def collect(
    rewards: list[list[float | None]], *, wanted: int = 8, dapo: bool = False, seed: int | None = None
) -> Batch:
    collection = Collection(wanted, dapo)
    collection.add(tasks(len(rewards)), played(rewards), seed)
    return collection.batch()


def test_errors_never_train_and_leave_the_rest_of_their_group() -> None:
    batch = collect([[1.0, None, 0.0], [0.0, 1.0, 1.0]])
    assert batch.rewards.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert batch.groups.tolist() == [0, 0, 1, 1, 1]
    assert [s.tokens[0].item() for s in batch.sequences] == [0, 20, 100, 110, 120], (
        "sample 1 of group 0 had failed"
    )
    assert batch.metrics["train/episodes_error"] == 1
    assert batch.metrics["train/episodes"] == 5
    assert batch.metrics["train/reward"] == pytest.approx(3 / 5), "an error is no reward of zero"


@pytest.mark.parametrize("lost", [[1.0, None, None], [None, None, None]], ids=["one left", "none left"])
def test_a_group_below_two_is_dropped_and_counted(lost: list[float | None]) -> None:
    batch = collect([lost, [0.0, 1.0, 0.0]])
    assert batch.rewards.tolist() == [0.0, 1.0, 0.0]
    assert batch.metrics["train/groups_dropped_errors"] == 1
    assert batch.metrics["train/groups_kept"] == 1


def test_an_episode_without_a_turn_cannot_train() -> None:
    bare = episode(0, 0, 1.0)
    bare.steps, bare.logprobs = [], []
    collection = Collection(2, False)
    collection.add(tasks(1), [bare, episode(0, 1, 0.0), episode(0, 2, 1.0)], None)
    assert len(collection.batch().sequences) == 2


def test_equal_groups_are_dropped_for_dapo_alone() -> None:
    rewards: list[list[float | None]] = [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [None, 1.0, 1.0]]
    kept = collect(rewards, dapo=True)
    assert kept.rewards.tolist() == [0.0, 1.0]
    assert kept.metrics["train/groups_dropped_equal"] == 3
    assert kept.metrics["train/success"] == pytest.approx(5 / 8), "metrics are of the whole rollout"
    everything = collect(rewards)
    assert len(everything.rewards) == 8
    assert everything.metrics["train/groups_dropped_equal"] == 0


def test_later_rounds_fill_up_and_the_surplus_is_counted() -> None:
    collection = Collection(3, True)
    collection.add(tasks(3), played([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), None)
    assert collection.missing == 2
    collection.add(tasks(3), played([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), None)
    assert collection.missing == 0
    batch = collection.batch()
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2], "a question of a later round is a group of its own"
    assert batch.rewards.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert batch.metrics["train/groups_surplus"] == 1
    assert batch.metrics["train/groups_dropped_equal"] == 2
    assert batch.metrics["train/episodes"] == 12


def test_the_control_permutes_rewards_and_nothing_else() -> None:
    generator = random.Random(1)
    rewards: list[list[float | None]] = [[generator.choice([0.0, 1.0, None]) for _ in range(8)] for _ in range(6)]
    plain, shuffled, again = (collect(rewards, seed=seed) for seed in (None, 7, 7))
    assert sorted(plain.rewards.tolist()) == sorted(shuffled.rewards.tolist())
    assert plain.rewards.tolist() != shuffled.rewards.tolist()
    assert shuffled.rewards.tolist() == again.rewards.tolist()
    assert [s.tokens.tolist() for s in plain.sequences] == [s.tokens.tolist() for s in shuffled.sequences]
    assert plain.metrics == shuffled.metrics, "the log tells the true reward"


def test_the_batch_holds_what_was_played() -> None:
    batch = collect([[1.0, 0.0]])
    assert batch.sequences[1].steps.tolist() == [[3, 5], [9, 12]]
    assert batch.sequences[1].values["rollout_logprobs"].tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert batch.policy_versions.tolist() == [[4, 4]] * 2
    assert batch.episodes[0] == {
        "task_id": "task0", "question": "question 0", "outcome": "success",
        "turns": [{"text": "search x", "observation": "found x"}, {"text": "answer y", "observation": None}],
    }  # fmt: skip
    assert batch.metrics["train/turns"] == 2
    assert batch.metrics["train/tokens_per_episode"] == 12
    assert batch.metrics["train/malformed_actions"] == 1


def test_no_usable_group_gives_an_empty_batch() -> None:
    batch = collect([[1.0, 1.0], [None, None]], dapo=True)
    assert batch.sequences == []
    assert batch.rewards.shape == batch.groups.shape == (0,)
    assert batch.policy_versions.shape == (0, 2)


def test_an_episode_is_at_hand_for_a_message_and_rather_one_that_did_not_fail() -> None:
    batch = collect([[None, 1.0], [0.0, 0.0]], dapo=True)
    assert batch.sequences == []
    assert batch.example.splitlines() == [
        "  task task0, sample 1, success",
        "  turn 1 (stop): 'search x'",
        "  observation: 'found x'",
        "  turn 2 (stop): 'answer y'",
    ]
    assert "EngineError: gone" in collect([[None, None]]).example
    assert Collection(4, False).batch().example == ""


def test_of_a_long_episode_a_message_shows_the_beginning() -> None:
    long = episode(0, 0, 0.0)
    long.steps = [Step(3, 5, "x" * 100_000, "length", [], "page" * 100_000)] * 50
    collection = Collection(4, False)
    collection.add(tasks(1), [long], None)
    example = collection.batch().example
    assert len(example) < 4000
    assert "and 47 more turns" in example
