"""What is kept of a run: its line, by its folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from megatron_empg.common.json_files import object_or_nothing
from megatron_empg.run.evaluations import read_answered
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import read_metrics
from megatron_empg.study.cells import Cell
from megatron_empg.study.errors import StudyError
from megatron_empg.study.results import Ending, RunResult

DIAGNOSTICS = (
    "policy/entropy",
    "empg/h_norm_mean",
    "empg/h_norm_std",
    "empg/g_q05",
    "empg/g_q95",
    "empg/bonus_share",
)
DIGITS = 4
"""Decimals of a curve: a batch has some hundred episodes."""


def success(record: dict[str, Any]) -> dict[str, float]:
    """{series: share} of all questions of an evaluation that a record of metrics.jsonl holds.

    >>> success({"eval/test_id/greedy": 0.5, "eval/test_id/greedy/room": 0.5, "eval/test_id/greedy_questions": 2})
    {'test_id/greedy': 0.5}
    """
    found = {}
    for key, value in record.items():
        _, _, series = key.partition("eval/")
        if series.count("/") == 1 and series.endswith(("/sampled", "/greedy")):
            found[series] = value
    return found


def seconds_of(records: Sequence[dict[str, Any]]) -> int:
    """Seconds of steps and evaluations."""
    return round(sum(record.get("time/step", 0) + record.get("time/evaluate", 0) for record in records))


def commits_of(folder: RunFolder) -> str:
    """The commits of the run's starts, each once."""
    starts = object_or_nothing(folder.versions).get("starts", [])
    commits = [start.get("commit") or "of no repository" for start in starts]
    return ", ".join(dict.fromkeys(commits))


def result_of(cell: Cell, identity: str, folder: RunFolder, ended: Ending, why: str = "") -> RunResult:
    """The line of a run that has ended. Raises StudyError for a finished one that was not evaluated before and
    after, question by question."""
    records = read_metrics(folder)
    last = 0
    if records:
        last = int(records[-1]["step"])
    answered = read_answered(folder)
    before = {one.series: one.answered for one in answered if one.step == 0}
    after = {one.series: one.answered for one in answered if one.step == last and last > 0}
    if ended == "finished":
        _check_evaluated(cell, before, after)
    trained = [record for record in records if record["step"] > 0]
    return RunResult(
        cell.task,
        cell.method,
        cell.seed,
        identity,
        ended,
        why=why,
        before=_shares(before),
        after=_shares(after),
        answered_before=before,
        answered_after=after,
        steps=len(trained),
        episodes=round(sum(record.get("train/episodes", 0) for record in trained)),
        seconds=seconds_of(records),
        diagnostics=_diagnostics(trained),
        curve=[_rounded(record.get("train/success")) for record in trained],
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commits_of(folder),
    )


def _check_evaluated(cell: Cell, before: dict[str, str], after: dict[str, str]) -> None:
    if not before or set(before) != set(after):
        raise StudyError(
            f"{cell.name}: evaluated on {sorted(before)} before the first step and on {sorted(after)} behind the "
            "last one; both are needed, question by question: remove its folder, and it is made again"
        )


def _shares(answered: dict[str, str]) -> dict[str, float]:
    return {series: digits.count("1") / len(digits) for series, digits in answered.items()}


def _diagnostics(trained: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Those that the last step has."""
    if not trained:
        return {}
    found = {}
    for name in DIAGNOSTICS:
        value = trained[-1].get(name)
        if value is not None:
            found[name] = float(f"{value:.6g}")
    return found


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    return round(value, DIGITS)
