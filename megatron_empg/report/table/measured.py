"""What an evaluation found: of each split and decoding, success of all questions and of each kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_empg.common.wilson import Interval, wilson
from megatron_empg.report.table.names import ALL_SPLITS, DECODINGS, Decoding

Pass = tuple[str, Decoding]
"""A split in one decoding."""
EVALUATED = "eval"
"""What the names of metrics of an evaluation begin with."""


@dataclass(frozen=True)
class Share:
    """Success of some questions; their number and the interval over them are None where that was not kept."""

    value: float
    questions: int | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class PassResult:
    """One split in one decoding."""

    all: Share
    by_kind: dict[str, Share] = field(default_factory=dict)
    errors: int = 0


def passes_of_metrics(record: Mapping[str, Any]) -> dict[Pass, PassResult]:
    """Those of a line of metrics.jsonl; empty where the step was not evaluated."""
    found: dict[Pass, dict[str, float]] = {}
    for name, value in record.items():
        first, *others = name.split("/", 2)
        if first != EVALUATED or len(others) != 2 or not _is_number(value):
            continue
        split, rest = others
        for decoding in DECODINGS:
            if rest == decoding or rest.startswith((f"{decoding}/", f"{decoding}_")):
                found.setdefault((split, decoding), {})[rest.removeprefix(decoding)] = float(value)
    made = {}
    for key, values in found.items():
        if "" in values:
            made[key] = _pass(values)
    return made


def _pass(values: Mapping[str, float]) -> PassResult:
    """`values`: by what stands behind the decoding in the metric's name, nothing for success."""
    questions = int(values.get("_questions", 0)) or None
    kinds = {}
    for name, value in values.items():
        if name.startswith("/"):
            kinds[name.removeprefix("/")] = Share(value)
    return PassResult(
        all=share_of(values[""], questions),
        by_kind=kinds,
        errors=int(values.get("_errors", 0)),
    )


def share_of(value: float, questions: int | None) -> Share:
    """A share with Wilson's interval over single samples of so many questions, where their number is known."""
    if questions is None or not 0 <= value <= 1:
        return Share(value, questions)
    return Share(value, questions, wilson(round(value * questions), questions))


def with_all_splits(results: Mapping[Pass, PassResult]) -> dict[Pass, PassResult]:
    """And all splits as one, of each decoding that has several; not where a split's questions were not kept."""
    found = dict(results)
    for decoding in DECODINGS:
        parts = [result for (_, own), result in results.items() if own == decoding]
        together = _pooled(parts)
        if len(parts) > 1 and together is not None:
            found.setdefault((ALL_SPLITS, decoding), together)
    return found


def _pooled(parts: Iterable[PassResult]) -> PassResult | None:
    """Of all questions together, each asked once; None where some number of questions is not known."""
    right, questions, errors = 0.0, 0, 0
    for part in parts:
        if part.all.questions is None:
            return None
        right += part.all.value * part.all.questions
        questions += part.all.questions
        errors += part.errors
    if not questions:
        return None
    return PassResult(share_of(right / questions, questions), errors=errors)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
