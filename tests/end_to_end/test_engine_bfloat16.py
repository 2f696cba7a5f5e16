"""A real engine in bfloat16: its logits are float32, as the actor's, before and after new weights."""

import asyncio
import secrets
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_empg.launch.engine_process import start_engine
from megatron_empg.launch.ports import free_port
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.weights.sync.transfer import WeightPublisher
from tests.end_to_end.engine_model import END_OF_TEXT, MAX_MODEL_LEN, ModelSource
from tests.support.tokenizers_for_tests import make_tokenizer

PROMPT = [1, 50, 60, 70]


def make_model(vocab_size: int) -> Any:
    """A bfloat16 policy without attention and MLP, so that nothing but the head can round: logits of 25 +- 2."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.25,
        tie_word_embeddings=False,
        eos_token_id=END_OF_TEXT,
    )
    model = Qwen2ForCausalLM(config).bfloat16().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 8.0
        model.lm_head.weight[END_OF_TEXT, 0] = -8.0
    return model


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bfloat16")
    tokenizer = make_tokenizer("chatml")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder / "model")
    model = make_model(len(tokenizer))
    model.save_pretrained(folder / "model")
    started = start_engine(
        folder / "model",
        port=free_port(),
        token=secrets.token_hex(16),
        log_path=folder / "engine.log",
        max_model_len=MAX_MODEL_LEN,
        dtype="bfloat16",
        max_num_seqs=16,
        kv_cache_bytes=32 << 20,
    )
    try:
        started.wait_healthy(240.0)
        yield SimpleNamespace(model=model, url=started.url, token=started.token)
    finally:
        started.stop()


def gaps(engine: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """|engine's log-prob - the actor's| of sampled tokens; and what it would be with logits in bfloat16."""

    async def sample() -> list[Any]:
        async with EngineClient(engine.url, engine.token, timeout=60.0) as client:
            draws = [client.generate([*PROMPT, s], Sampling(1.0), max_tokens=64, seed=s) for s in range(90, 98)]
            return await asyncio.gather(*draws)

    real, rounded = [], []
    for seed, generation in zip(range(90, 98), asyncio.run(sample()), strict=True):
        tokens = torch.tensor([[*PROMPT, seed, *generation.token_ids]])
        with torch.no_grad():
            hidden = engine.model.model(tokens).last_hidden_state[0, len(PROMPT) : -1]
        logits = hidden.float() @ engine.model.lm_head.weight.float().t()
        drawn = torch.tensor(generation.token_ids).unsqueeze(-1)
        ours, coarse = (x.double().log_softmax(-1).gather(-1, drawn)[:, 0] for x in (logits, logits.bfloat16()))
        real.append((torch.tensor(generation.logprobs, dtype=torch.float64) - ours).abs())
        rounded.append((coarse - ours).abs())
    return torch.cat(real), torch.cat(rounded)


def assert_float32(engine: Any, when: str) -> None:
    real, rounded = gaps(engine)
    print(f"\n{when}: mean {real.mean():.1e}, largest {real.max():.1e}; rounded logits: mean {rounded.mean():.1e}")
    assert rounded.mean() > 1e-2, "the logits are too small for the test to show anything"
    assert real.mean() < 1e-3


def test_the_logits_of_a_bfloat16_engine_are_float32(engine):
    assert_float32(engine, "as started")


def test_so_they_are_after_new_weights(engine):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head = engine.model.lm_head.weight
        head[:, 1:] += 0.05 * torch.randn(head[:, 1:].shape, generator=generator)
    publisher = WeightPublisher([engine.url], engine.token, device="cpu", timeout=60.0)
    try:
        publisher.connect(ModelSource(engine.model))
        publisher.publish(ModelSource(engine.model), 1)
    finally:
        publisher.close()
    assert_float32(engine, "after new weights")
