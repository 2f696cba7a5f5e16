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
from megatron_empg.evaluate.questions import Outcome
from megatron_empg.evaluate.table import compared_line, tables
from megatron_empg.recipe import Recipe

FORMAT, VERSION = "megatron_empg evaluation", 1


@dataclass(frozen=True)
class Evaluated:
    """A policy, all its outcomes, and what they amount to."""

    policy: Policy
    outcomes: list[Outcome]
    figures: list[PassFigures]


@dataclass(frozen=True)
class Document:
    """One evaluation. The first policy is the one that the others are compared with."""

    recipe: Recipe
    samples: int
    starts: list[dict[str, Any]]
    policies: list[Evaluated]
    comparisons: list[Comparison]

    def to_json(self) -> dict[str, Any]:
        """As docs/evaluation.md describes it. `commit` is that of the last start."""
        settings = self.recipe.evaluation
        return {
            "format": FORMAT,
            "version": VERSION,
            "commit": self.starts[-1].get("commit") if self.starts else None,
            "starts": self.starts,
            "seed": self.recipe.run.seed,
            "splits": list(settings.splits),
            "questions": settings.questions,
            "samples": self.samples,
            "temperature": settings.temperature,
            "greedy": settings.greedy,
            "recipe": self.recipe.model_dump(mode="json"),
            "policies": [
                {
                    "label": one.policy.label,
                    "folder": str(one.policy.given),
                    "source": str(one.policy.source),
                    "fingerprint": one.policy.fingerprint,
                    "figures": [asdict(figures) for figures in one.figures],
                    "outcomes": [asdict(outcome) for outcome in one.outcomes],
                }
                for one in self.policies
            ],
            "comparisons": [asdict(compared) for compared in self.comparisons],
        }

    def text(self, *, markdown: bool = False) -> str:
        """The tables, the comparisons, and what the number of questions can resolve."""
        found = {one.policy.label: one.figures for one in self.policies}
        drawn = tables(found, self.recipe.evaluation.temperature)
        parts = [table.markdown() if markdown else table.plain() for table in drawn]
        lines = self._lines()
        parts.append("\n".join(f"- {line}" for line in lines) if markdown else "\n".join(lines))
        return "\n\n".join(parts)

    def _lines(self) -> list[str]:
        if not self.comparisons:
            return [what_questions_resolve(self.recipe.evaluation.questions)]
        lines = []
        for compared in self.comparisons:
            lines.append(f"{compared_line(compared)}. {what_it_resolves(compared)}")
        single = [one for one in self.comparisons if one.p_value is not None and one.split != ALL_SPLITS]
        if len(single) > 1:
            lines.append(
                f"p-values are of single comparisons: among {len(single)}, one below {0.05 / len(single):.2g} "
                "counts as one below 0.05 alone (Bonferroni)."
            )
        return lines


def document(
    recipe: Recipe, samples: int, starts: list[dict[str, Any]], answered: Sequence[tuple[Policy, list[Outcome]]]
) -> Document:
    """Everything that follows from the outcomes; the recipe's seed is the bootstraps' too."""
    seed = recipe.run.seed
    policies = [Evaluated(policy, outcomes, summarise(outcomes, seed)) for policy, outcomes in answered]
    comparisons: list[Comparison] = []
    outcomes_of: dict[str, Sequence[Outcome]] = {one.policy.label: one.outcomes for one in policies}
    for other in policies[1:]:
        comparisons += compare(policies[0].policy.label, other.policy.label, outcomes_of, seed)
    return Document(recipe, samples, starts, policies, comparisons)
