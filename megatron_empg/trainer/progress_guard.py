"""A run that learns nothing must not go on unseen: batches too poor to train on, updates skipped, turns unread."""

from collections.abc import Callable

from megatron_empg.algorithms.base import Credit
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.trainer.errors import TrainingError


class ProgressGuard:
    """Counts what stands in a row, over this process's steps: a run that was resumed counts anew."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.idle_steps = 0
        self.skipped_updates = 0

    def check_batch(
        self, step: int, batch: Batch, credit: Credit, agree: Callable[[bool], bool] = lambda flag: flag
    ) -> bool:
        """Whether the step must train on nothing: the batch has fewer groups that masks and correction leave than
        `recipe.min_groups`, or no turn with an advantage among them.

        ``agree`` makes one answer of all ranks', which rounding might tell apart: collectives follow from it.
        Raises TrainingError when that came too often in a row, or when no turn of the batch could be read.
        """
        self._check_turns(step, batch)
        groups, limits = _groups_to_learn_from(batch, credit), self._recipe.limits
        if agree(groups >= self._recipe.min_groups):
            self.idle_steps = 0
            return False
        self.idle_steps += 1
        if self.idle_steps > limits.max_idle_steps:
            raise TrainingError(
                f"step {step}: the batch has {groups} groups to learn from, fewer than {self._recipe.min_groups} "
                f"(limits.min_groups), as the {self.idle_steps - 1} steps before it had (limits.max_idle_steps "
                f"{limits.max_idle_steps}): {_why(batch, credit)}{_example(batch)}"
            )
        return True

    def check_updates(self, step: int, applied: list[bool]) -> None:
        """Raises TrainingError when too many optimizer steps in a row were skipped."""
        limit = self._recipe.limits.max_skipped_updates
        for was_applied in applied:
            self.skipped_updates = 0 if was_applied else self.skipped_updates + 1
            if self.skipped_updates > limit:
                raise TrainingError(
                    f"step {step}: {self.skipped_updates} optimizer steps in a row were skipped, since loss or "
                    f"gradient was not finite; limits.max_skipped_updates is {limit}: the policy has diverged or "
                    "its weights are broken; go on from an earlier checkpoint with a lower actor.optimizer.lr"
                )

    def _check_turns(self, step: int, batch: Batch) -> None:
        numbers = batch.metrics
        malformed = numbers.get("train/malformed_actions", 0.0)
        turns = round(numbers.get("train/turns", 0.0) * numbers.get("train/episodes", 0.0))
        if turns and malformed >= turns:
            raise TrainingError(
                f"step {step}: none of the batch's {turns} turns held an action that the environment could read: "
                "the policy does not know the environment's format, so nothing can be rewarded; tell it in the "
                f"prompt, or begin with `empg sft`{_example(batch)}"
            )


def _groups_to_learn_from(batch: Batch, credit: Credit) -> int:
    """The groups of which the policy loss weighs a token above 0; none when every advantage that it sees is 0, as
    where GRPO meets equal rewards alone."""
    experience = batch.experience
    turns = experience.turn_of_token[credit.kept & (credit.loss_weights > 0)].unique()
    if not credit.turns[turns].any():
        return 0
    return len(experience.groups[experience.episode_of_turn[turns]].unique())


def _example(batch: Batch) -> str:
    """An episode, on the rank that has its text."""
    return f". One of the episodes:\n{batch.example}" if batch.example else ""


def _why(batch: Batch, credit: Credit) -> str:
    """What the batch's own numbers say of where its groups went."""
    reasons = {
        "train/groups_dropped_equal": "dropped since all their rewards were equal",
        "train/groups_dropped_errors": "lost to errors",
    }
    numbers = [(batch.metrics.get(name, 0.0), words) for name, words in reasons.items()]
    said = [f"{count:g} groups were {words}" for count, words in numbers if count]
    masked = int((~credit.kept).sum())
    if masked:
        said.append(f"algorithm.masks left out {masked} of {len(credit.kept)} tokens")
    rejected = int((credit.kept & (credit.loss_weights == 0)).sum())
    if rejected:
        said.append(f"algorithm.correction rejected {rejected} of {len(credit.kept)} tokens")
    reward = batch.metrics.get("train/reward")
    mean = f"the mean reward was {reward:g}" if reward is not None else "no episode got a reward"
    return ", ".join([*said, mean])
