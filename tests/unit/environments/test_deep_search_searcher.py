"""The scripted searchers: one that never errs, one that errs at random, one with a habit."""

import functools

import pytest

from megatron_empg.environments import make_task_source
from tests.support.acting import begun, steps


@pytest.fixture(scope="module")
def searchers(miniature):
    @functools.cache
    def make(name, **settings):
        return make_task_source(
            "deep_search", corpus=miniature / "corpus.jsonl", searcher=name, searcher_settings=settings
        )

    return make


def success(source, tasks):
    """Share of walkthroughs that end right, each played again through a fresh episode."""
    rewards = []
    for seed, task in enumerate(tasks):
        episode, turns = begun(source.make(task)), source.walkthrough(task, seed).turns
        results = steps(episode, [turn.action for turn in turns])
        assert [result.observation for result in results] == [turn.observation for turn in turns]
        assert results[-1].done
        assert not any(result.malformed for result in results)
        assert len(turns) <= 8
        rewards.append(results[-1].reward)
    return sum(rewards) / len(rewards)


@pytest.mark.parametrize("split", ["train", "test_id", "test_ood"])
def test_a_flawless_searcher_finds_every_fact(searchers, split):
    source = searchers("flawless")
    some = source.tasks(split)[::25]
    assert success(source, some) >= 0.999


def test_the_fallible_searcher_errs_part_of_the_time(searchers):
    source = searchers("fallible")
    assert 0.40 < success(source, source.sample("train", 800, 0)) < 0.58


def test_the_habit_is_wrong_most_of_the_time_but_not_always_followed(searchers):
    always = searchers("habit", habit=1.0, stop_early=0.0, wrong_relation=0.0, skip_visit=0.0, vague_query=0.0)
    tasks = [task for task in always.sample("train", 800, 0) if task.payload["hops"] <= 3]
    assert 0.3 < success(always, tasks) < 0.6
    assert success(always, [task for task in tasks if task.payload["hops"] == 3]) == 0.0
    assert not any("<visit>" in action for task in tasks for action, *_ in always.walkthrough(task, 0).turns)
    usual = searchers("habit")
    assert success(always, tasks) + 0.03 < success(usual, tasks) < 0.7
    # About 9%: enough right decisions in the walkthroughs for a policy to sample one now and then.
    assert success(usual, [task for task in tasks if task.payload["hops"] == 3]) > 0.04


def test_walkthroughs_answer_within_the_turns_of_an_episode(miniature):
    source = make_task_source("deep_search", corpus=miniature / "corpus.jsonl", searcher="flawless", max_turns=3)
    turns = [source.walkthrough(task, 0).turns for task in source.sample("train", 200, 0)]
    assert {len(found) for found in turns} <= {1, 2, 3}
    assert max(map(len, turns)) == 3
    assert all("<answer>" in found[-1].action for found in turns)
