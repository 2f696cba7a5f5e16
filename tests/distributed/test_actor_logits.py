"""The sharded model's outputs equal Hugging Face's."""

from pathlib import Path

import pytest
import torch

from tests.distributed.actor_cases import actor_config
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model


def _scores(folder: str, layout: dict, sequences: list, temperature: float) -> list:
    from megatron_empg.actor.actor import Actor
    from megatron_empg.algorithms.sample import Sample
    from megatron_empg.weights.mapping.model_config import ModelConfig

    settings = actor_config(layout, max_tokens_per_microbatch=64, lr=1e-3)
    actor = Actor(ModelConfig.from_folder(Path(folder)), settings, dtype="float32")
    actor.load_weights(Path(folder))
    scores = actor.score([Sample(t, s) for t, s in sequences], temperature=temperature)
    exported = {name: tensor.clone() for name, tensor in actor.weights()}
    return [(s.logprobs, s.entropies) for s in scores], exported


def _sequences(count: int = 9) -> list:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        length = int(torch.randint(12, 60, (1,), generator=generator))
        middle = length // 2
        turns = torch.tensor([[3, 7], [middle + 1, length]])
        made.append((torch.randint(0, 301, (length,), generator=generator), turns))
    return made


def _expected(model, sequences: list, temperature: float) -> list:
    """Float64 log-probs and entropies by Hugging Face's model, one sequence at a time."""
    model = model.double()
    answers = []
    for tokens, turns in sequences:
        with torch.no_grad():
            logits = model(tokens[None]).logits[0] / temperature
        logp = logits.log_softmax(-1)
        own = torch.cat([torch.arange(a, b) for a, b in turns.tolist()])
        entropy = -(logp.exp() * logp).sum(-1)
        answers.append((logp[own - 1, tokens[own]], entropy[own - 1]))
    return answers


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("qwen2", {}),
        ("qwen2", {"tensor": 2}),
        ("qwen2-untied", {"tensor": 2, "sequence_parallel": True}),
        ("qwen2", {"pipeline": 2}),
        ("llama", {"tensor": 2, "pipeline": 2}),
        ("qwen2", {"data": 2}),
    ],
    ids=str,
)
def test_score_and_export_equal_hugging_face(tmp_path: Path, shape: str, layout: dict) -> None:
    model = save_random_model(tmp_path / "model", shape)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sequences = _sequences()
    world = 1
    for size in ("tensor", "pipeline", "data"):
        world *= layout.get(size, 1)
    results = run_ranks(_scores, world, str(tmp_path / "model"), layout, sequences, 0.7)
    expected = _expected(model, sequences, 0.7)
    for scores, exported in results:
        for (logprob, entropy), (true_logprob, true_entropy) in zip(scores, expected, strict=True):
            torch.testing.assert_close(logprob.double(), true_logprob, atol=1e-4, rtol=0)
            torch.testing.assert_close(entropy.double(), true_entropy, atol=1e-4, rtol=0)
        for name, tensor in exported.items():
            assert torch.equal(tensor, weights[name]), name
        missing = set(weights) - set(exported)
        assert missing <= {"lm_head.weight"}
