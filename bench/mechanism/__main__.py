"""What entropy modulation has to act on, measured on a recipe's policy as it is before training.

    python -m bench.mechanism quickstart recipes/quickstart.yaml
    python -m bench.mechanism hops recipes/hops.yaml rollout.groups=4
    python -m bench.mechanism --report

The policy plays batches of episodes, and every turn's gradient with respect to all parameters is taken. Told are:
how turn entropies are spread; the gradient's size and the update's noise by entropy; whether the clarity of the
next turn says success, given the state; and what each modulation does to an update: its size, direction and gain.
It is for policies of a few million parameters.

Batches and blocks that are there are not made again: the same command goes on after any end. A task's line goes to
docs/study/mechanism.jsonl, of which `--report` makes docs/study/mechanism.md and its charts.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from bench.mechanism.play import keep_identity, play, policy_of, recipe_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/study/mechanism.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", help="the name of its line")
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--batches", type=int, default=200, help="a multiple of 10, at least 40")
    parser.add_argument("--folder", type=Path, help="of batches and blocks; runs/mechanism/TASK")
    parser.add_argument("--processes", type=int, default=2, help="that take gradients at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="make the page of the lines; measure nothing")
    given = parser.parse_args()
    if given.report:
        from bench.mechanism.page import write_page

        for path in write_page(given.results):
            print(path)
        return
    if given.task is None or given.recipe is None:
        parser.error("give a name and a recipe, e.g. quickstart recipes/quickstart.yaml, or --report")
    if given.batches < 40 or given.batches % 10:
        parser.error(f"--batches is {given.batches}: give a multiple of 10, at least 40 (two blocks in each half)")
    from bench.mechanism.blocks import BLOCK, bin_edges
    from bench.mechanism.gradients import TurnGradients
    from bench.mechanism.measuring import measure_all

    folder = given.folder or ROOT / "runs/mechanism" / given.task
    recipe = recipe_of(given.recipe, given.overrides, folder)
    keep_identity(folder, recipe)
    asyncio.run(play(recipe, folder, given.batches, lambda line: print(line, flush=True)))
    policy, blocks = recipe.model.path, given.batches // BLOCK
    edges = bin_edges(folder, TurnGradients(policy)).tolist()
    measure_all(folder, policy, edges, blocks, given.processes)
    _find(given, folder, policy, edges, blocks)


def _find(given: argparse.Namespace, folder: Path, policy: Path, edges: list[float], count: int) -> None:
    from bench.mechanism.blocks import block_path, read_block
    from bench.mechanism.findings import Origin, add_findings, findings_of
    from bench.mechanism.measuring import SECONDS
    from megatron_empg.common.jsonl import read_lines
    from megatron_empg.run.folder import versions

    blocks = [read_block(block_path(folder, number)) for number in range(count)]
    origin = Origin(
        task=given.task,
        recipe=str(given.recipe),
        overrides=given.overrides,
        policy=policy_of(policy),
        commit=str(versions()["commit"]),
        minutes=sum(line["seconds"] for line in read_lines(folder / SECONDS)) / 60,
    )
    add_findings(given.results, findings_of(origin, blocks, edges))
    print(f"{given.results}: the line of {given.task} is there", flush=True)


if __name__ == "__main__":
    main()
