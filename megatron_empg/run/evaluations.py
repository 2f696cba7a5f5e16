"""Which questions a run's evaluations found answered: RUN/evaluations.jsonl.

The questions of a split are the same in every evaluation and in every run of one recipe, in one order. So runs can
be compared question by question.
"""

from dataclasses import asdict, dataclass

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.run.folder import RunFolder


@dataclass(frozen=True)
class Answered:
    """One pass of an evaluation, after so many steps. Example: ``Answered(0, "test_id/sampled", "0110")``."""

    step: int
    series: str
    answered: str
    """A digit for each question in the order asked: 1 where it was answered."""


def write_answered(folder: RunFolder, passed: Answered) -> None:
    """Add a pass; nothing where nobody noted the single questions."""
    if passed.answered:
        append_line(folder.evaluations, asdict(passed))


def read_answered(folder: RunFolder) -> list[Answered]:
    """The passes so far, in order."""
    return [Answered(**line) for line in read_lines(folder.evaluations)]
