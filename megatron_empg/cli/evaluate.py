"""`empg evaluate`: policies on fixed questions."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cli.arguments import Overrides, RecipePath
from megatron_empg.common.options import number


def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model folder, a run or a checkpoint instead of the recipe's model.path; several are compared "
            "with the first."
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="test_id or test_ood; again for both.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Fixed questions of each split.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=1024, help="Of each question, in sampled decoding.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(callback=number(above=0), help="Of sampled decoding.")
    ] = None,
    greedy: Annotated[bool | None, typer.Option("--greedy/--no-greedy", help="Also in greedy decoding.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of sampling and of the intervals.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Every outcome, and a place to go on from when interrupted.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
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
