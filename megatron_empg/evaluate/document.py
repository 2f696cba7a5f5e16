"""An evaluation as a document: JSON with every outcome, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_empg.evaluate.comparison import (
    Comparison,
    compare,
    what_it_resolves,
    what_questions_resolve,
)
from megatron_empg.evaluate.figures import ALL_SPLITS, PassFigures, summarise
from megatron_empg.evaluate.policies import Policy
from megatron_empg.evaluate.questions import SampleOutcome
from megatron_empg.evaluate.table import compared_line, tables
from megatron_empg.recipe import Recipe

FORMAT, VERSION = "megatron_empg evaluation", 1


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy, all its outcomes, and what they amount to."""

    policy: Policy
    outcomes: list[SampleOutcome]
    figures: list[PassFigures]

    def to_json(self) -> dict[str, Any]:
        """The policy as docs/evaluation.md describes it."""
        return {
            "label": self.policy.label,
            "folder": str(self.policy.given),
            "source": str(self.policy.source),
            "fingerprint": self.policy.fingerprint,
            "figures": list(map(asdict, self.figures)),
            "outcomes": list(map(asdict, self.outcomes)),
        }


@dataclass(frozen=True)
class EvaluationDocument:
    """One evaluation. The first policy is the one that the others are compared with."""

    recipe: Recipe
    samples: int
    starts: list[dict[str, Any]]
    policies: list[EvaluatedPolicy]
    comparisons: list[Comparison]

    def to_json(self) -> dict[str, Any]:
        """The document as docs/evaluation.md describes it. `commit` is that of the last start."""
        settings = self.recipe.evaluation
        commit = None
        if self.starts:
            commit = self.starts[-1].get("commit")
        return {
            "format": FORMAT,
            "version": VERSION,
            "commit": commit,
            "starts": self.starts,
            "seed": self.recipe.run.seed,
            "splits": list(settings.splits),
            "questions": settings.questions,
            "samples": self.samples,
            "temperature": settings.temperature,
            "greedy": settings.greedy,
            "recipe": self.recipe.model_dump(mode="json"),
            "policies": [one.to_json() for one in self.policies],
            "comparisons": list(map(asdict, self.comparisons)),
        }

    def text(self, *, markdown: bool = False) -> str:
        """The tables, the comparisons, and what the number of questions can resolve."""
        found = {one.policy.label: one.figures for one in self.policies}
        drawn = tables(found, self.recipe.evaluation.temperature)
        lines = self._lines()
        if markdown:
            parts = [table.markdown() for table in drawn]
            lines = [f"- {line}" for line in lines]
        else:
            parts = [table.plain() for table in drawn]
        return "\n\n".join([*parts, "\n".join(lines)])

    def _lines(self) -> list[str]:
        if not self.comparisons:
            return [what_questions_resolve(self.recipe.evaluation.questions)]
        lines = []
        tested = 0
        for compared in self.comparisons:
            lines.append(f"{compared_line(compared)}. {what_it_resolves(compared)}")
            tested += compared.p_value is not None and compared.split != ALL_SPLITS
        if tested > 1:
            lines.append(
                f"p-values are of single comparisons: among {tested}, one below {0.05 / tested:.2g} counts as one "
                "below 0.05 alone (Bonferroni)."
            )
        return lines


def document(
    recipe: Recipe,
    samples: int,
    starts: list[dict[str, Any]],
    answered: Sequence[tuple[Policy, list[SampleOutcome]]],
) -> EvaluationDocument:
    """Everything that follows from the outcomes; the recipe's seed is the bootstraps' too."""
    seed = recipe.run.seed
    policies: list[EvaluatedPolicy] = []
    outcomes_of: dict[str, Sequence[SampleOutcome]] = {}
    for policy, outcomes in answered:
        policies.append(EvaluatedPolicy(policy, outcomes, summarise(outcomes, seed)))
        outcomes_of[policy.label] = outcomes
    first, *others = outcomes_of
    comparisons: list[Comparison] = []
    for other in others:
        comparisons += compare(first, other, outcomes_of, seed)
    return EvaluationDocument(recipe, samples, starts, policies, comparisons)
