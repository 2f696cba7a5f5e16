"""When played episodes are worth stopping for, said with one of them."""

from collections import Counter
from collections.abc import Iterable, Sequence

from megatron_empg.common.errors import EmpgError
from megatron_empg.rollout.episode import Episode, LostPart
from megatron_empg.rollout.service.stale_engines import TrainerNews

SHOWN_TURNS = 3
SHOWN_CHARACTERS = 400


class RolloutServiceError(EmpgError, RuntimeError):
    """The episodes are not worth training on; the message says what happened to them and shows one."""


class EnginesLost(RolloutServiceError):
    """Too many episodes ended because no engine was left; once there are some again they may go well."""

    accident = True


class Untold(EmpgError, RuntimeError):
    """The service was started again, and has to be told what is `missing`."""

    def __init__(self, missing: TrainerNews, message: str) -> None:
        super().__init__(message)
        self.missing = missing


def refuse_errors(episodes: Sequence[Episode], most: float, when: str) -> None:
    """Raises RolloutServiceError if more than the share `most` of them ended in an error, or all did; EnginesLost
    where without those that no engine was left for they would not have been too many.
    """
    failed = [episode for episode in episodes if episode.outcome == "error"]
    if not too_many(len(failed), len(episodes), most):
        return
    told = told_errors([episode.error for episode in failed], len(episodes), most, when, shown(failed[0]))
    own = [episode for episode in failed if episode.lost is not LostPart.ENGINE]
    if too_many(len(own), len(episodes), most):
        raise RolloutServiceError(told)
    raise EnginesLost(told)


def too_many(errors: int, episodes: int, most: float) -> bool:
    """Whether more than the share `most` of the episodes ended in an error, or all did."""
    return errors > most * episodes or 0 < errors == episodes


def told_errors(errors: Sequence[str | None], episodes: int, most: float, when: str, example: str) -> str:
    """What to say of too many errors: how many of each kind, the limit, and the `example` of one."""
    kinds = kinds_of_errors(errors).most_common(5)
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds)
    return (
        f"{when}: {len(errors)} of {episodes} episodes ended in an error ({counted}), more than "
        f"limits.max_error_share ({most:g}) allows. One of them:\n{example}"
    )


def kinds_of_errors(errors: Iterable[str | None]) -> Counter[str]:
    """How many errors there are of each kind, which is what stands before the first colon."""
    found: Counter[str] = Counter()
    for error in errors:
        found[kind_of_error(error)] += 1
    return found


def kind_of_error(error: str | None) -> str:
    """What stands before the first colon."""
    return (error or "").partition(":")[0] or "error"


def refuse_malformed(episodes: Sequence[Episode], when: str) -> None:
    """Raises RolloutServiceError if the environment could read none of the turns."""
    judged = []
    examples = []
    for episode in episodes:
        own = [turn.malformed for turn in episode.turns if turn.malformed is not None]
        judged += own
        if any(own):
            examples.append(episode)
    if not judged or not all(judged):
        return
    raise RolloutServiceError(
        f"{when}: the environment could read none of the policy's {len(judged)} turns, so there is nothing to "
        "learn from. Does the policy know how to act here (a prompt that says so, or a supervised warm-up), and "
        f"do its turns fit into rollout.max_turn_tokens? One episode:\n{shown(examples[0])}"
    )


def shown(episode: Episode) -> str:
    """What a reader needs to see of it: task, end, and its first turns."""
    sample = f"task {episode.task_id}, sample {episode.sample}, {episode.outcome}"
    if episode.error:
        sample += f": {_short(episode.error)}"
    lines = [sample]
    for number, turn in enumerate(episode.turns[:SHOWN_TURNS], 1):
        lines.append(f"turn {number} ({turn.finish}): {_short(turn.text)!r}")
        if turn.observation is not None:
            lines.append(f"observation: {_short(turn.observation)!r}")
    if len(episode.turns) > SHOWN_TURNS:
        lines.append(f"... and {len(episode.turns) - SHOWN_TURNS} more turns")
    return "\n".join("  " + line for line in lines)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
