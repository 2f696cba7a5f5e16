"""Hugging Face → Megatron → Hugging Face, bit for bit: through ranks, through files, through both."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_cases import answer, fresh_actor, run_cases, weights_of
from models import SHAPES, save_random_model
from ranks import run_ranks
from safetensors.torch import load_file
from torch import Tensor

from megatron_empg.weights.conversion import to_hugging_face, to_megatron

VOCABULARY = {"qwen2": 1003, "llama": 1100}  # the second is padded to 1152, 1280 and 1536 by TP 1, 2 and 4
LENGTHS = (41, 23)


@dataclass(frozen=True)
class Case:
    """A model in a layout: scores and exports what it loaded from Hugging Face's folder; so from Megatron's."""

    shape: str
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return " ".join([self.shape, *(f"{name}={value}" for name, value in self.layout.items())])

    def __call__(self, folder: Path) -> dict[str, Any]:
        from megatron.core import dist_checkpointing

        from megatron_empg.actor.packing import Sequence

        actor = fresh_actor(folder, self.layout, model=f"{self.shape}/hugging_face")
        whole = [Sequence(tokens, torch.tensor([[1, len(tokens)]])) for tokens in sequences(self.shape)]
        scores = [score.logprobs for score in actor.score(whole)]
        exported = weights_of(actor)
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
    *(Case(shape, TP2_PP2) for shape in SHAPES if not shape.startswith("qwen3_moe")),
    Case("qwen2", {"tensor": 4}),  # fewer key-value heads than ranks
    Case("qwen3-untied", {"tensor": 4, "sequence_parallel": True}),
    Case("qwen3_moe", {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "expert": 2}),
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


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], what: str = "") -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, (what, name)
        assert torch.equal(found[name], tensor), (what, name)
