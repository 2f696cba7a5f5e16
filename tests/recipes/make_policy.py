"""Makes policies/*, the small models that stand for published ones in rehearsals (ten minutes of a core each).

    python -m tests.recipes.make_policy instruct
    python -m tests.recipes.make_policy instruct_tools

The miniature's policy gets what such models have and it lacks: an output layer of its own and an even number of
layers, so that two pipeline stages of two chunks can share them; for tools also their chat template, and words of
their own for what a call consists of. The new layer adds nothing at first. Then the policy learns, from
walkthroughs under the environment's instructions, to act on them. It is stored in bfloat16.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, bfloat16, zeros_like

from megatron_empg.recipe import load_recipe
from tests.recipes.launches import environment
from tests.recipes.prepared_miniature import data_words, prepare_miniature
from tests.recipes.recipe_files import ROOT
from tests.recipes.stand_ins import INSTRUCT, INSTRUCT_TOOLS, MINIATURE
from tests.recipes.tool_words import learn_words, with_call_tags, words_of_tools

RUNS = ROOT / "runs"
POSITIONS = 2048
"""The instructions alone take half of the miniature's 1024."""
ROWS = 128
"""The embeddings' rows are a multiple of it; some are no token's, as in published models."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """`surer`: factor of the output layer, where sampling at temperature 1 would else succeed too seldom."""

    folder: Path
    surer: float
    extended: Callable[[Path], None]
    words: Callable[[], list[str]]

    @property
    def recipe(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}_sft.yaml")


def main() -> None:
    kind = KINDS[sys.argv[1]]
    start, run = (RUNS / f"rehearsal_{kind.folder.name}{part}" for part in ("_start", ""))
    grow(MINIATURE, start)
    kind.extended(start)
    command = [sys.executable, "-m", "megatron_empg.cli", "sft", str(kind.recipe), *kind.words()]
    subprocess.run([*command, f"model.path={start}", f"run.folder={run}"], env=environment(), cwd=ROOT, check=True)
    tensors = load_file(run / "policy/model.safetensors")
    tensors["lm_head.weight"] *= kind.surer
    write(tensors, like=start, folder=kind.folder)
    print(f"policy: {kind.folder}")


def grow(source: Path, destination: Path) -> None:
    """The source's policy with one layer more and an output layer that is a copy of its embeddings."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
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
    write_json(destination / "config.json", config)
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})


def with_tools(folder: Path) -> None:
    """Give the model in a folder the chat template of Qwen2.5's kind, and tokens for the words of tool calls.

    A new token begins as the mean of those that it replaces.
    """
    from tests.support.tokenizers_for_tests import QWEN25

    state = with_call_tags(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    made = learn_words(state, words_of_tools(QWEN25))
    write_json(folder / "tokenizer.json", state)
    settings = (folder / "tokenizer_config.json").read_text(encoding="utf-8").replace('search>"', 'tool_call>"')
    write_json(folder / "tokenizer_config.json", {**json.loads(settings), "chat_template": QWEN25})
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = with_rows(tensors[name], made)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "vocab_size": len(tensors["lm_head.weight"])})


def with_rows(weight: Tensor, made: dict[int, list[int]]) -> Tensor:
    """A row more for each new token, and rows of 0 up to a multiple of `ROWS`."""
    count = max(made) + 1
    grown = torch.zeros(-(-count // ROWS) * ROWS, weight.shape[1], dtype=weight.dtype)
    grown[: len(weight)] = weight
    for token, parts in made.items():
        grown[token] = grown[parts].mean(dim=0)
    return grown


def prepared_words() -> list[str]:
    """Overrides that name the prepared miniature's questions and index."""
    folder = RUNS / "rehearsal_prepared"
    shutil.rmtree(folder, ignore_errors=True)
    prepare_miniature(folder)
    return data_words(load_recipe(ROOT / "recipes/deepsearch_7b.yaml"), folder)


def write(tensors: Tensors, *, like: Path, folder: Path) -> None:
    """A model folder of these tensors in bfloat16, with the configuration and tokenizer of ``like``."""
    shutil.copytree(like, folder, dirs_exist_ok=True)
    stored = {name: tensor.to(bfloat16) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


KINDS = {
    "instruct": Kind(INSTRUCT, 1.5, lambda folder: None, lambda: []),  # 46%, and 25% without a factor
    "instruct_tools": Kind(INSTRUCT_TOOLS, 1.3, with_tools, prepared_words),  # 46%, and 37% without
}


if __name__ == "__main__":
    main()
