"""Asking: what has no outcome yet is played, and recorded episode by episode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.questions import EvaluationPass, SampleOutcome, fingerprint_task
from megatron_empg.evaluate.record import OutcomeRecord
from megatron_empg.rollout.client import Sampling
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group
from megatron_empg.rollout.service.failures import shown, told_errors, too_many
from megatron_empg.rollout.service.rollout_service import EVALUATION_STEP, RolloutService

TOLD_SHARE = 0.1
"""Share of a pass after which it says how far it is."""
FEW_EPISODES = 50
"""A pass of fewer says nothing until it is over."""


async def play(
    driver: RolloutService, asked: EvaluationPass, policy: str, record: OutcomeRecord, note: Callable[[str], None]
) -> list[SampleOutcome]:
    """The outcomes of a pass, in the order asked; what the record lacks is played. Raises EvaluationError when
    more than `limits.max_error_share` of them are errors.

    Seeds follow from the recipe's seed, the question and the sample, as in training's own evaluations: policies
    meet the same questions with the same random numbers. A pass has no time limit, each of its episodes has one.
    """
    missing = record.missing(policy, asked)
    groups = []
    for index, (task, samples) in enumerate(zip(asked.tasks, missing, strict=True)):
        if samples:
            groups.append(Group(task, index, samples))
    if not groups:
        return record.outcomes(policy, asked)
    progress = _Progress(asked, sum(map(len, missing)), note)
    example = ""

    def ended(episode: Episode) -> None:
        nonlocal example
        record.add(policy, outcome_of(episode, asked))
        progress.count()
        if episode.outcome == "error" and not example:
            example = shown(episode)
        # An evaluation has many episodes, whose tokens nobody asks for any more.
        episode.tokens, episode.earlier, episode.logprobs, episode.turns = [], [], [], []

    temperature = 0.0
    if asked.decoding != "greedy":
        temperature = driver.config.evaluation.temperature
    sampling = Sampling(temperature=temperature)
    await driver.rollout.run_group_batch(groups, EVALUATION_STEP, sampling=sampling, on_episode=ended)
    found = record.outcomes(policy, asked)
    refuse_errors(found, driver.config.limits.max_error_share, asked.name, example)
    return found


def outcome_of(episode: Episode, asked: EvaluationPass) -> SampleOutcome:
    """What an evaluation keeps of an episode; `group` is the task's place in the pass."""
    task = asked.tasks[episode.group]
    return SampleOutcome(
        id=task.id,
        split=asked.split,
        decoding=asked.decoding,
        kind=task.kind,
        hops=task.hops,
        sample=episode.sample,
        success=episode.outcome == "success",
        end=episode.outcome,
        reward=float(episode.reward),
        turns=len(episode.turns),
        tokens=sum(turn.end - turn.start for turn in episode.turns),
        error=episode.error,
        question=fingerprint_task(task),
    )


def refuse_errors(outcomes: Sequence[SampleOutcome], most: float, name: str, example: str) -> None:
    """Raises EvaluationError if more than the share `most` ended in an error, or all did.

    `example` shows one of them, if it was played just now.
    """
    failed = [outcome for outcome in outcomes if outcome.end == "error"]
    if not too_many(len(failed), len(outcomes), most):
        return
    errors = [outcome.error for outcome in failed]
    first = failed[0]
    shown_one = example or f"  task {first.id}, sample {first.sample}, error: {first.error}"
    told = told_errors(errors, len(outcomes), most, name, shown_one)
    raise EvaluationError(f"{told}\nThat is not a measurement. With --json the same command plays them once more")


class _Progress:
    """A line after every tenth of a pass."""

    def __init__(self, asked: EvaluationPass, episodes: int, note: Callable[[str], None]) -> None:
        self._asked, self._episodes, self._note = asked, episodes, note
        self._played = 0
        self._told = 0
        self._began = time.monotonic()

    def count(self) -> None:
        self._played += 1
        tenths = int(self._played / (TOLD_SHARE * self._episodes))
        if self._episodes < FEW_EPISODES or tenths <= self._told:
            return
        self._told = tenths
        seconds = time.monotonic() - self._began
        self._note(f"  {self._asked.name}: {self._played}/{self._episodes} episodes in {seconds:.0f} s")
