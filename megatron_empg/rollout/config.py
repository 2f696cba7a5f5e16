"""What a recipe says of the rollout: how episodes are sampled, and what an evaluation asks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_empg.common.section import Mark, NonNegative, Positive, Section
from megatron_empg.common.values import PathText
from megatron_empg.rollout.chat_use import HistoryKind

# vLLM samples at 0.01 where less is asked for, and the actor would divide its logits by something else.
Temperature = Annotated[float, Field(ge=0.01, le=100)]
HeldOut = Literal["test_id", "test_ood"]
HELD_OUT: tuple[HeldOut, ...] = ("test_id", "test_ood")


class RolloutConfig(Section):
    """How the episodes of a batch are sampled, and how many."""

    groups: Positive
    """Questions per batch; each is answered `group_size` times."""
    group_size: Positive
    """Episodes of one question, whose rewards are compared with each other; at least 2."""
    temperature: Temperature = 1.0
    """Sampling temperature, 0.01 to 100; the actor divides its logits by the same number. Never with top-p or
    top-k."""
    max_turn_tokens: Annotated[Positive, Mark.DECIDES_EPISODES] = 512
    """A turn longer than this is cut; the end-of-turn token then comes from the template."""
    max_episode_tokens: Annotated[Positive, Mark.DECIDES_EPISODES] = 16384
    """Prompt, turns and observations together; an episode that would be longer ends as truncated. Where each
    turn is a sequence of its own (worlds of windowed prompts, `history` strip): what one turn reads, and the
    turn."""
    history: Annotated[HistoryKind, Mark.DECIDES_EPISODES] = "keep"
    """What the policy reads of its earlier turns: `keep` is all of them, and an episode is one sequence; `strip`
    leaves out their thoughts (up to ``</think>``), as the templates of thinking models do, and every turn is a
    sequence of its own, with everything before it for a prompt."""
    concurrency: Annotated[Positive, Mark.MAY_CHANGE] = 256
    """Episodes in flight at once, over all engines."""
    max_lag: NonNegative = 0
    """Versions of the policy that a token may be older than the one that is trained. 0: a batch is played by the
    newest weights, and the trainer waits for it. Above: groups are played beside score, update and sync."""
    keep_all_batches: Annotated[bool, Mark.MAY_CHANGE] = False
    """With `max_lag`: keep every batch in the run folder, not only those since its oldest checkpoint."""
    replay_from: PathText | None = None
    """With `max_lag`: a run folder whose batches are trained on again, in the place of new ones."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"rollout.group_size is {self.group_size}; a group advantage compares at least 2 episodes"
            )
        if self.max_turn_tokens >= self.max_episode_tokens:
            raise ValueError(
                f"rollout.max_turn_tokens is {self.max_turn_tokens}; it must be below "
                f"rollout.max_episode_tokens ({self.max_episode_tokens})"
            )
        if not self.max_lag and (self.keep_all_batches or self.replay_from is not None):
            key = "replay_from"
            if self.keep_all_batches:
                key = "keep_all_batches"
            raise ValueError(
                f"rollout.{key} is given with rollout.max_lag 0, where no batch is written down, since it follows "
                "from seed, step and weights: leave it out"
            )
        if self.keep_all_batches and self.replay_from is not None:
            raise ValueError(
                f"rollout.keep_all_batches is true with rollout.replay_from {self.replay_from}: a replay writes "
                "no batch down, for the other folder has them; leave rollout.keep_all_batches out"
            )
        return self


class EvaluationConfig(Section):
    """What an evaluation asks, how often, and in which decodings."""

    every: NonNegative = 0
    """Steps between evaluations; 0 evaluates only before and after training."""
    questions: NonNegative = 0
    """Fixed questions of each split; 0 switches evaluation off."""
    splits: list[HeldOut] = Field(default_factory=lambda: list(HELD_OUT))
    greedy: bool = True
    """Also measure greedy success, beside sampled success."""
    temperature: Annotated[Temperature, Mark.DECIDES_EPISODES] = 1.0
    """Of sampled success; it need not be `rollout.temperature`."""

    @model_validator(mode="after")
    def _splits_once_each(self) -> Self:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(
                f"evaluation.splits is {self.splits}; name each split once, at least one "
                "(evaluation.questions 0 switches evaluation off)"
            )
        return self

    def grid(self) -> list[tuple[HeldOut, bool]]:
        """(split, whether greedy) of every pass of an evaluation, in the order in which they are measured."""
        decodings = [False]
        if self.greedy:
            decodings = [False, True]
        return [(split, greedy) for split in self.splits for greedy in decodings]
