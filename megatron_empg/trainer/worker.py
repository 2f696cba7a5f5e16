"""One trainer rank, started by torchrun: ``python -m megatron_empg.trainer.worker sft|train RECIPE``."""

import sys
from pathlib import Path

import torch

from megatron_empg.processes import die_with_parent
from megatron_empg.recipe import SftRecipe, load_recipe


def main() -> None:
    die_with_parent()
    torch.set_num_threads(1) if not torch.cuda.is_available() else None
    kind, path = sys.argv[1], Path(sys.argv[2])
    if kind == "sft":
        from megatron_empg.trainer.sft import run_sft

        run_sft(load_recipe(path, kind=SftRecipe))


if __name__ == "__main__":
    main()
