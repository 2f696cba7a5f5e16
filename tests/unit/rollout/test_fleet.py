import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.rollout.fleet import EngineState, Fleet, NoHealthyEngine


def test_assigns_the_least_loaded():
    fleet = Fleet(["a", "b"])
    assert [fleet.assign() for _ in range(4)] == ["a", "b", "a", "b"]
    fleet.release("b")
    assert fleet.assign() == "b"


def test_dead_engine_comes_back_only_with_new_weights():
    fleet = Fleet(["a", "b"])
    fleet.declare_dead("a")
    assert fleet.healthy() == ["b"]
    assert fleet.answering() == ["b"]
    fleet.came_back("a")
    assert fleet.engines["a"].state is EngineState.STALE
    assert fleet.healthy() == ["b"]
    assert fleet.answering() == ["a", "b"]
    fleet.refitted(["a", "b"], 3)
    assert fleet.healthy() == ["a", "b"]
    assert {engine.version for engine in fleet.engines.values()} == {3}


def test_engine_that_missed_the_weights_is_stale():
    fleet = Fleet(["a", "b"])
    fleet.refitted(["a"], 1)
    assert fleet.engines["b"].state is EngineState.STALE
    assert [fleet.assign() for _ in range(2)] == ["a", "a"]


def test_no_healthy_engine_says_what_each_is():
    fleet = Fleet(["a", "b"])
    fleet.declare_dead("a")
    fleet.declare_dead("b")
    fleet.came_back("b")
    with pytest.raises(NoHealthyEngine, match=r"a dead, b stale"):
        fleet.assign()


def test_older_weights_are_refused():
    fleet = Fleet(["a"], version=5)
    with pytest.raises(ValueError, match="version 4 are older"):
        fleet.refitted(["a"], 4)


EVENTS = st.lists(st.tuples(st.sampled_from(["die", "back", "refit", "assign"]), st.sampled_from("abc")))


@given(EVENTS)
def test_an_assigned_engine_always_holds_the_policy(events):
    fleet = Fleet("abc", 0)
    version = 0
    for event, url in events:
        if event == "die":
            fleet.declare_dead(url)
        elif event == "back":
            fleet.came_back(url)
        elif event == "refit":
            version += 1
            fleet.refitted([u for u in fleet.answering() if u != url], version)
        elif fleet.healthy():
            engine = fleet.engines[fleet.assign()]
            assert engine.state is EngineState.HEALTHY
            assert engine.version == version
