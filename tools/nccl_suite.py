"""Are the collectives right, as fast as they should be, and if not: which rank, node or link is at fault?

    srun python tools/nccl_suite.py --recipe recipes/NAME.yaml --json nccl.json --heat-map nccl.png
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT tools/nccl_suite.py --layout tensor=8
    torchrun --nproc-per-node 4 tools/nccl_suite.py --backend gloo --layout tensor=2,pipeline=2

Exit code: 0 nothing found, 1 faults, 2 bad arguments or environment, 3 cut off (a rank missing, out of time).
docs/nccl_suite.md explains the output.
"""

import argparse
import math
import os
import sys
from pathlib import Path

from megatron_empg.cluster.nccl_suite.layout import LayoutError, parse_layout
from megatron_empg.cluster.nccl_suite.session import PlantedFault
from megatron_empg.cluster.nccl_suite.suite import SECTIONS, SuiteOptions, run_suite
from megatron_empg.cluster.place import PlaceError
from megatron_empg.recipe import RecipeError, load_recipe


def finite(text: str) -> float:
    """The type of a numeric option: finite, and not negative. Raises ValueError."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backend", choices=("nccl", "gloo"), help="default: nccl where CUDA is, else gloo")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--recipe", type=Path, help="test the groups of this recipe's layout")
    layout.add_argument("--layout", default="", help="the same by hand: tensor=2,pipeline=2,context=1,expert=1")
    add("--max-bytes", type=int, help="largest size (default: 1 GiB over nccl, 64 MiB over gloo)")
    add("--only", default=",".join(SECTIONS), help="sections to run, with commas (default: %(default)s)")
    add("--trainers", type=int, help="ranks that send weights to all others (default: half)")
    add("--stress-minutes", type=finite, default=0.0, help="repeat everything for so long")
    add("--slow-below", type=finite, help="a pair below this part of the rest is slow (nccl: 0.7, gloo: 0.35)")
    add("--least-pair", type=finite, help="GB/s that every pair must reach")
    add("--step-limit", type=finite, default=60.0, help="seconds a single step may take (default: %(default)s)")
    add(
        "--start-limit", type=finite, default=600.0, help="seconds until all ranks have met (default: %(default)s)"
    )
    add("--time-limit", type=finite, default=1800.0, help="seconds for everything (default: %(default)s)")
    add("--inject", nargs=2, metavar=("corrupt|delay|missing", "RANK"), help="plant a fault that must be found")
    add("--json", type=Path, help="write the findings here")
    add("--heat-map", type=Path, help="draw the bandwidth between pairs here (.png or .svg)")
    return parser


def options(parser: argparse.ArgumentParser) -> SuiteOptions:
    given = parser.parse_args()
    sections = tuple(filter(None, given.only.split(",")))
    if unknown := sorted(set(sections) - set(SECTIONS)):
        parser.error(f"--only has {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    inject = None
    if given.inject:
        kind, rank = given.inject
        if kind not in ("corrupt", "delay", "missing") or not rank.isdigit():
            parser.error(f"--inject {kind} {rank}: first corrupt, delay or missing, then a rank")
        inject = PlantedFault(kind, int(rank))
        finds = {"corrupt": {"correctness", "transfer"}, "delay": {"late"}, "missing": set(SECTIONS)}[kind]
        if not finds & set(sections):
            parser.error(f"--inject {kind} is found by {' or '.join(sorted(finds))}, which --only leaves out")
    backend = given.backend
    if backend != "gloo":
        import torch

        if backend == "nccl" and not torch.cuda.is_available():
            parser.error("--backend nccl needs CUDA, and this machine has none; --backend gloo runs on CPU")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    layout = load_recipe(given.recipe).actor if given.recipe else parse_layout(given.layout)
    return SuiteOptions(
        backend=backend,
        layout=layout,
        max_bytes=given.max_bytes,
        sections=sections,
        trainers=given.trainers,
        stress_minutes=given.stress_minutes,
        slow_below=given.slow_below,
        least_pair=given.least_pair,
        step_limit=given.step_limit,
        start_limit=given.start_limit,
        time_limit=given.time_limit,
        inject=inject,
        json=given.json,
        heat_map=given.heat_map,
    )


def main() -> int:
    try:
        return run_suite(options(arguments()))
    except (LayoutError, PlaceError, RecipeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a backend that still waits for a lost peer must not hold the job
