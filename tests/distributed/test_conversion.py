"""Hugging Face → Megatron → Hugging Face, bit for bit: through ranks, through files, through both."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_empg.weights.checkpoints.conversion import to_hugging_face, to_megatron
from tests.distributed.actor_cases import answer, fresh_actor, run_cases, weights_of
from tests.distributed.ranks import run_ranks
from tests.support.models import SHAPES, save_random_model

VOCABULARY = {"qwen2": 1003, "llama": 1100}  # the second is padded to 1152, 1280 and 1536 by TP 1, 2 and 4
LENGTHS = (41, 23)


@dataclass(frozen=True)
class Case:
    """A model in a layout: scores and exports what it loaded from Hugging Face's folder; so from Megatron's."""

    shape: str
    layout: dict[str, Any] = field(default_factory=dict)
    saves: bool = False
    """Whether it also writes a checkpoint of training, optimizer and all."""

    @property
    def __name__(self) -> str:
        return " ".join([self.shape, *(f"{name}={value}" for name, value in self.layout.items())])

    def __call__(self, folder: Path) -> dict[str, Any]:
        from megatron.core import dist_checkpointing

        from megatron_empg.actor.checkpoint import Checkpoints
        from megatron_empg.algorithms.sample import Sample

        actor = fresh_actor(folder, self.layout, model=f"{self.shape}/hugging_face")
        whole = [Sample(tokens, torch.tensor([[1, len(tokens)]])) for tokens in sequences(self.shape)]
        scores = [score.logprobs for score in actor.score(whole)]
        exported = weights_of(actor)
        if self.saves:
            checkpoints = Checkpoints(actor, folder / self.shape / "training", keep=1)
            checkpoints.save(1)
            checkpoints.wait()
        actor.initialise_weights(seed=1)
        actor.load_weights(folder / self.shape / "megatron")
        again = weights_of(actor)
        actor.initialise_weights(seed=1)
        state = [_tensors(chunk.module.sharded_state_dict()) for chunk in actor.model]
        loaded = dist_checkpointing.load(
            dict(enumerate(state)), str(folder / self.shape / "megatron" / "megatron")
        )
        for number, chunk in enumerate(actor.model):
            chunk.module.load_state_dict(loaded[number], strict=False)
        return {"scores": scores, "exported": exported, "again": again, "by_megatron": weights_of(actor)}


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Without the layers' extra states: a checkpoint of weights alone has none."""
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def sequences(shape: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, VOCABULARY.get(shape, 301), (length,), generator=generator) for length in LENGTHS]


TP2_PP2 = {"tensor": 2, "pipeline": 2}
FOUR = [
    Case("qwen2", TP2_PP2, saves=True),
    *(Case(shape, TP2_PP2) for shape in SHAPES if shape != "qwen2" and not shape.startswith("qwen3_moe")),
    Case("qwen2", {"tensor": 4}),  # fewer key-value heads than ranks
    Case("qwen3-untied", {"tensor": 4, "sequence_parallel": True}),
    Case("qwen3_moe", {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "expert": 2}, saves=True),
    Case("qwen3_moe", {"pipeline": 2, "data": 2, "expert": 2}),
    Case("qwen3_moe", {"tensor": 2, "data": 2, "sequence_parallel": True, "expert": 4}),
    Case("qwen3_moe-raw", {"pipeline": 4}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each shape the Hugging Face folder, its Megatron checkpoint, and the log-probs of the sequences."""
    made = tmp_path_factory.mktemp("conversion")
    for shape in SHAPES:
        model = save_random_model(made / shape / "hugging_face", shape, vocab_size=VOCABULARY.get(shape, 301))
        with torch.no_grad():
            logprobs = [
                model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
                for tokens in sequences(shape)
            ]
        torch.save(logprobs, made / shape / "logprobs.pt")
        to_megatron(
            made / shape / "hugging_face", made / shape / "megatron", tensor_parallel=2, pipeline_parallel=2
        )
    return made


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 4, FOUR, str(folder))


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.__name__)
def test_through_ranks(folder: Path, four: list[dict[str, Any]], case: Case) -> None:
    original = load_file(folder / case.shape / "hugging_face" / "model.safetensors")
    found = answer(four, case)
    for logprobs, expected in zip(found["scores"], torch.load(folder / case.shape / "logprobs.pt"), strict=True):
        torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)
    for how in ("exported", "again", "by_megatron"):
        assert_same_tensors(found[how], original, how)


@pytest.mark.parametrize("case", [case for case in FOUR if case.saves], ids=lambda case: case.__name__)
def test_a_checkpoint_of_training_becomes_a_hugging_face_folder(
    folder: Path, four: list[dict[str, Any]], case: Case, tmp_path: Path
) -> None:
    answer(four, case)
    step, like = folder / case.shape / "training" / "step_000001", folder / case.shape / "hugging_face"
    to_hugging_face(step, tmp_path / "back", like=like)
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert_same_tensors(found, load_file(like / "model.safetensors"))


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(__file__).parents[2] / "tools" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_tools(folder: Path, tmp_path: Path) -> None:
    """Sequences of 64 tokens: four times the context that this model's rotary positions were stretched from."""
    source = folder / "llama3" / "hugging_face"
    done = run_tool("convert_checkpoint.py", "to-megatron", source, tmp_path / "made", "--verify")
    assert done.returncode == 0, done.stderr
    assert "39 tensors equal bit for bit" in done.stdout
    logits = re.search(r"over 256 tokens: logits (\S+),", done.stdout)
    assert logits
    assert float(logits[1]) < 1e-3
    save_random_model(tmp_path / "other", "llama3", seed=1)
    done = run_tool("compare_logits.py", tmp_path / "made", tmp_path / "other")
    assert done.returncode == 2
    assert "differ by more than 0.001" in done.stderr
    done = run_tool("convert_checkpoint.py", "to-hf", tmp_path / "made", source)
    assert done.returncode == 2
    assert f"{source} exists; remove it or name another destination" in done.stderr.replace("\n", "")


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], what: str = "") -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, (what, name)
        assert torch.equal(found[name], tensor), (what, name)
