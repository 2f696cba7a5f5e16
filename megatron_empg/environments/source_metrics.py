"""What a task source counts, among the metrics of a run: under names of its own, and finite numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_OWN = re.compile(r"environment/[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_JUDGE = re.compile(r"judge/[a-z_]+")


def metric_faults(counted: Mapping[str, Any]) -> list[str]:
    """What is wrong with it: a name that could be the run's own (`judge/` is of those that a judge writes), or a
    value that nobody could plot."""
    faults: list[str] = []
    for name, value in counted.items():
        if not isinstance(name, str) or not (_OWN.fullmatch(name) or _JUDGE.fullmatch(name)):
            fix = f"environment/{name}"
            faults.append(
                f"the metric {name!r:.80}, which is not an environment's name: begin with environment/ and go on "
                f"with letters, digits, _ . and -, as in {fix!r:.80}"
            )
        elif not isinstance(value, int | float) or not math.isfinite(value):
            faults.append(f"the metric {name!r} of the value {value!r:.40}; it must be a finite number")
    return faults
