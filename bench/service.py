"""How many episodes one rollout service plays at once: python bench/service.py [--episodes 2000].

Engines are stand-ins, processes that answer a turn after a random time with random tokens, so that nothing but the
service itself can hold an episode up. The service is a real `Rollout`: chat template, HTTP, log-probs and versions
of every token, environments. Two arms, one after the other:

- played: all episodes at once, each turn reading everything before it;
- bare: the same number of requests as long, made with nothing but aiohttp and Python's json.

Told are how long an episode takes beside what engines take for its turns, the CPU milliseconds that the process
spends on a turn, and how late its event loop was, which all episodes share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.environments.base import Opening, StepResult, Task

if TYPE_CHECKING:
    from megatron_empg.rollout.chat_tokens import ChatTokens
    from megatron_empg.rollout.episode import Episode

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "recipes/miniature/policy"
TICK_SECONDS = 0.01
WORDS = ("river", "tower", "question", "answer", "page", "search", "found", "nothing")


@dataclass(frozen=True)
class Setting:
    """What is played. `seconds`: from a request to its answer at an engine, on average; each takes half to one and
    a half times as long. `own`: tokens of a turn; `observed`: words of what the environment answers, of which each
    is a token or more."""

    episodes: int
    turns: int
    own: int
    observed: int
    seconds: float
    engines: int


@dataclass
class Measured:
    """One arm. `lateness`: of the event loop at each tick, in seconds. `episode_seconds`: of each episode."""

    turns: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    sent_tokens: int = 0
    lateness: list[float] = field(default_factory=list)
    episode_seconds: list[float] = field(default_factory=list)


# --- engines ----------------------------------------------------------------------------------------------------


def engine(told: Connection, seconds: float, vocabulary: list[int], end_of_turn: int) -> None:
    """A process that answers generations as an engine does, after so many seconds on average."""
    from aiohttp import web

    drawn = random.Random(0)

    async def generate(request: web.Request) -> web.Response:
        wanted = json.loads(await request.read())["sampling_params"]["max_tokens"]
        await asyncio.sleep(seconds * drawn.uniform(0.5, 1.5))
        tokens = [*drawn.choices(vocabulary, k=wanted - 1), end_of_turn]
        entries = [{"token_id": token, "logprob": -1.0} for token in tokens]
        choice = {
            "token_ids": tokens,
            "finish_reason": "stop",
            "logprobs": {"content": entries},
            "weight_versions": [{"version": "0", "start": 0, "end": len(tokens)}],
        }
        return web.json_response({"choices": [choice]})

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([web.post("/inference/v1/generate", generate)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(serve())


@asynccontextmanager
async def engines(setting: Setting, chat: ChatTokens) -> AsyncIterator[list[str]]:
    """The stand-ins' URLs, as long as they live."""
    context = mp.get_context("spawn")
    vocabulary = [token for word in WORDS for token in chat.turn(word) if token != chat.end_of_turn]
    processes, urls = [], []
    for _ in range(setting.engines):
        mine, theirs = context.Pipe()
        arguments = (theirs, setting.seconds, vocabulary, chat.end_of_turn)
        process = context.Process(target=engine, args=arguments, daemon=True)
        process.start()
        processes.append(process)
        if not mine.poll(60):
            raise SystemExit("a stand-in for an engine did not start within 60 s")
        urls.append(f"http://127.0.0.1:{mine.recv()}")
    try:
        yield urls
    finally:
        for process in processes:
            process.kill()


# --- the service ------------------------------------------------------------------------------------------------


class Conversation:
    """An environment that answers so many turns with words, and then rewards."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self._left, self._words = setting.turns, setting.observed
        self._drawn = random.Random(task.id)

    async def reset(self) -> Opening:
        return Opening()

    async def step(self, action: str) -> StepResult:
        self._left -= 1
        if not self._left:
            return StepResult(None, done=True, reward=1.0)
        return StepResult(" ".join(self._drawn.choices(WORDS, k=self._words)), done=False)

    async def close(self) -> None:
        return None


async def played(setting: Setting, urls: list[str], chat: ChatTokens) -> tuple[Measured, list[Episode]]:
    """The episodes by a real `Rollout`."""
    from megatron_empg.common.limits import LimitsConfig
    from megatron_empg.common.waits import nested_waits
    from megatron_empg.rollout.config import RolloutConfig
    from megatron_empg.rollout.episodes import Group, Rollout
    from megatron_empg.rollout.fleet import Fleet

    size = 8
    config = RolloutConfig(
        groups=setting.episodes // size,
        group_size=size,
        max_turn_tokens=setting.own,
        max_episode_tokens=1 << 20,
        concurrency=setting.episodes,
    )
    waits = nested_waits(LimitsConfig(), several_rounds=False)

    def make(task: Task) -> Conversation:
        return Conversation(task, setting)

    async with Rollout(
        Fleet(urls, 0), "token", chat, make, config, waits, max_turns=setting.turns, seed=1
    ) as rollout:
        prompt = {"role": "user", "content": "Find it."}
        tasks = [Task(f"task {number}", [prompt], {}) for number in range(config.groups)]  # type: ignore[list-item]
        groups = [Group(task, number, range(size)) for number, task in enumerate(tasks)]
        measured, episodes = await watched(rollout.run_group_batch(groups, 0))
    failed = [episode.error for episode in episodes if episode.outcome != "success"]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(episodes)} episodes failed: {failed[0]}")
    measured.turns = sum(len(episode.turns) for episode in episodes)
    measured.episode_seconds = [span.end - span.start for span in (e.whole for e in episodes) if span is not None]
    measured.sent_tokens = sum(turn.start for episode in episodes for turn in episode.turns)
    return measured, episodes


async def bare(setting: Setting, urls: list[str], lengths: list[int]) -> Measured:
    """As many requests, one behind the other for each episode, with prompts of those lengths."""
    import aiohttp

    from megatron_empg.rollout.client import Sampling, request_body

    async def ask(session: aiohttp.ClientSession, url: str) -> float:
        began = time.perf_counter()
        for length in lengths:
            body = request_body([100] * length, Sampling(temperature=1.0), setting.own, 0)
            content = json.dumps(body, separators=(",", ":")).encode()
            async with session.post(f"{url}/inference/v1/generate", data=content) as reply:
                reply.raise_for_status()
                json.loads(await reply.read())
        return time.perf_counter() - began

    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=setting.episodes)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        chains = [ask(session, urls[number % len(urls)]) for number in range(setting.episodes)]
        measured, measured.episode_seconds = await watched(asyncio.gather(*chains))
    measured.turns = setting.episodes * len(lengths)
    measured.sent_tokens = setting.episodes * sum(lengths)
    return measured


async def watched(work: Awaitable[Any]) -> tuple[Measured, Any]:
    """What `work` returns, and what it cost this process."""
    measured = Measured()

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            measured.lateness.append(max(time.perf_counter() - due, 0.0))

    ticking = asyncio.create_task(tick())
    began, before = time.perf_counter(), time.process_time()
    try:
        result = await work
    finally:
        ticking.cancel()
    measured.seconds, measured.cpu = time.perf_counter() - began, time.process_time() - before
    return measured, result


def tell(name: str, measured: Measured, setting: Setting) -> None:
    late = sorted(1000 * seconds for seconds in measured.lateness)
    held_up = statistics.mean(measured.episode_seconds) / (setting.turns * setting.seconds)
    print(f"{name}: {measured.turns} turns, {measured.turns / measured.seconds:.0f} per second")
    print(f"  an episode took {held_up:.3f} times what engines took for its turns")
    cpu, before = 1000 * measured.cpu / measured.turns, measured.sent_tokens / measured.turns
    cores = measured.cpu / measured.seconds
    print(f"  {cpu:.2f} CPU ms per turn, with {before:.0f} tokens before it; {cores:.2f} cores")
    print(
        f"  loop late by {statistics.median(late):.1f} ms (median), {late[int(0.99 * len(late))]:.0f} (99%), "
        f"{late[-1]:.0f} (most); load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


async def measure(setting: Setting) -> None:
    from megatron_empg.rollout.chat_tokens import ChatTokens

    chat = ChatTokens.from_pretrained(MODEL)
    async with engines(setting, chat) as urls:
        by_service, episodes = await played(setting, urls, chat)
        tell("played", by_service, setting)
        lengths = [turn.start for turn in episodes[0].turns]
        least = await bare(setting, urls, lengths)
        tell("bare", least, setting)
        share = (by_service.cpu / by_service.turns) / (least.cpu / least.turns)
        print(f"{setting.episodes} episodes at once: {share:.2f} times the CPU time of bare requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2000, help="all of them at once, in groups of 8")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--own", type=int, default=200, help="tokens of a turn")
    parser.add_argument("--observed", type=int, default=300, help="words of what the environment answers")
    parser.add_argument("--seconds", type=float, default=10.0, help="that an engine takes for a turn")
    parser.add_argument("--engines", type=int, default=2)
    given = parser.parse_args()
    if given.episodes % 8 or given.episodes < 8:
        parser.error(f"--episodes is {given.episodes}: it must be a multiple of 8, the size of a group")
    asyncio.run(measure(Setting(**vars(given))))


if __name__ == "__main__":
    main()
