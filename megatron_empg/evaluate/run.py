"""An evaluation from its command to its document; whoever runs it starts engines for each policy in turn."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from megatron_empg.common.files import put_text
from megatron_empg.evaluate.destination import make_folder, require_destination
from megatron_empg.evaluate.document import EvaluationDocument, document
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.figures import summarise
from megatron_empg.evaluate.options import EvaluationOptions, model_override
from megatron_empg.evaluate.play import play
from megatron_empg.evaluate.policies import Policy, converted, identity_of, policies_of, source_of
from megatron_empg.evaluate.questions import EvaluationPass, SampleOutcome, passes
from megatron_empg.evaluate.record import OutcomeRecord
from megatron_empg.evaluate.table import result_line
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from megatron_empg.recipe.check import check_recipe
from megatron_empg.rollout.service.rollout_service import RolloutService
from megatron_empg.run.folder import versions
from megatron_empg.weights.checkpoints.megatron_folder import is_megatron


class EvaluationRun:
    """What is asked of whom, checked before anything starts. Use as a context manager, then `ask` and `finish`.

    Raises RecipeError for a recipe or a model that cannot be, EvaluationError for policies, a file of outcomes or
    the document's place.
    """

    def __init__(self, path: Path, overrides: list[str], options: EvaluationOptions) -> None:
        self._path, self._words, self._options = path, [*overrides, *options.overrides()], options
        if options.json_path is not None:
            require_destination(options.json_path)
        self.recipe = load_recipe(path, self._words)
        if not self.recipe.evaluation.questions:
            raise RecipeError("evaluation.questions is 0; say how many fixed questions of each split to ask")
        folders = options.models or (self.recipe.model.path,)
        for folder in folders:
            source = source_of(folder)
            if not is_megatron(source):
                check_recipe(self._with_model(source))
        self.policies = policies_of(folders)
        self.passes = _passes(self.recipe, options.samples)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self.scratch = Path(opened.enter_context(TemporaryDirectory(prefix="empg_evaluate_")))
            if self._options.json_path is not None:
                make_folder(self._options.json_path, _say)
            outcomes = self._options.outcomes_path or self.scratch / "outcomes.jsonl"
            self.record = opened.enter_context(OutcomeRecord(outcomes, identity_of(self.recipe)))
            for policy in self.policies:
                self.record.note_policy(str(policy.given), policy.key)
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._options.json_path is not None and len(self.record):
            print(
                f"{len(self.record)} outcomes are in {self.record.path}; the same command goes on from them",
                file=sys.stderr,
            )
        self._open.close()

    def unanswered(self) -> list[Policy]:
        """Those of whom an outcome is missing."""
        return [policy for policy in self.policies if self._lacks(policy)]

    def recipe_of(self, policy: Policy) -> Recipe:
        """The recipe that its engines start by, checked. A Megatron checkpoint is converted aside first.

        Raises RecipeError and CheckpointError.
        """
        if not policy.megatron:
            return self._with_model(policy.source)
        kept = self._options.json_path
        if kept is None:
            place = self.scratch / "models"
        else:
            place = kept.with_suffix(".models")
        if not (place / policy.key).exists():
            print(f"{policy.label} is a Megatron checkpoint: converting it to {place / policy.key}", flush=True)
        recipe = self._with_model(converted(policy, place, like=self.recipe.model.path))
        check_recipe(recipe)
        return recipe

    async def ask(self, driver: RolloutService, policy: Policy) -> None:
        """Play what is missing of a policy, pass by pass, and print how each came out."""
        self.record.note_start(versions())
        label = ""
        if len(self.policies) > 1:
            label = policy.label
        for asked in self.passes:
            started = time.monotonic()
            outcomes = await play(driver, asked, policy.key, self.record, _say)
            (figures,) = summarise(outcomes, self.recipe.run.seed)
            _say(result_line(label, figures, time.monotonic() - started))

    def finish(self) -> EvaluationDocument:
        """The document of all outcomes: written, its tables printed."""
        answered = [(policy, self._outcomes(policy)) for policy in self.policies]
        made = document(self.recipe, self._options.samples, self.record.starts, answered)
        path = self._options.json_path
        if path is not None:
            put_text(path, json.dumps(made.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        _say("\n" + made.text(markdown=self._options.markdown))
        if path is not None:
            _say(f"\nevery outcome: {path}")
        return made

    def _with_model(self, folder: Path) -> Recipe:
        return load_recipe(self._path, [*self._words, model_override(folder)])

    def _lacks(self, policy: Policy) -> bool:
        return any(samples for asked in self.passes for samples in self.record.missing(policy.key, asked))

    def _outcomes(self, policy: Policy) -> list[SampleOutcome]:
        return [outcome for asked in self.passes for outcome in self.record.outcomes(policy.key, asked)]


def _passes(recipe: Recipe, samples: int) -> list[EvaluationPass]:
    """Raises RecipeError for an environment that cannot be, or questions that it does not have."""
    asked = recipe.evaluation
    with _faults_of("environment.settings"):
        source = recipe.task_source()
    with _faults_of(f"evaluation.questions is {asked.questions}"):
        return passes(source, asked, samples)


@contextmanager
def _faults_of(key: str) -> Iterator[None]:
    """What an environment raises, as a fault of a key of the recipe."""
    try:
        yield
    except EvaluationError:
        raise
    except (ValueError, OSError) as error:
        raise RecipeError(f"{key}: {error}") from None
    except Exception as error:  # a plug-in may fail in its own way
        raise RecipeError(f"{key}: {type(error).__name__}: {error}") from error


def _say(text: str) -> None:
    print(text, flush=True)
