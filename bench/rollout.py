"""Tokens per second of episodes played by the rollout service, beside vLLM's own offline `generate`.

    python bench/rollout.py
    python bench/rollout.py --concurrency 512 --episodes 2048

Two arms take turns on the same requests, each with an engine of its own that idles meanwhile:

- served: the quickstart's episodes, turn by turn, as a run plays them: a real engine behind HTTP, a real `Rollout`
  with its environment, log-probs and versions of every token;
- offline: `vllm.LLM.generate` gets every turn of those episodes at once, its prompt and number of tokens given.
  All first turns come first, then all second ones, so that it finds their prefixes in its cache too.

Both have the same policy, settings, KV cache, sequences at once and threads, and begin each round with empty
prefix caches. The medians over the rounds are told, each round's ratio, and the CPU seconds of each process:
compare those where the machine has other work to do. A round ends with its longest episode, while fewer and fewer
play; the more episodes for the same concurrency, the less this tail weighs.

Targets: 0.95 of the offline arm's tokens per second at 64 episodes at once, 0.9 at 512.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing as mp
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_empg.recipe import Recipe
    from megatron_empg.rollout.episode import Episode
    from megatron_empg.rollout.episodes import Group
    from megatron_empg.rollout.service.rollout_service import RolloutService

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/quickstart.yaml"


@dataclass(frozen=True)
class Request:
    """A turn as an engine is asked for it: the tokens before it, and how many it has."""

    prompt: list[int]
    own: int


@dataclass(frozen=True)
class Measured:
    """One arm in one round. `engine_cpu` and `service_cpu` in CPU seconds; offline has no service."""

    tokens: int
    seconds: float
    engine_cpu: float
    service_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens of the policy a second."""
        return self.tokens / self.seconds


def requests_of(episodes: Sequence[Episode]) -> list[Request]:
    """Every turn of the episodes, the first turns of all before the second ones."""
    by_turn: list[tuple[int, Request]] = []
    for episode in episodes:
        sequences = episode.sequences
        for number, turn in enumerate(episode.turns):
            prompt = sequences[turn.sequence][: turn.start]
            by_turn.append((number, Request(prompt, turn.end - turn.start)))
    by_turn.sort(key=lambda numbered: numbered[0])
    return [request for _, request in by_turn]


# --- offline --------------------------------------------------------------------------------------------------


def offline(asked: Connection, words: dict[str, Any]) -> None:
    """A process with vLLM's engine in it: requests come in, what was measured goes out, None ends it."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        TORCHDYNAMO_DISABLE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
    )
    from vllm import LLM, SamplingParams

    llm = LLM(**words)
    asked.send("ready")
    while True:
        requests: list[Request] | None = asked.recv()
        if requests is None:
            return
        llm.reset_prefix_cache()
        prompts: list[Any] = [{"prompt_token_ids": request.prompt} for request in requests]
        wanted = [
            SamplingParams(
                temperature=1.0, max_tokens=request.own, ignore_eos=True, seed=number, logprobs=0, detokenize=False
            )
            for number, request in enumerate(requests)
        ]
        began, before = time.perf_counter(), time.process_time()
        done = llm.generate(prompts, wanted, use_tqdm=False)
        seconds, cpu = time.perf_counter() - began, time.process_time() - before
        asked.send(Measured(sum(len(one.outputs[0].token_ids) for one in done), seconds, cpu))


def offline_words(recipe: Recipe, concurrency: int) -> dict[str, Any]:
    """As megatron_empg/rollout/server.py starts its engines on CPU."""
    return {
        "model": str(recipe.model.path),
        "dtype": recipe.model.dtype,
        "max_model_len": recipe.rollout.max_episode_tokens,
        "max_num_seqs": concurrency,
        "kv_cache_memory_bytes": recipe.engines.kv_cache_bytes,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "enforce_eager": True,
        "block_size": 32,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, recipe.rollout.max_episode_tokens),
    }


# --- served ---------------------------------------------------------------------------------------------------


class Served:
    """A rollout service of this process, and the engine that it asks."""

    def __init__(self, recipe: Recipe, concurrency: int, logs: Path) -> None:
        from megatron_empg.launch.engine_process import start_engine
        from megatron_empg.launch.ports import free_port

        self._recipe, self._token = recipe, secrets.token_hex(16)
        self.engine = start_engine(
            recipe.model.path,
            port=free_port(),
            token=self._token,
            log_path=logs / "engine.log",
            max_model_len=recipe.rollout.max_episode_tokens,
            kv_cache_bytes=recipe.engines.kv_cache_bytes,
            max_num_seqs=concurrency,
        )
        self._stack = AsyncExitStack()
        self._driver: RolloutService | None = None

    async def begin(self) -> None:
        """Blocks until the engine generates."""
        from megatron_empg.rollout.service.rollout_service import open_rollout_service

        self.engine.wait_healthy(1800.0)
        opened = open_rollout_service(self._recipe.service_config(), [self.engine.url], self._token)
        self._driver = await self._stack.enter_async_context(opened)

    async def close(self) -> None:
        await self._stack.aclose()
        self.engine.stop()

    async def play(self, count: int, number: int) -> tuple[list[Episode], Measured]:
        """So many episodes, with the seeds of that step."""
        assert self._driver is not None
        groups = self._groups(count, number)
        self._forget_prefixes()
        began, before = time.perf_counter(), time.process_time()
        engine_before = cpu_seconds(self.engine.process.pid)
        episodes = await self._driver.rollout.run_group_batch(groups, number)
        seconds, cpu = time.perf_counter() - began, time.process_time() - before
        engine_cpu = cpu_seconds(self.engine.process.pid) - engine_before
        failed = [episode.error for episode in episodes if episode.outcome == "error"]
        if failed:
            raise SystemExit(f"{len(failed)} of {count} episodes failed: {failed[0]}")
        tokens = sum(len(episode.logprobs) for episode in episodes)
        return episodes, Measured(tokens, seconds, engine_cpu, cpu)

    def _groups(self, count: int, number: int) -> list[Group]:
        from megatron_empg.rollout.episodes import Group

        assert self._driver is not None
        size = self._recipe.rollout.group_size
        tasks = self._driver.source.sample("train", count // size, number)
        return [Group(task, index, range(size)) for index, task in enumerate(tasks)]

    def _forget_prefixes(self) -> None:
        import httpx

        from megatron_empg.common.http import bearer

        with httpx.Client(headers=bearer(self._token), timeout=30.0, trust_env=False) as client:
            client.post(f"{self.engine.url}/reset_prefix_cache").raise_for_status()


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, so far."""
    import psutil

    spent = 0.0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        times = process.cpu_times()
        spent += times.user + times.system
    return spent


# --- both -----------------------------------------------------------------------------------------------------


async def measure(
    recipe: Recipe, concurrency: int, count: int, rounds: int, logs: Path
) -> list[tuple[Measured, Measured]]:
    """(served, offline) of each round; one before them warms both up."""
    served = Served(recipe, concurrency, logs)
    mine, other = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=offline, args=(other, offline_words(recipe, concurrency)))
    process.start()
    found = []
    try:
        await served.begin()
        if mine.recv() != "ready":
            raise SystemExit("the offline engine did not start")
        for number in range(rounds + 1):
            episodes, by_service = await served.play(count, number)
            mine.send(requests_of(episodes))
            alone: Measured = mine.recv()
            if alone.tokens != by_service.tokens:
                raise SystemExit(f"{alone.tokens} tokens offline and {by_service.tokens} served are not the same")
            if number:
                found.append((by_service, alone))
                tell(number, by_service, alone)
        mine.send(None)
        process.join(60)
    finally:
        process.kill()
        await served.close()
    return found


def tell(number: int, served: Measured, alone: Measured) -> None:
    served_cpu = f"engine {served.engine_cpu:.1f}, service {served.service_cpu:.1f}"
    print(
        f"round {number}: {served.tokens} tokens; served {served.rate:.0f}/s (CPU s: {served_cpu}), "
        f"offline {alone.rate:.0f}/s ({alone.engine_cpu:.1f}); ratio {served.rate / alone.rate:.3f}; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def recipe_of(concurrency: int, folder: Path) -> Recipe:
    from megatron_empg.recipe import load_recipe
    from megatron_empg.recipe.recipe import Recipe as Loaded

    recipe = load_recipe(RECIPE, [f"rollout.concurrency={concurrency}", f"run.folder={folder}"])
    assert isinstance(recipe, Loaded)
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--concurrency", type=int, default=64, help="episodes, and sequences of the engines, at once"
    )
    parser.add_argument("--episodes", type=int, default=512, help="of a round, in groups of the recipe's size")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(given.concurrency, Path(folder))
        size = recipe.rollout.group_size
        if given.episodes % size:
            raise SystemExit(f"--episodes {given.episodes} is not whole groups; give a multiple of {size}")
        rounds = asyncio.run(measure(recipe, given.concurrency, given.episodes, given.rounds, Path(folder)))
    served = statistics.median(one.rate for one, _ in rounds)
    alone = statistics.median(one.rate for _, one in rounds)
    ratios = [one.rate / other.rate for one, other in rounds]
    print(
        f"{given.episodes} episodes, {given.concurrency} at once: served {served:.0f} tokens/s, "
        f"offline {alone:.0f}; ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
