"""What `environment.settings` may say of Sokoban."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_empg.environments.text_worlds.settings import TextWorldSettings

RewardMode = Literal["success", "gym"]
SokobanRules = Literal["full", "short", "none"]
"""As `RulesTold` of the other worlds, with a short form between."""


class SokobanSettings(TextWorldSettings):
    """The defaults are those of the field's comparisons (ARLArena, arXiv 2602.21534, after verl-agent), in which
    episodes have 15 turns (`environment.max_turns`)."""

    size: Annotated[int, Field(ge=3, le=10)] = 6
    """Rows and columns of a room, the walls around it counted."""
    boxes: Annotated[int, Field(ge=1, le=4)] = 1
    """Boxes, and as many targets."""
    least_steps: Annotated[int, Field(ge=1)] = 1
    """Steps that a room's shortest solution has at least."""
    most_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps that it has at most; as many as fit into an episode unless it is given, and never more."""
    least_pushes: Annotated[int, Field(ge=1)] = 1
    """Steps of it that move a box, at least."""
    moves_per_turn: Annotated[int, Field(ge=1, le=20)] = 1
    """Steps that one command may hold, separated by "||"."""
    reward: RewardMode = "success"
    """What is earned: `success_reward` for a solved room and nothing else, or what gym-sokoban gives for each step
    (-0.1), a box on its target (+1) or off it again (-1), and the solved room (+10)."""
    rules: SokobanRules = "full"
    """What the policy is told beside the room: "full" explains the symbols and the game as the field's prompts do,
    "short" says it in three lines, "none" is for a policy that was warmed up on the bare rooms."""
    train_rooms: Annotated[int, Field(ge=1)] = 10_000
    """Rooms of the split train."""
    test_rooms: Annotated[int, Field(ge=1)] = 1000
    """Rooms of the splits test_id and test_ood, each."""
    expert_mistakes: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Chance that the scripted agent takes a step which is not the best one. Its mistakes leave the room solvable
    within the turns of an episode, and it finds its way back."""
