"""Real engines: access, sampling, weight transfer, episodes, and what becomes of them when an engine is killed."""

import asyncio
import copy
import math
import secrets
import socket
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from megatron_empg.common.http import bearer, healthy
from megatron_empg.environments.base import Opening, StepResult, Task
from megatron_empg.launch.engine_process import EngineStartError, start_engine
from megatron_empg.launch.liveness import engine_probes
from megatron_empg.launch.ports import free_port
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, EngineError, RequestRefused, Sampling
from megatron_empg.rollout.engine_counters import EngineCounters
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.fleet import EngineState, Fleet
from megatron_empg.trainer.fleet_publisher import EngineSenses, FleetPublisher
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.held_version import held_version
from megatron_empg.weights.sync.transfer import WeightPublisher
from tests.end_to_end.engine_model import (
    END_OF_TURN,
    MAX_MODEL_LEN,
    ModelSource,
    greedy,
    logprobs_of,
    perturb,
    save_policy,
)
from tests.end_to_end.killed_runs import kind_of
from tests.support.limited import limited

PROMPT = [1, 50, 60, 70, 80]
GREEDY = Sampling(temperature=0.0)


class Pair:
    """Two engines of one policy, and the Hugging Face model whose weights both hold, under a version."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chat = folder, folder / "model"
        self.token = secrets.token_hex(16)
        self.model = save_policy(self.chat)
        self.version = 0
        self.all = [self._start(index) for index in range(2)]
        for engine in self.all:
            engine.wait_healthy(180.0)

    def _start(self, index):
        return start_engine(
            self.chat,
            port=free_port(),
            token=self.token,
            log_path=self.folder / f"engine{index}.log",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=64,
            kv_cache_bytes=64 << 20,
        )

    @property
    def urls(self):
        return [engine.url for engine in self.all]

    def perturb(self):
        """Other weights, under the next version, which a test has to publish."""
        self.version += 1
        perturb(self.model, seed=self.version)

    def kill_second(self):
        self.all[1].process.kill()
        self.all[1].process.wait()

    def revive_second(self):
        """Start it again if it was killed, with the weights that the first one holds."""
        if self.all[1].process.poll() is None:
            return
        self.all[1].stop()
        self.all[1] = self._start(1)
        self.all[1].wait_healthy(180.0)
        if self.version:
            publisher = WeightPublisher(self.urls[1:], self.token, device="cpu", timeout=30.0)
            try:
                publisher.connect(ModelSource(self.model))
                publisher.publish(ModelSource(self.model), self.version)
            finally:
                publisher.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made = Pair(tmp_path_factory.mktemp("engines"))
    yield made
    for engine in made.all:
        engine.stop()


@pytest.fixture
def engines(pair):
    """Both alive, whatever an earlier test did."""
    pair.revive_second()
    return pair


@pytest.fixture
def one_dead(pair):
    """The second one is killed."""
    pair.kill_second()
    return pair


@pytest.fixture(scope="module")
def chat(pair):
    return ChatTokens.from_pretrained(pair.chat)


def with_client(engines, work, index=0):
    """Run `work(client)` to its end."""

    async def run():
        async with EngineClient(engines.urls[index], engines.token, timeout=60.0) as client:
            return await work(client)

    return asyncio.run(run())


# Access


def test_every_route_answers_401_without_the_token(engines):
    table = httpx.get(f"{engines.urls[0]}/empg/routes", headers=bearer(engines.token), trust_env=False).json()
    paths = {row["path"] for row in table}
    assert len(paths) > 40
    assert {"/update_weights", "/collective_rpc", "/pause", "/inference/v1/generate", "/metrics", "/docs"} <= paths
    attempts = [{}, {"Authorization": f"Bearer {engines.token[:-1]}x"}, {"Authorization": engines.token}]
    with httpx.Client(base_url=engines.urls[0], trust_env=False, timeout=10.0) as client:
        for path in sorted(paths | {"/empg/routes", "/nowhere", "/metrics/"}):
            methods = {m for row in table if row["path"] == path for m in row["methods"]}
            for method in sorted(methods | {"GET", "POST", "OPTIONS", "HEAD", "DELETE"}):
                for headers in attempts:
                    reply = client.request(method, path.replace("{", "").replace("}", ""), headers=headers)
                    assert reply.status_code == 401, (method, path, headers)


def test_a_frozen_core_answers_no_probe_of_its_own_while_its_server_says_it_is_healthy(engines):
    health, core_s = engine_probes(60, 660)
    url, server = engines.urls[0], psutil.Process(engines.all[0].process.pid)
    (core,) = [child for child in server.children() if kind_of(child) == "engine core"]
    assert healthy(url, engines.token, 60.0, core_s.path)
    core.suspend()
    try:
        assert healthy(url, engines.token, 60.0, health.path)
        assert not healthy(url, engines.token, 2.0, core_s.path)
    finally:
        core.resume()
    assert healthy(url, engines.token, 60.0, core_s.path)


def test_websockets_are_refused_without_the_token(engines):
    host, port = engines.urls[0].removeprefix("http://").split(":")
    request = (
        f"GET /v1/realtime HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(request.encode())
        status = connection.recv(64).split()[1]
    assert status in (b"401", b"403")


def test_listens_on_loopback_alone(engines):
    for engine in engines.all:
        tree = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
        listening = {c.laddr.ip for p in tree for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}


# Sampling


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_hugging_face_model(engines, temperature):
    sampling = Sampling(temperature)

    async def work(client):
        return await asyncio.gather(
            *(client.generate([*PROMPT, seed], sampling, max_tokens=24, seed=seed) for seed in range(90, 98))
        )

    for seed, generation in zip(range(90, 98), with_client(engines, work), strict=True):
        tokens = [*PROMPT, seed, *generation.token_ids]
        expected = logprobs_of(engines.model, tokens, temperature)[len(PROMPT) :]
        difference = (torch.tensor(generation.logprobs, dtype=torch.float64) - expected).abs()
        assert generation.finish_reason == "length"
        assert difference.max() < 1e-3
        assert difference.mean() < 1e-4


def test_seed_decides_the_tokens(engines):
    async def work(client):
        drawn = {}
        for run in range(2):
            results = await asyncio.gather(
                *(client.generate(PROMPT, Sampling(1.0), max_tokens=16, seed=seed) for seed in (3, 4, 2**63 - 1))
            )
            drawn[run] = [tuple(result.token_ids) for result in results]
        return drawn

    drawn = with_client(engines, work)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_refused_request_is_not_an_engine_failure(engines):
    too_long = list(range(10, 100)) * 10
    with pytest.raises(RequestRefused, match="400"):
        with_client(engines, lambda client: client.generate(too_long, GREEDY, max_tokens=4, seed=0))
    assert with_client(engines, lambda client: client.health())


def test_an_engine_tells_what_the_rollout_service_measures(engines):
    """By the names of the installed vLLM, and in its own numbers."""

    async def work(client):
        before = EngineCounters.read(await client.metrics_page())
        prompt = [*PROMPT * 13, 7]
        for seed in range(3):
            await client.generate(prompt, Sampling(1.0), max_tokens=8, seed=seed)
        return before, EngineCounters.read(await client.metrics_page())

    before, after = with_client(engines, work)
    assert after.missing == []
    counted = after.since(before)
    assert counted.generated_tokens == 24
    assert counted.prompt_tokens == counted.cache_queries == 3 * 66
    assert counted.cache_hits == counted.cached_tokens == 2 * 64, "two blocks of 32, from the second request on"
    assert counted.preemptions == 0
    for histogram in (counted.first_token, counted.waiting, counted.running):
        assert histogram.count == 3
        assert 0 <= histogram.mean < 60
        assert histogram.not_above[math.inf] == 3
    assert 0 < counted.first_token.quantile(0.5) < 60


def test_an_engine_prints_no_statistics(engines):
    assert "Avg generation throughput" not in engines.all[0].log_path.read_text()


# Weights


def greedy_tokens(engines, index, prompt=PROMPT):
    return with_client(engines, lambda client: client.generate(prompt, GREEDY, max_tokens=24, seed=0), index)


def test_published_weights_are_the_ones_that_generate(engines):
    publisher = WeightPublisher(engines.urls, engines.token, device="cpu", timeout=30.0)
    try:
        for number in range(2):
            before = [greedy_tokens(engines, index).token_ids for index in range(2)]
            assert before == [greedy(engines.model, PROMPT, 24)] * 2
            engines.perturb()
            if number == 0:
                publisher.connect(ModelSource(engines.model))
            report = publisher.publish(ModelSource(engines.model), engines.version)
            print(f"\npublished {report.bytes} bytes in {report.seconds:.3f} s")
            assert report.bytes == sum(4 * p.numel() for p in engines.model.parameters())
            after = [greedy_tokens(engines, index) for index in range(2)]
            assert [g.token_ids for g in after] == [greedy(engines.model, PROMPT, 24)] * 2
            assert after[0].token_ids != before[0]
            assert {span.version for g in after for span in g.policy_versions} == {engines.version}
    finally:
        publisher.close()


def test_source_that_breaks_off_leaves_nothing_broken(engines):
    class Broken(ModelSource):
        def __iter__(self):
            for index, pair in enumerate(super().__iter__()):
                if index == 5:
                    raise KeyError("no such shard")
                yield pair

    class Incomplete(ModelSource):
        def metadata(self):
            return [row for row in super().metadata() if "norm" not in row[0]]

        def __iter__(self):
            return ((name, tensor) for name, tensor in super().__iter__() if "norm" not in name)

    publisher = WeightPublisher(engines.urls, engines.token, device="cpu", timeout=30.0)
    whole = ModelSource(engines.model)
    try:
        for source, error, text in (
            (Broken(engines.model), KeyError, "no such shard"),
            (Incomplete(engines.model), WeightTransferError, "sent no weights for .*norm"),
        ):
            publisher.connect(whole)
            with pytest.raises(error, match=text):
                publisher.publish(source, engines.version + 1)
            assert with_client(engines, lambda client: client.policy_version()) == engines.version
            publisher.connect(whole)
            engines.version += 1
            publisher.publish(whole, engines.version)
            assert greedy_tokens(engines, 0).token_ids == greedy(engines.model, PROMPT, 24)
    finally:
        publisher.close()


def test_running_generation_goes_on_under_the_new_weights(engines):
    count = 480
    publisher = WeightPublisher(engines.urls, engines.token, device="cpu", timeout=30.0)

    async def publish_meanwhile(client, version):
        running = asyncio.create_task(client.generate(PROMPT, GREEDY, max_tokens=count, seed=0))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(publisher.publish, ModelSource(engines.model), version)
        return await running

    try:
        publisher.connect(ModelSource(engines.model))
        for _ in range(5):
            old = copy.deepcopy(engines.model)
            engines.perturb()
            generation = with_client(engines, lambda client: publish_meanwhile(client, engines.version))
            if len(generation.policy_versions) == 2:
                break  # else the generation was over, or not begun, when the weights came
    finally:
        publisher.close()
    first, second = generation.policy_versions
    assert (first.version, second.version) == (engines.version - 1, engines.version)
    assert (first.start, first.end, second.end) == (0, second.start, count)
    switch = second.start
    print(f"\nweights changed after {switch} of {count} tokens")
    assert generation.token_ids[: min(24, switch)] == greedy(old, PROMPT, min(24, switch))
    after = min(24, count - switch)
    prefix = PROMPT + generation.token_ids[:switch]
    assert generation.token_ids[switch : switch + after] == greedy(engines.model, prefix, after)


def test_logprobs_change_exactly_where_the_new_weights_came(engines):
    """Of one generation those before are the old weights' and those after are the new ones', as its spans say."""
    count, split = 240, None
    publisher = WeightPublisher(engines.urls, engines.token, device="cpu", timeout=30.0)

    async def publish_meanwhile(client, seconds):
        sampling, version = Sampling(1.0), engines.version
        running = asyncio.create_task(client.generate(PROMPT, sampling, max_tokens=count, seed=version))
        await asyncio.sleep(seconds)
        await asyncio.to_thread(publisher.publish, ModelSource(engines.model), version)
        return await running

    try:
        publisher.connect(ModelSource(engines.model))
        for number in range(12):
            old = copy.deepcopy(engines.model)
            engines.perturb()
            seconds = 0.1 * (1 + number)
            generation = with_client(engines, lambda client, after=seconds: publish_meanwhile(client, after))
            starts = [span.start for span in generation.policy_versions[1:]]
            if len(starts) == 1 and 16 <= starts[0] <= count - 16:
                split = starts[0]
                break
    finally:
        publisher.close()
    assert split is not None, "the weights never came in the middle of a generation"
    tokens = PROMPT + generation.token_ids
    said = torch.tensor(generation.logprobs, dtype=torch.float64)
    by_old, by_new = (logprobs_of(model, tokens)[len(PROMPT) - 1 :] for model in (old, engines.model))
    right = torch.cat([(said - by_old)[:split], (said - by_new)[split:]]).abs()
    wrong = torch.cat([(said - by_new)[:split], (said - by_old)[split:]]).abs()
    print(f"\n{split} of {count} tokens before; gap {right.mean():.1e}, largest {right.max():.1e}")
    assert right.mean() < 1e-3, "a recipe's limits in float32"
    assert right.max() < 0.1
    assert wrong[:split].mean() > 0.01
    assert wrong[split:].mean() > 0.01


# Episodes


class Chatter:
    """Answers every action; the third ends the episode, successfully when the texts' lengths add up to even."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.actions: list[str] = []

    async def reset(self) -> Opening:
        return Opening()

    async def step(self, action: str) -> StepResult:
        self.actions.append(action)
        if self.task.payload.get("raises"):
            raise OSError("the environment's own trouble")
        if len(self.actions) < self.task.payload.get("turns", 3):
            return StepResult(f"seen {len(action)} <|im_end|> malformed", done=False, malformed=True)
        reward = float(sum(map(len, self.actions)) % 2 == 0)
        return StepResult(None, done=True, reward=reward)

    async def close(self) -> None:
        pass


def task(name, **payload):
    prompt = [{"role": "system", "content": "search or answer"}, {"role": "user", "content": f"question {name}"}]
    return Task(name, prompt, payload)


def play(engines, chat, groups, *, urls=None, limits=None, fleet=None, temperature=1.0, meanwhile=None):
    fleet = fleet or Fleet(urls or engines.urls)
    config, waits, turns = limits or limited(4, 12, MAX_MODEL_LEN)
    waits = replace(waits, request=30.0)

    async def run():
        async with Rollout(fleet, engines.token, chat, Chatter, config, waits, max_turns=turns, seed=7) as rollout:
            playing = rollout.run_group_batch(groups, step=1, sampling=Sampling(temperature))
            batch = asyncio.create_task(playing)
            if meanwhile is not None:
                await asyncio.sleep(0.1)
                meanwhile()
            return await batch

    return asyncio.run(run())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_spans_are_exactly_the_tokens_the_policy_drew(engines, chat, temperature):
    groups = [Group(task(f"q{index}"), index, range(4)) for index in range(3)]
    episodes = play(engines, chat, groups, temperature=temperature)
    assert [(e.task_id, e.group, e.sample) for e in episodes] == [
        (f"q{g}", g, s) for g in range(3) for s in range(4)
    ]
    assert {e.outcome for e in episodes} == {"success", "failure"}
    finishes = set()
    for episode, group in zip(episodes, [g for g in groups for _ in range(4)], strict=True):
        prompt = chat.prompt(group.task.prompt)
        assert episode.tokens[: episode.prompt_length] == prompt
        rebuilt = list(prompt)
        expected = logprobs_of(engines.model, episode.tokens, temperature)
        own = []
        for turn in episode.turns:
            drawn = episode.tokens[turn.start : turn.end]
            assert len(rebuilt) == turn.start
            assert turn.text == chat.text(drawn)
            own += list(range(turn.start - 1, turn.end - 1))
            rebuilt += drawn
            cut = turn.finish == "length"
            assert cut == (drawn[-1] != END_OF_TURN)
            assert END_OF_TURN not in drawn[:-1]
            finishes.add(turn.finish)
            if turn.observation is not None:
                assert turn.observation == f"seen {len(turn.text)} <|im_end|> malformed"
                assert turn.malformed is True
                between = chat.between_turns(turn.observation, cut=cut)
                assert (between[0] == END_OF_TURN) == cut  # the template's end token lies outside the span
                assert between.count(END_OF_TURN) == 1 + cut, "what the observation says of it is text"
                rebuilt += between
        assert rebuilt == episode.tokens
        assert episode.turns[-1].observation is None
        difference = torch.tensor(episode.logprobs, dtype=torch.float64) - expected[own]
        assert len(episode.logprobs) == sum(turn.end - turn.start for turn in episode.turns)
        assert difference.abs().max() < 1e-3
        lengths = sum(len(turn.text) for turn in episode.turns)
        assert episode.reward == float(lengths % 2 == 0)
        assert (episode.outcome == "success") == (episode.reward == 1.0)
    assert finishes == {"stop", "length"}


def test_same_seeds_same_episodes_on_any_engine(engines, chat):
    groups = [Group(task("again"), 0, range(4))]
    first = play(engines, chat, groups, urls=engines.urls[:1])
    second = play(engines, chat, groups, urls=engines.urls[1:])
    assert [e.tokens for e in first] == [e.tokens for e in second]
    assert len({tuple(e.tokens) for e in first}) == 4


def test_limits_truncate_with_reward_zero(engines, chat):
    groups = [Group(task("long", turns=99), 0, range(4))]
    for episode in play(engines, chat, groups, limits=limited(3, 8, MAX_MODEL_LEN)):
        assert (episode.outcome, episode.reward, len(episode.turns)) == ("truncated", 0.0, 3)
        assert episode.tokens[-1] == episode.tokens[episode.turns[-1].end - 1]
    prompt = len(chat.prompt(groups[0].task.prompt))
    for episode in play(engines, chat, groups, limits=limited(50, 8, prompt + 60)):
        assert (episode.outcome, episode.reward) == ("truncated", 0.0)
        assert episode.turns[-1].end <= prompt + 60
    for episode in play(engines, chat, groups, limits=limited(50, 8, prompt)):
        assert (episode.outcome, episode.turns) == ("error", [])
        assert "PromptTooLong" in str(episode.error)


def test_environment_that_raises_is_an_error_not_a_failure(engines, chat):
    broken, sound = play(engines, chat, [Group(task("x", raises=True), 0, [0]), Group(task("y"), 1, [0])])
    assert broken.outcome == "error"
    assert broken.error == "OSError: the environment's own trouble"
    assert sound.outcome in ("success", "failure")


# Failures


def test_killed_engine_costs_no_episode_while_another_lives(engines, chat):
    victim = engines.all[1].process
    children = psutil.Process(victim.pid).children(recursive=True)
    assert children
    fleet = Fleet(engines.urls)
    groups = [Group(task(f"k{index}", turns=4), index, range(8)) for index in range(4)]
    episodes = play(engines, chat, groups, fleet=fleet, meanwhile=victim.kill)
    assert {e.outcome for e in episodes} <= {"success", "failure"}
    assert fleet.engines[engines.urls[1]].state is EngineState.DEAD
    assert fleet.engines[engines.urls[0]].state is EngineState.HEALTHY
    assert all(engine.load == 0 for engine in fleet.engines.values())
    _gone, alive = psutil.wait_procs(children, timeout=5.0)
    assert not alive, "the engine core outlived its server"


def test_no_engine_left_is_an_error_not_a_failure(one_dead, chat):
    episodes = play(one_dead, chat, [Group(task("lost"), 0, range(3))], urls=one_dead.urls[1:])
    assert [e.outcome for e in episodes] == ["error"] * 3
    assert all(e.error and one_dead.urls[1] in e.error for e in episodes)
    with pytest.raises(EngineError, match=one_dead.urls[1]):
        with_client(one_dead, lambda client: client.generate(PROMPT, GREEDY, max_tokens=1, seed=0), index=1)


def test_weight_transfer_names_the_dead_engine_and_another_goes_on_without_it(one_dead):
    source, told = ModelSource(one_dead.model), []
    publisher = WeightPublisher(one_dead.urls, one_dead.token, device="cpu", timeout=40.0)
    try:
        with pytest.raises(WeightTransferError, match=one_dead.urls[1]) as caught:
            publisher.connect(source)
        assert caught.value.engines == [one_dead.urls[1]]
    finally:
        publisher.close()
    publisher = FleetPublisher(
        one_dead.urls,
        make=lambda urls: WeightPublisher(urls, one_dead.token, device="cpu"),
        tell=lambda urls, version: told.append((list(urls), version)),
        senses=EngineSenses(lambda url: held_version(url, one_dead.token, 10.0)),
        patience=40.0,
        limit=40.0,
    )
    try:
        one_dead.version += 1
        publisher.publish(source, one_dead.version)
    finally:
        publisher.close()
    assert told == [([one_dead.urls[0]], one_dead.version)]
    assert greedy_tokens(one_dead, 0).token_ids == greedy(one_dead.model, PROMPT, 24)


def test_engine_that_cannot_start_shows_its_log(tmp_path):
    engine = start_engine(
        tmp_path / "nowhere", port=free_port(), token="t" * 16, log_path=tmp_path / "log", max_model_len=64
    )
    try:
        with pytest.raises(EngineStartError, match=r"ended with status 1(.|\n)*nowhere: no config.json there"):
            engine.wait_healthy(60.0)
    finally:
        engine.stop()
