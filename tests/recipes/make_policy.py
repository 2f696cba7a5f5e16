"""Makes policies/instruct, the small model that stands for a published one in rehearsals (ten minutes on a core).

    python tests/recipes/make_policy.py

The miniature's policy gets what such models have and it lacks: an output layer of its own and an even number of
layers, so that two pipeline stages of two chunks can share them. The new layer adds nothing at first. Then the
policy learns, from walkthroughs under the environment's instructions, to act on them. It is stored in bfloat16.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from launches import environment
from recipe_files import ROOT
from safetensors.torch import load_file, save_file
from stand_ins import INSTRUCT, MINIATURE
from torch import Tensor, bfloat16, zeros_like

RECIPE = Path(__file__).parent / "policies/instruct_sft.yaml"
RUNS = ROOT / "runs"
POSITIONS = 2048
"""The instructions alone take half of the miniature's 1024."""
SURER = 1.5
"""Factor of the output layer: success sampled at temperature 1 is 46% with it, and 25% without."""


def main() -> None:
    start, run = RUNS / "rehearsal_instruct_start", RUNS / "rehearsal_instruct"
    grow(MINIATURE, start)
    command = [sys.executable, "-m", "megatron_empg.cli", "sft", str(RECIPE)]
    subprocess.run([*command, f"model.path={start}", f"run.folder={run}"], env=environment(), cwd=ROOT, check=True)
    tensors = load_file(run / "policy/model.safetensors")
    tensors["lm_head.weight"] *= SURER
    write(tensors, like=start, folder=INSTRUCT)
    print(f"policy: {INSTRUCT}")


def grow(source: Path, destination: Path) -> None:
    """The source's policy with one layer more and an output layer that is a copy of its embeddings."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    layers = config["num_hidden_layers"]
    for name, tensor in list(tensors.items()):
        before, last, after = name.partition(f"layers.{layers - 1}.")
        if last:
            silent = after in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            tensors[f"{before}layers.{layers}.{after}"] = zeros_like(tensor) if silent else tensor.clone()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    config |= {
        "num_hidden_layers": layers + 1,
        "tie_word_embeddings": False,
        "max_position_embeddings": POSITIONS,
        "torch_dtype": "bfloat16",
    }
    shutil.copytree(source, destination, dirs_exist_ok=True)
    (destination / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})


def write(tensors: dict[str, Tensor], *, like: Path, folder: Path) -> None:
    """A model folder of these tensors in bfloat16, with the configuration and tokenizer of ``like``."""
    shutil.copytree(like, folder, dirs_exist_ok=True)
    stored = {name: tensor.to(bfloat16) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
