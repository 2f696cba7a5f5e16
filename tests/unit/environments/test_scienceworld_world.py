"""What an episode makes of the engine's answers, with an engine that is told what to answer."""

from dataclasses import dataclass, field

import pytest

from megatron_empg.environments.scienceworld.engine import CommandOutcome
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.variations import Variation
from megatron_empg.environments.scienceworld.world import LONGEST_COMMAND, NO_COMMAND, ScienceWorldWorld


@dataclass
class ToldEngine:
    """Answers with the outcomes that it was given, in order."""

    outcomes: list[CommandOutcome]
    asked: list[str] = field(default_factory=list)
    listed: int = 0

    def load(self, variation, simplifications):
        self.loaded = (variation, simplifications)
        return 7

    def step(self, simulation, command):
        assert simulation == 7
        self.asked.append(command)
        return self.outcomes.pop(0)

    def surroundings(self, simulation):
        return f"room after {len(self.asked)}"

    def objects(self, simulation):
        self.listed += 1
        return ["door", "sink"]

    def commands(self, simulation):
        self.listed += 1
        return ["open door", "activate sink"]

    def broke_inside(self, simulation):
        return None


def played(scores, completed=False, **settings):
    """The scenes of an episode whose scores are these; `completed` is said of the last."""
    outcomes = [CommandOutcome(f"seen {i}", score, False) for i, score in enumerate(scores)]
    outcomes[-1] = CommandOutcome("seen last", scores[-1], completed)
    engine = ToldEngine(outcomes)
    world = ScienceWorldWorld(engine, Variation("boil", 3), ScienceWorldSettings(**settings))
    scenes = [world.begin()]
    scenes += [world.act("wait1") for _ in scores[1:]]
    return engine, scenes


def test_an_episode_begins_by_looking_around():
    engine, (scene,) = played([0])
    assert engine.loaded == (Variation("boil", 3), "easy")
    assert engine.asked == ["look around"]
    assert (scene.observation, scene.done, scene.reward) == ("seen last", False, 0.0)
    assert scene.choices == ("door", "sink")
    assert scene.anchor == "room after 1"


def test_a_solved_task_earns_the_reward_once():
    _, scenes = played([0, 33, 67, 100], completed=True, success_reward=10.0)
    assert [scene.reward for scene in scenes] == [0, 0, 0, 10]
    assert [scene.done for scene in scenes] == [False, False, False, True]
    assert scenes[-1].success is True
    assert [scene.info["score"] for scene in scenes] == [0, 33, 67, 100]


def test_a_failed_task_ends_without_reward():
    _, scenes = played([0, 33, -100])
    assert scenes[-1].done
    assert scenes[-1].success is False
    assert scenes[-1].reward == 0.0
    assert scenes[-1].info["score"] == -100


@pytest.mark.parametrize(
    ("scores", "completed", "rewards"),
    [
        ([0, 33, 33, 100], True, [0, 3.3, 0, 6.7]),
        ([0, 50, -100], False, [0, 5, -5]),
        ([0, -100], False, [0, 0]),
        ([8, 8, 40], False, [0, 0.8, 3.2]),
        ([0, 60, 20], False, [0, 6, -4]),  # the command "reset task"
    ],
)
def test_rewards_by_score_add_up_to_its_share(scores, completed, rewards):
    _, scenes = played(scores, completed=completed, reward="score")
    assert [scene.reward for scene in scenes] == pytest.approx(rewards)
    assert sum(scene.reward for scene in scenes) == pytest.approx(max(scores[-1], 0) / 10)


def test_a_score_that_rounds_to_100_is_no_success_before_the_task_is_completed():
    _, scenes = played([0, 100])
    assert not scenes[-1].done
    assert scenes[-1].reward == 0.0


@pytest.mark.parametrize(
    ("choices", "listed"),
    [("none", ()), ("templates", ("door", "sink")), ("valid", ("open door", "activate sink"))],
)
def test_only_the_choices_that_are_wanted_are_asked_for(choices, listed):
    engine, scenes = played([0, 0], choices=choices)
    assert scenes[1].choices == listed
    assert engine.listed == (0 if choices == "none" else 2)


def test_a_question_which_is_meant_is_a_state_of_its_own():
    engine = ToldEngine(
        [CommandOutcome("a room", 0, False), CommandOutcome("Ambiguous request: 0: this 1: that", 0, False)]
    )
    world = ScienceWorldWorld(engine, Variation("boil", 0), ScienceWorldSettings())
    world.begin()
    assert world.act("take it").anchor == "room after 2\nAmbiguous request: 0: this 1: that"


def test_long_observations_are_cut():
    engine = ToldEngine([CommandOutcome("a wall " * 1000, 0, False)])
    scene = ScienceWorldWorld(
        engine, Variation("boil", 0), ScienceWorldSettings(observation_characters=300)
    ).begin()
    assert len(scene.observation) <= 300


def test_a_command_that_is_too_long_never_reaches_the_engine():
    engine = ToldEngine([CommandOutcome("a room", 40, False)])
    world = ScienceWorldWorld(engine, Variation("boil", 0), ScienceWorldSettings())
    world.begin()
    scene = world.act("open door " * (LONGEST_COMMAND // 5))
    assert (scene.observation, scene.done, scene.reward) == (NO_COMMAND, False, 0.0)
    assert scene.info["score"] == 40
    assert engine.asked == ["look around"]


def test_half_a_surrogate_pair_reaches_the_engine_as_a_question_mark():
    engine = ToldEngine([CommandOutcome("a room", 0, False), CommandOutcome("what?", 0, False)])
    world = ScienceWorldWorld(engine, Variation("boil", 0), ScienceWorldSettings())
    world.begin()
    world.act("open \ud800")
    assert engine.asked[-1] == "open ?"
