"""A question as its publishers give it, and what is wrong with a file that cannot be read."""

from dataclasses import dataclass
from pathlib import Path

from megatron_empg.common.errors import EmpgError


@dataclass(frozen=True)
class PublishedQuestion:
    """A question and every answer that counts as right.

    `type` is the dataset's own word for it ("bridge", "3hop1"), "all" where it has none. `hops`
    is how many facts are chained, None where the dataset does not say. For instance
    ``PublishedQuestion("musique/2hop__17_4", "Who …?", ("Ada Lind",), "2hop", 2, "musique")``.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    type: str
    hops: int | None
    dataset: str


class QuestionDataError(EmpgError, ValueError):
    """A file of questions is broken. The message names the file, the place, what is there and what should be."""

    def __init__(self, path: Path, place: str, fault: str):
        if place:
            where = f"{path}, {place}"
        else:
            where = str(path)
        super().__init__(f"{where}: {fault}")
