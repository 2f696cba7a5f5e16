"""What the rollout service answers in the place of a batch while engines wait for weights; light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

WANTS_WEIGHTS = 202
"""Status of such an answer: what was asked for is under way."""
UNTOLD = 412
"""Status of the answer of a service that was started again and knows of no weights yet."""

PASSES = 503
"""Status of the answer that what was asked for failed, of something that may be otherwise another time."""


class TrainerNews(Enum):
    """What the trainer tells, in the order in which a service that was started again must be told."""

    ENGINES = "engines"
    """Which engines hold which weights."""
    STREAM = "stream"
    """Where the stream of groups begins."""


@dataclass(frozen=True)
class StaleEngines:
    """The engines at these `urls` answer, and hold other weights than the policy's.

    The trainer sends them its weights, them alone, and asks again: what it asked for goes on meanwhile. Where none
    is named it only asks again, as the service has been started anew.
    """

    urls: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        return {"urls": list(self.urls)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> StaleEngines:
        """Raises KeyError for what `to_json` never made."""
        return cls(tuple(given["urls"]))
