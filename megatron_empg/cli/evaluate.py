"""`empg evaluate`: policies on fixed questions."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cli.arguments import Overrides, RecipePath
from megatron_empg.common.options import number

Models = Annotated[
    list[Path] | None,
    typer.Option(
        help="A model folder, a run or a checkpoint instead of the recipe's model.path; several are compared "
        "with the first."
    ),
]
Splits = Annotated[list[str] | None, typer.Option(help="test_id or test_ood; again for both.")]
Questions = Annotated[int | None, typer.Option(min=1, help="Fixed questions of each split.")]
Samples = Annotated[int, typer.Option(min=1, max=1024, help="Of each question, in sampled decoding.")]
Temperature = Annotated[float | None, typer.Option(callback=number(above=0), help="Of sampled decoding.")]
Greedy = Annotated[bool | None, typer.Option("--greedy/--no-greedy", help="Also in greedy decoding.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of sampling and of the intervals.")]
Document = Annotated[
    Path | None, typer.Option("--json", help="Every outcome, and a place to go on from when interrupted.")
]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]


def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    model: Models = None,
    split: Splits = None,
    questions: Questions = None,
    samples: Samples = 1,
    temperature: Temperature = None,
    greedy: Greedy = None,
    seed: Seed = None,
    json: Document = None,
    markdown: AsMarkdown = False,
) -> None:
    """Success on the recipe's fixed evaluation questions, with intervals, without training."""
    from megatron_empg.evaluate.launch import launch_evaluation
    from megatron_empg.evaluate.options import EvaluationOptions

    options = EvaluationOptions(
        models=tuple(model or ()),
        splits=tuple(split or ()),
        questions=questions,
        samples=samples,
        temperature=temperature,
        greedy=greedy,
        seed=seed,
        json_path=json,
        markdown=markdown,
    )
    launch_evaluation(recipe, overrides or [], options)
