"""What `environment.settings` may say of ScienceWorld."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from megatron_empg.environments.scienceworld.commands import SIMPLIFICATIONS
from megatron_empg.environments.scienceworld.variations import all_tasks
from megatron_empg.environments.text_worlds.settings import RulesTold, TextWorldSettings

Splits = Literal["published", "epo", "unseen_tasks"]
Choices = Literal["none", "templates", "valid"]
RewardMode = Literal["success", "score"]
LEAST_CHARACTERS = 200


class ScienceWorldSettings(TextWorldSettings):
    """The defaults are those of EPO's comparison (arXiv 2509.22576) but for `splits` and `drawn`. It has 30 turns
    (`environment.max_turns`)."""

    simplifications: str = "easy"
    """What is made simpler, separated by commas: teleportAction, openDoors, openContainers,
    selfWateringFlowerPots, noElectricalAction. "easy" is all of them but openContainers, and keeps the electrical
    commands where the task is about electricity; an empty text makes nothing simpler."""
    splits: Splits = "published"
    """What is held out: "published" takes the engine's own parts of all 30 tasks (train, dev as test_id, test as
    test_ood); "epo" leaves out the task use-thermometer, as EPO does; "unseen_tasks" trains on 19 tasks, with the
    dev part of these as test_id and the test part of ten other tasks as test_ood (RLVMR, arXiv 2507.22844)."""
    tasks: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Names of tasks to keep to, such as [find-plant, boil]; all of the splits' unless it is given."""
    drawn: Literal["tasks", "variations"] = "tasks"
    """What has the same chance when tasks are drawn: each of the 30 tasks, or each variation, as in EPO: there the
    largest task makes up a fifth of all episodes."""
    choices: Choices = "templates"
    """What a turn is told of possible commands beside their forms: "templates" names all things that may be put
    into them, "valid" lists each command that would do something (hundreds or thousands, 25 to 50 thousand
    characters), "none" nothing."""
    rules: RulesTold = "full"
    """What is told beside the task and the scene: "full" names the commands and how a turn is written, "none" is
    for a policy that was warmed up on walkthroughs without."""
    reward: RewardMode = "success"
    """What is earned: `success_reward` for a solved task and nothing else, or its share at each rise of the score,
    in sum score / 100 of it; what fails the task takes all of that back."""
    observation_characters: Annotated[int, Field(ge=LEAST_CHARACTERS)] = 4000
    """Characters of an observation; the rest is cut."""

    @field_validator("simplifications")
    @classmethod
    def _known(cls, given: str) -> str:
        for name in filter(None, given.split(",")):
            if name != "easy" and name not in SIMPLIFICATIONS:
                allowed = ", ".join(("easy", *SIMPLIFICATIONS))
                raise ValueError(f"{name!r} is unknown; allowed, separated by commas without blanks: {allowed}")
        if "easy" in given.split(",") and given != "easy":
            raise ValueError('"easy" stands alone: the engine knows it only so')
        return given

    @field_validator("tasks")
    @classmethod
    def _are_there(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if given is None:
            return None
        if not given:
            raise ValueError("must name a task, or be left out")
        for name in given:
            if name not in all_tasks():
                raise ValueError(f"{name!r} is not a task; there are {', '.join(all_tasks())}")
        return given
