"""Makes policies/worlds, the small model that stands for published ones in worlds of text commands.

    PYTHONPATH=tools python -m tests.recipes.make_worlds_policy ALFWORLD_GAMES

ALFWORLD_GAMES is a folder of locally generated games (docs/alfworld.md). The tokenizer is trained on what policies
are told in each world by default. The model, tiny and random, then learns from Sokoban's walkthroughs how a turn
is written. That is all: in any world it writes turns that can be read, most of the time, and solves nothing. It is
stored in bfloat16.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from build_miniature import write_json
from safetensors.torch import load_file, save_file
from small_policy import Shape, played, write_model, write_tokenizer
from torch import bfloat16

from megatron_empg.environments.base import Message
from megatron_empg.environments.registry import make_task_source
from tests.recipes.launches import environment
from tests.recipes.recipe_files import ROOT

POLICY = Path(__file__).parent / "policies/worlds"
SHAPE = Shape(layers=4, hidden=64, heads=2, kv_heads=2, vocabulary=1024, context=2048)
"""Heads of 32, the smallest that vLLM computes on CPU."""
EPISODES = {"sokoban": 60, "webshop": 30, "scienceworld": 6, "alfworld": 6}
"""Walkthroughs of each world whose words the tokenizer knows."""


def main() -> None:
    games = Path(sys.argv[1])
    start, run = ROOT / "runs/worlds_start", ROOT / "runs/worlds"
    start.mkdir(parents=True, exist_ok=True)
    write_tokenizer(start, list(told(games)), SHAPE)
    write_model(start, SHAPE)
    untie(start)
    recipe = POLICY.with_name("worlds_sft.yaml")
    command = [sys.executable, "-m", "megatron_empg.cli", "sft", str(recipe)]
    words = [f"model.path={start}", f"run.folder={run}"]
    subprocess.run([*command, *words], env=environment(), cwd=ROOT, check=True)
    store(run / "policy", POLICY)
    print(f"policy: {POLICY}")


def told(games: Path) -> Iterator[Sequence[Message]]:
    """What policies read and write in each world."""
    for name, count in EPISODES.items():
        settings = {"data": str(games)} if name == "alfworld" else {}
        source = make_task_source(name, max_turns=15, **settings)
        yield from played(source, count)


def untie(folder: Path) -> None:
    """An output layer of its own, as models of 7B and more have."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tie_word_embeddings": False, "torch_dtype": "bfloat16"})


def store(trained: Path, folder: Path) -> None:
    """The trained model in bfloat16."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    tensors = load_file(trained / "model.safetensors")
    stored = {name: tensor.to(bfloat16) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
