"""Which played episodes train, and how many were met on the way."""

import random

import pytest

from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.rollout.episode import Episode, Turn
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.collect import Collection
from megatron_empg.run.episode_text import EpisodeText, TurnText
from tests.support.episodes import episode, tasks

EVERY, UNEQUAL = Grpo().keeps, Dapo().keeps


def played(rewards: list[list[float | None]]) -> list[Episode]:
    return [episode(g, s, reward) for g, row in enumerate(rewards) for s, reward in enumerate(row)]


def collect(
    rewards: list[list[float | None]], *, wanted: int = 8, dapo: bool = False, seed: int | None = None
) -> Batch:
    collection = Collection(wanted, UNEQUAL if dapo else EVERY)
    collection.add(tasks(len(rewards)), played(rewards), seed)
    return collection.batch()


def test_errors_never_train_and_leave_the_rest_of_their_group() -> None:
    batch = collect([[1.0, None, 0.0], [0.0, 1.0, 1.0]])
    assert batch.experience.rewards.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert batch.experience.groups.tolist() == [0, 0, 1, 1, 1]
    first_tokens = [sample.tokens[0].item() for sample in batch.experience.samples]
    assert first_tokens == [0, 20, 100, 110, 120], "sample 1 of group 0 had failed"
    assert batch.metrics["train/episodes_error"] == 1
    assert batch.metrics["train/episodes"] == 5
    assert batch.metrics["train/reward"] == pytest.approx(3 / 5), "an error is not a reward of zero"


@pytest.mark.parametrize("lost", [[1.0, None, None], [None, None, None]], ids=["one left", "none left"])
def test_a_group_below_two_is_dropped_and_counted(lost: list[float | None]) -> None:
    batch = collect([lost, [0.0, 1.0, 0.0]])
    assert batch.experience.rewards.tolist() == [0.0, 1.0, 0.0]
    assert batch.metrics["train/groups_dropped_errors"] == 1
    assert batch.metrics["train/groups_kept"] == 1


def test_an_episode_without_a_turn_cannot_train() -> None:
    bare = episode(0, 0, 1.0)
    bare.turns, bare.logprobs = [], []
    collection = Collection(2, EVERY)
    collection.add(tasks(1), [bare, episode(0, 1, 0.0), episode(0, 2, 1.0)], None)
    assert collection.batch().episodes == 2


def test_equal_groups_are_dropped_for_dapo_alone() -> None:
    rewards: list[list[float | None]] = [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [None, 1.0, 1.0]]
    kept = collect(rewards, dapo=True)
    assert kept.experience.rewards.tolist() == [0.0, 1.0]
    assert kept.metrics["train/groups_dropped_equal"] == 3
    assert kept.metrics["train/success"] == pytest.approx(5 / 8), "metrics are of the whole rollout"
    everything = collect(rewards)
    assert everything.episodes == 8
    assert everything.metrics["train/groups_dropped_equal"] == 0


def test_later_rounds_fill_up_and_the_surplus_is_counted() -> None:
    collection = Collection(3, UNEQUAL)
    collection.add(tasks(3), played([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), None)
    assert collection.missing == 2
    collection.add(tasks(3), played([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), None)
    assert collection.missing == 0
    batch = collection.batch()
    groups = batch.experience.groups.tolist()
    assert groups == [0, 0, 1, 1, 2, 2], "a question of a later round is a group of its own"
    assert batch.experience.rewards.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert batch.metrics["train/groups_surplus"] == 1
    assert batch.metrics["train/groups_dropped_equal"] == 2
    assert batch.metrics["train/episodes"] == 12


def test_the_control_permutes_rewards_and_nothing_else() -> None:
    generator = random.Random(1)
    rewards: list[list[float | None]] = [[generator.choice([0.0, 1.0, None]) for _ in range(8)] for _ in range(6)]
    plain, shuffled, again = (collect(rewards, seed=seed) for seed in (None, 7, 7))
    assert sorted(plain.experience.rewards.tolist()) == sorted(shuffled.experience.rewards.tolist())
    assert plain.experience.rewards.tolist() != shuffled.experience.rewards.tolist()
    assert shuffled.experience.rewards.tolist() == again.experience.rewards.tolist()
    tokens = [[s.tokens.tolist() for s in batch.experience.samples] for batch in (plain, shuffled)]
    assert tokens[0] == tokens[1]
    assert plain.metrics == shuffled.metrics, "the log tells the true reward"


def test_under_the_control_no_turn_tells_of_its_own_reward() -> None:
    """The last turn has what the episode was given, so that the turns still add up to it."""
    rewards: list[list[float | None]] = [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]
    plain, shuffled = (collect(rewards, seed=seed).experience for seed in (None, 7))
    assert plain.turn_rewards[::2].tolist() == (0.25 * plain.rewards).tolist()
    assert shuffled.turn_rewards[::2].tolist() == [0.0] * 8
    assert shuffled.turn_rewards[1::2].tolist() == shuffled.rewards.tolist()


def test_the_batch_holds_what_was_played() -> None:
    batch = collect([[1.0, 0.0]])
    experience = batch.experience
    assert experience.samples[1].turns.tolist() == [[3, 5], [9, 12]]
    assert experience.rollout_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5] * 2)
    assert experience.truncated.tolist() == [False, True]
    assert experience.episode_of_turn.tolist() == [0, 0, 1, 1]
    assert experience.turn_lengths.tolist() == [2, 3, 2, 3]
    assert experience.turn_rewards.tolist() == [0.25, 0.75, 0.0, 0.0]
    assert experience.anchors.tolist() == [0, -7, 0, -7]
    assert experience.cut.tolist() == [False, True, False, True]
    assert experience.episode_of_sample.tolist() == [0, 1]
    assert [turn.tolist() for turn in experience.gold] == [[100, 7]] * 2
    assert batch.policy_versions.tolist() == [[4, 4]] * 2
    turns = [TurnText("search x", "found x"), TurnText("answer y", None)]
    assert batch.texts[0] == EpisodeText("task0", "question 0", "success", turns, reward=1.0)
    assert batch.metrics["train/turns"] == 2
    assert batch.metrics["train/tokens_per_episode"] == 12
    assert batch.metrics["train/malformed_actions"] == 1


def test_no_usable_group_gives_an_empty_batch() -> None:
    batch = collect([[1.0, 1.0], [None, None]], dapo=True)
    assert batch.experience.samples == []
    experience = batch.experience
    assert experience.rewards.shape == experience.groups.shape == experience.turn_rewards.shape == (0,)
    assert batch.policy_versions.shape == (0, 2)


def readable(rewards: list[list[float | None]], shown: int) -> Batch:
    collection = Collection(8, UNEQUAL, shown, lambda episode: f"prompt of {episode.task_id}")
    collection.add(tasks(len(rewards)), played(rewards), None)
    return Batch.from_bytes(collection.batch().to_bytes(shown))


def test_readers_get_the_prompts_of_the_episodes_they_are_shown() -> None:
    batch = readable([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], shown=2)
    prompts = [text.prompt if text is not None else None for text in batch.texts]
    assert prompts == ["prompt of task0", None, "prompt of task1", None, None, None]
    assert batch.untrained == []


def test_where_nothing_is_trained_on_readers_see_what_was_played() -> None:
    batch = readable([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [None, None]], shown=3)
    assert batch.episodes == 0
    said = [(text.task_id, text.outcome, text.error, text.prompt) for text in batch.untrained]
    assert said == [
        ("task3", "error", "EngineError: gone", "prompt of task3"),
        ("task0", "success", None, "prompt of task0"),
        ("task1", "truncated", None, "prompt of task1"),
        ("task2", "truncated", None, "prompt of task2"),
    ]


def test_beside_enough_to_learn_from_readers_see_failures_alone_one_of_a_kind() -> None:
    batch = readable([[1.0, 0.0, None, None], [1.0, 1.0]], shown=1)
    assert [text.error for text in batch.untrained] == ["EngineError: gone"]


def test_without_readers_nothing_is_kept_for_them() -> None:
    assert readable([[1.0, 1.0], [None, None]], shown=0).untrained == []


def test_an_episode_is_at_hand_for_a_message_and_rather_one_that_did_not_fail() -> None:
    batch = collect([[None, 1.0], [0.0, 0.0]], dapo=True)
    assert batch.experience.samples == []
    assert batch.example.splitlines() == [
        "  task task0, sample 1, success",
        "  turn 1 (stop): 'search x'",
        "  observation: 'found x'",
        "  turn 2 (length): 'answer y'",
    ]
    assert "EngineError: gone" in collect([[None, None]]).example
    assert Collection(4, EVERY).batch().example == ""


def test_no_number_of_the_run_is_an_environments_to_say() -> None:
    collection = Collection(8, EVERY)
    collection.add(tasks(1), played([[1.0, 0.0]]), None)
    collection.source_metrics = {"train/reward": 9.0, "environment/rooms": 2.0}
    metrics = collection.batch().metrics
    assert metrics["train/reward"] == 0.5
    assert metrics["environment/rooms"] == 2.0


def test_of_a_long_episode_a_message_shows_the_beginning() -> None:
    long = episode(0, 0, 0.0)
    long.turns = [Turn(3, 5, "x" * 100_000, "length", [], "page" * 100_000, anchor=0)] * 50
    collection = Collection(4, EVERY)
    collection.add(tasks(1), [long], None)
    example = collection.batch().example
    assert len(example) < 4000
    assert "and 47 more turns" in example
