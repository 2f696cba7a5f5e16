"""Evaluations of `empg evaluate` as results: what each policy of a document was found to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from megatron_empg.common.json_files import JsonFileError, object_or_nothing, read_object
from megatron_empg.common.section import Section
from megatron_empg.common.values import faults_of
from megatron_empg.common.wilson import Interval
from megatron_empg.recipe import Recipe, RecipeError, parse_recipe
from megatron_empg.report.table.errors import TableError
from megatron_empg.report.table.measured import Pass, PassResult, Share
from megatron_empg.report.table.methods import Method
from megatron_empg.report.table.names import Decoding
from megatron_empg.report.table.results import Result, recipe_of_run
from megatron_empg.run.folder import RunFolder

FORMAT, VERSION = "megatron_empg evaluation", 1
"""As docs/evaluation.md has them."""
UNKNOWN = Method(None)


class _Read(Section):
    """A part of a document; what the table has no use for is left aside."""

    model_config = ConfigDict(extra="ignore")


class _Ends(_Read):
    low: float
    high: float


class _Estimate(_Read):
    value: float
    interval: _Ends


class _Figures(_Read):
    questions: int
    samples: int
    mean: _Estimate
    errors: dict[str, int]

    @property
    def share(self) -> Share:
        interval = Interval(self.mean.interval.low, self.mean.interval.high)
        return Share(self.mean.value, self.questions, interval)


class _Pass(_Read):
    split: str
    decoding: Decoding
    all: _Figures
    by_kind: dict[str, _Figures]


class _Policy(_Read):
    label: str
    folder: str
    source: str
    figures: list[_Pass]


class _Document(_Read):
    samples: int
    recipe: dict[str, Any]
    policies: list[_Policy]


def results_of_document(path: Path) -> list[Result]:
    """One for each policy. Raises TableError for a file that is no evaluation of this release."""
    document = _read(path)
    try:
        asked = parse_recipe(document.recipe)
    except RecipeError as error:
        raise TableError(f"{path}: the recipe that it was made with is none of this release: {error}") from None
    return [_result(path, document, policy, asked) for policy in document.policies]


def _read(path: Path) -> _Document:
    try:
        content = read_object(path)
    except JsonFileError as error:
        raise TableError(
            f"{error}. Give folders of `empg train`, or documents that `empg evaluate --json` wrote"
        ) from None
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise TableError(
            f"{path} is not an evaluation of this release: its format is {content.get('format')!r}, version "
            f"{content.get('version')!r}, not {FORMAT!r}, {VERSION}. Give what `empg evaluate --json` wrote"
        )
    try:
        return _Document.model_validate(content)
    except ValidationError as error:
        raise TableError(f"{path}: {faults_of(error)[0]}; make the evaluation again") from None


def _result(path: Path, document: _Document, policy: _Policy, asked: Recipe) -> Result:
    name = f"{policy.label} in {path}"
    passes = _passes(policy)
    run = run_around(Path(policy.folder))
    if run is None or not isinstance(trained := recipe_of_run(run), Recipe):
        model = asked.model.model_copy(update={"path": Path(policy.folder)})
        recipe = asked.model_copy(update={"model": model})
        return Result(name, str(path), recipe, UNKNOWN, 0, passes, document.samples)
    step = _step_of(policy, run, trained)
    recipe = trained.model_copy(update={"environment": asked.environment, "evaluation": asked.evaluation})
    return Result(
        name=name,
        source=str(path),
        recipe=recipe,
        method=Method.of(trained),
        step=step,
        passes=passes,
        samples=document.samples,
        identity=_identity(run, asked, trained),
        notes=tuple(_notes(asked, trained, step)),
    )


def _identity(run: RunFolder, asked: Recipe, trained: Recipe) -> Mapping[str, Any]:
    """The run's, unless it was asked in another environment than it was trained in, of which it says nothing."""
    if asked.environment.name != trained.environment.name:
        return {}
    return object_or_nothing(run.identity)


def _passes(policy: _Policy) -> dict[Pass, PassResult]:
    found: dict[Pass, PassResult] = {}
    for one in policy.figures:
        kinds = {kind: figures.share for kind, figures in one.by_kind.items()}
        errors = sum(one.all.errors.values())
        found[one.split, one.decoding] = PassResult(one.all.share, kinds, errors)
    return found


def run_around(folder: Path) -> RunFolder | None:
    """The run that a policy, or a checkpoint, is a part of; None where there is none any more."""
    for place in (folder, *list(folder.parents)[:2]):
        run = RunFolder(place)
        if run.recipe.is_file():
            return run
    return None


def _step_of(policy: _Policy, run: RunFolder, trained: Recipe) -> int:
    """By the checkpoint's name, or by what was noted of the exported policy."""
    for part in reversed(Path(policy.source).parts):
        if named := re.fullmatch(r"step_(\d+)", part):
            return int(named[1])
    return run.exported_step(default=trained.run.steps)


def _notes(asked: Recipe, trained: Recipe, step: int) -> list[str]:
    found = []
    if step < trained.run.steps:
        found.append(f"unfinished: the policy that was evaluated is of step {step} of {trained.run.steps}")
    if asked.environment.name != trained.environment.name:
        found.append(f"it was trained in {trained.environment.name}")
    return found
