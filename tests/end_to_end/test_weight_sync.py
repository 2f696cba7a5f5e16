"""Weights from sharded trainers to real engines: after a push each engine's greedy tokens are Hugging Face's."""

import asyncio
import copy
import secrets
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_empg.launch.engine_process import start_engine
from megatron_empg.launch.ports import free_port
from megatron_empg.rollout.client import EngineClient, Sampling
from tests.distributed.ranks import run_ranks
from tests.end_to_end.engine_model import MAX_MODEL_LEN, greedy, perturb, save_policy
from tests.end_to_end.trainer_ranks import push

PROMPT = [1, 50, 60, 70, 80]
COUNT = 24


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """An engine of one rank and one of two, both with the first model; and three other models."""
    folder = tmp_path_factory.mktemp("sync")
    models = [save_policy(folder / "model0")]
    for version in (1, 2, 3):
        model = copy.deepcopy(models[-1])
        perturb(model, seed=version)
        model.save_pretrained(folder / f"model{version}")
        models.append(model)
    token = secrets.token_hex(16)
    started = [
        start_engine(
            folder / "model0",
            port=free_port(),
            token=token,
            log_path=folder / f"engine{index}.log",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=8,
            kv_cache_bytes=32 << 20,
            tensor_parallel=tensor_parallel,
        )
        for index, tensor_parallel in enumerate((1, 2))
    ]
    try:
        for engine in started:
            engine.wait_healthy(240.0)
        yield SimpleNamespace(
            models=[str(folder / f"model{version}") for version in range(4)],
            token=token,
            urls=[engine.url for engine in started],
            tokens=[greedy(model, PROMPT, COUNT) for model in models],
        )
    finally:
        for engine in started:
            engine.stop()


def drawn(engines: Any, index: int) -> tuple[list[int], set[int]]:
    """An engine's greedy tokens, and the policy versions it drew them under."""

    async def run():
        async with EngineClient(engines.urls[index], engines.token, timeout=60.0) as client:
            return await client.generate(PROMPT, Sampling(temperature=0.0), max_tokens=COUNT, seed=0)

    generation = asyncio.run(run())
    return generation.token_ids, {span.version for span in generation.policy_versions}


def test_tensor_and_pipeline_ranks_to_an_engine_of_one_rank_and_of_two(engines):
    """Both get the second model, the first engine alone those before and after it."""
    assert len({tuple(tokens) for tokens in engines.tokens}) == 4
    assert [drawn(engines, index) for index in range(2)] == [(engines.tokens[0], {0})] * 2
    first, models = engines.urls[:1], engines.models
    pushes = [(models[1], 1, first), (models[2], 2, engines.urls), (models[3], 3, first)]
    reports = run_ranks(push, 4, {"tensor": 2, "pipeline": 2}, pushes, engines.token)[0]
    assert [drawn(engines, index) for index in range(2)] == [(engines.tokens[3], {3}), (engines.tokens[2], {2})]
    assert len({report.bytes for report in reports}) == 1
