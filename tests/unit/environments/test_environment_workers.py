"""Environments in worker processes: what they do to themselves costs one episode, and leaves nothing behind."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path

import pytest

from megatron_empg.environments.base import EpisodeLimits, Opening, StepResult, Task, WaitsForItsPlace
from megatron_empg.environments.workers import WorkerOptions, WorkerPool, errors, wire
from megatron_empg.environments.workers.messages import read_answer
from tests.unit.environments.bad_environments import EchoSettings

ECHO = "tests.unit.environments.bad_environments:Echo"
ROOT = Path(__file__).resolve().parents[3]


def on_a_loop(test):
    @wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def pool_of(workers=1, *, step_timeout=60.0, memory=1.0, settings=None, **options):
    pool = WorkerPool(
        ECHO,
        settings or EchoSettings(),
        EpisodeLimits(5, step_timeout),
        memory_gib=memory * workers,
        worker_memory_gib=memory,
        options=WorkerOptions(**{"close_timeout": 30.0, "memory_interval": 0.1} | options),
    )
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.live == 0


def a_task(**payload):
    return Task("a task", [{"role": "user", "content": "do"}], payload)


@asynccontextmanager
async def episode_of(pool, **payload):
    episode = pool.make(a_task(**payload))
    try:
        await episode.reset()
        yield episode
    finally:
        await episode.close()


async def fails(pool, kind, action, **payload):
    """The text of the error that an episode ends with. The next one must go well."""
    async with episode_of(pool, **payload) as episode:
        with pytest.raises(kind) as caught:
            await episode.step(action)
        with pytest.raises(RuntimeError, match="after the end"):
            await episode.step("more")
    async with episode_of(pool) as episode:
        assert (await episode.step("well")).observation == "well"
    return str(caught.value)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids):
    while any(map(is_there, pids)):
        await asyncio.sleep(0.01)


@on_a_loop
async def test_an_episode_in_a_worker_is_the_one_that_runs_without():
    async with pool_of(settings=EchoSettings(greeting="¡hola!", numbers=(1, 2))) as pool:
        episode = pool.make(a_task(anchor="start"))
        opening = await episode.reset()
        message = {"role": "user", "content": "¡hola! (1, 2) 2024-02-29 5"}
        assert opening == Opening([message], anchor="start")
        result = await episode.step("one")
        assert (result.observation, result.reward, result.anchor) == ("one", 0.5, "state")
        assert (result.done, result.success, result.malformed) == (False, None, False)
        assert await episode.step("done") == StepResult(None, True, reward=1.0, success=True)
        await episode.close()
        await episode.close()


@on_a_loop
async def test_any_text_arrives_as_it_was():
    rng = random.Random(0)
    texts = ["", "\0\r\n", "日本語", "\ud800 alone", "\udc80\ud83d", "\ud83d\ude00", "🙂", '"\\' * 100]
    texts.append("".join(chr(rng.randrange(0x110000)) for _ in range(5000)))
    texts.append("".join(chr(rng.randrange(32, 127)) for _ in range(100_000)))
    async with pool_of() as pool, episode_of(pool) as episode:
        for text in texts:
            assert (await episode.step("." + text)).observation == "." + text


@on_a_loop
async def test_what_the_engine_prints_is_no_answer():
    async with pool_of() as pool:
        async with episode_of(pool) as episode:
            for _ in range(3):
                assert (await episode.step("print \ud800 {}")).observation == "printed"
            assert (await episode.step("noise 3000000")).observation == "noisy"
            assert (await episode.step("stdin")).observation == "''"
        text = await fails(pool, errors.WorkerDied, "exit 3", reset="print last words")
    assert "ended with exit status 3 in step" in text
    for line in ("last words", "to stderr", "by descriptor", "by a child"):
        assert line in text


@on_a_loop
async def test_of_what_the_engine_prints_the_end_alone_is_kept():
    async with pool_of(log_bytes=1000) as pool:
        assert len(await fails(pool, errors.WorkerDied, "exit 1", reset="noise 1000000")) < 1300


@on_a_loop
async def test_a_worker_that_dies_costs_its_episode_alone():
    deaths = {
        "exit 0": "ended with exit status 0 in step",
        "leave 4": "ended with exit status 4 in step",
        "segfault": "was killed by SIGSEGV in step",
        "signal SIGKILL": "was killed by SIGKILL in step",
        "cancelled": "ended with exit status 1 in step",
    }
    async with pool_of(2) as pool, episode_of(pool) as other:
        for action, reason in deaths.items():
            assert reason in await fails(pool, errors.WorkerDied, action)
        assert (await other.step("still here")).observation == "still here"
        assert pool.died == len(deaths)


@on_a_loop
async def test_a_crash_shows_where_it_was():
    async with pool_of() as pool:
        assert "_segfault" in await fails(pool, errors.WorkerDied, "segfault")


@on_a_loop
async def test_a_worker_that_dies_in_reset_or_close_costs_its_episode_alone():
    async with pool_of() as pool:
        episode = pool.make(a_task(reset="exit 5"))
        with pytest.raises(errors.WorkerDied, match="status 5 in reset"):
            await episode.reset()
        await episode.close()
        async with episode_of(pool, close="exit 6") as episode:
            assert (await episode.step("well")).observation == "well"
        async with episode_of(pool, close="raise no") as episode:
            assert (await episode.step("well")).observation == "well"
        async with episode_of(pool) as episode:
            assert (await episode.step("well")).observation == "well"
        assert pool.died == 2


@on_a_loop
async def test_a_worker_that_dies_between_episodes_costs_none():
    async with pool_of() as pool:
        async with episode_of(pool) as episode:
            pid = (await episode.step("x")).info["pid"]
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with episode_of(pool) as episode:
            assert (await episode.step("x")).info["pid"] != pid
        assert pool.died == 1


@on_a_loop
async def test_a_worker_that_hangs_is_killed_with_its_children():
    async with pool_of(step_timeout=3.0) as pool:
        async with episode_of(pool) as episode:
            pids = (await episode.step("spawn both")).observation.split()
            with pytest.raises(errors.WorkerTimeout, match="step took more than 3 s"):
                await episode.step("hang")
        await gone(*pids)
        with pytest.raises(errors.WorkerTimeout, match="reset took more than 3 s"):
            await pool.make(a_task(reset="hang")).reset()
        assert pool.died == 2


@on_a_loop
async def test_children_of_a_worker_that_dies_end():
    async with pool_of() as pool:
        async with episode_of(pool) as episode:
            child = (await episode.step("spawn")).observation
            with pytest.raises(errors.WorkerDied):
                await episode.step("exit 1")
        await gone(child)


@on_a_loop
async def test_an_answer_that_is_too_large_is_an_error():
    async with pool_of(answer_bytes=1 << 20) as pool:
        async with episode_of(pool) as episode:
            assert len((await episode.step("large 1000000")).observation) == 1_000_000
        text = await fails(pool, errors.WorkerAnswerTooLarge, "large 10000000")
    assert "1000" in text
    assert "the limit is 1048576" in text


@on_a_loop
async def test_a_malformed_answer_is_an_error():
    async with pool_of() as pool:
        for what in ("json", "other", "nested"):
            assert "cannot be read" in await fails(pool, errors.WorkerAnswerMalformed, f"socket {what}")
        await fails(pool, errors.WorkerAnswerTooLarge, "socket text")


@on_a_loop
async def test_a_result_of_wrong_values_is_an_error():
    wrong = {
        "reward nan": "a reward of nan, which is not a finite number",
        "reward -inf": "a reward of -inf, which is not a finite number",
        "number": "an observation that is a int, not a text",
    }
    async with pool_of() as pool:
        for action, reason in wrong.items():
            assert reason in await fails(pool, errors.EnvironmentRaised, action)


@on_a_loop
async def test_an_exception_in_a_step_is_told():
    raising = {
        "raise no such \ud800 door": "ValueError: no such",
        "unprintable": "Unprintable",
        "recurse": "RecursionError",
        "dict": "step returned a dict, not a StepResult",
        "none": "step returned a NoneType",
        "object": "an observation that is a object, not a text",
        "bytes": "an observation that is a bytes, not a text",
    }
    async with pool_of() as pool:
        for action, reason in raising.items():
            async with episode_of(pool) as episode:
                with pytest.raises(errors.EnvironmentRaised) as caught:
                    await episode.step(action)
            assert reason in str(caught.value)
            assert len(str(caught.value)) < 10_000
        assert pool.died == 0


@on_a_loop
async def test_an_exception_in_reset_is_told_and_the_environment_is_closed():
    async with pool_of() as pool:
        episode = pool.make(a_task(reset="raise no room", close="print closed"))
        with pytest.raises(errors.EnvironmentRaised, match=r"raised in reset: ValueError: no room[\s\S]*bad_env"):
            await episode.reset()
        await episode.close()
        assert pool.died == 0


@on_a_loop
async def test_numbers_of_numpy_are_numbers():
    async with pool_of() as pool, episode_of(pool) as episode:
        assert await episode.step("numpy") == StepResult(None, True, 0.25, success=True, info={"n": 3})


@on_a_loop
async def test_a_worker_that_takes_too_much_memory_is_killed():
    async with pool_of(memory=0.25) as pool:
        for action in ("allocate 400", "child_allocates 400"):
            assert "a worker may take 0.25" in await fails(pool, errors.WorkerMemory, action)


@on_a_loop
async def test_a_cancelled_step_leaves_no_worker_busy():
    async with pool_of() as pool:
        async with episode_of(pool) as episode:
            pid = (await episode.step("x")).info["pid"]
            step = asyncio.create_task(episode.step("hang"))
            await asyncio.sleep(0.05)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        await gone(pid)
        async with episode_of(pool) as episode:
            assert (await episode.step("x")).info["pid"] != pid
        assert pool.died == 0


@on_a_loop
async def test_a_cancelled_reset_leaves_no_worker_busy():
    async with pool_of() as pool:
        for pause in (0.0, 0.01, 0.1, 1.0):  # in the queue, in the start, perhaps in the reset
            reset = asyncio.create_task(pool.make(a_task(reset="hang")).reset())
            await asyncio.sleep(pause)
            reset.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reset
            assert pool.live <= 1
        async with episode_of(pool) as episode:
            assert (await episode.step("well")).observation == "well"


@on_a_loop
async def test_an_episode_closed_in_mid_step_leaves_no_worker_busy():
    async with pool_of() as pool:
        async with episode_of(pool) as episode:
            step = asyncio.create_task(episode.step("hang"))
            await asyncio.sleep(0.05)
            with pytest.raises(RuntimeError, match="in a call"):
                await episode.step("at the same time")
            await episode.close()
            with pytest.raises(errors.PoolClosed):
                await step
        async with episode_of(pool) as episode:
            assert (await episode.step("well")).observation == "well"


@on_a_loop
async def test_an_episode_closed_while_it_waits_takes_no_worker():
    async with pool_of() as pool:
        async with episode_of(pool):
            waiting = pool.make(a_task())
            reset = asyncio.create_task(waiting.reset())
            await asyncio.sleep(0)
            assert pool.waiting == 1
            await waiting.close()
        with pytest.raises(errors.PoolClosed, match="while it waited"):
            await reset
        async with episode_of(pool) as episode:
            assert (await episode.step("well")).observation == "well"


@on_a_loop
async def test_episodes_beyond_the_pool_share_its_workers():
    most = 0

    async def play(number):
        nonlocal most
        async with episode_of(pool) as episode:
            pids = {(await episode.step(f"sleep {0.02 * number}")).info["pid"] for _ in range(2)}
            most = max(most, pool.live)
        assert len(pids) == 1
        return pids.pop()

    async with pool_of(2, step_timeout=None) as pool:
        playing = [asyncio.create_task(play(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert pool.waiting == 4
        pids = await asyncio.gather(*playing)
        assert (pool.waiting, pool.died) == (0, 0)
    assert most == 2
    assert len(set(pids)) <= 2


@on_a_loop
async def test_episodes_beyond_the_pool_wait_in_order():
    begun = []

    async def play(number):
        async with episode_of(pool):
            begun.append(number)

    async with pool_of(1) as pool:
        await asyncio.gather(*map(play, range(6)))
    assert begun == list(range(6))


@on_a_loop
async def test_a_wait_for_a_worker_is_no_part_of_the_steps_time():
    async with pool_of(step_timeout=2.0) as pool:
        async with episode_of(pool) as first:
            second = pool.make(a_task())
            reset = asyncio.create_task(second.reset())
            await asyncio.sleep(2.2)
            await first.step("x")
            assert not reset.done()
        await reset
        await second.close()


@on_a_loop
async def test_a_worker_is_replaced_after_its_episodes():
    pids = []
    async with pool_of(episodes_per_worker=2) as pool:
        for _ in range(4):
            async with episode_of(pool) as episode:
                pids.append((await episode.step("x")).info["pid"])
        await gone(*pids[:2])
        assert pool.died == 0
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize("when", ["on_start", "on_warm_up"])
@pytest.mark.parametrize(
    ("deed", "reason"),
    [("raise the data is not there", "ValueError: the data is not there"), ("exit 9", "exit status 9 in start")],
)
@on_a_loop
async def test_workers_that_cannot_start_are_a_clear_error(when, deed, reason):
    async with pool_of(2, settings=EchoSettings(**{when: deed})) as pool:
        resets = [pool.make(a_task()).reset() for _ in range(4)]
        found = await asyncio.gather(*resets, return_exceptions=True)
        assert {type(error) for error in found} == {errors.WorkerStartError}
        assert reason in str(found[0])
        assert "in a row did not start" in str(found[0])
        assert pool.died <= 4
        with pytest.raises(errors.WorkerStartError):
            await pool.make(a_task()).reset()


@pytest.mark.parametrize("when", ["on_start", "on_warm_up"])
@on_a_loop
async def test_a_worker_that_starts_too_slowly_did_not_start(when):
    async with pool_of(settings=EchoSettings(**{when: "hang"}), start_timeout=0.3) as pool:
        with pytest.raises(errors.WorkerStartError, match="start took more than"):
            await pool.make(a_task()).reset()
        assert pool.died == 3


@on_a_loop
async def test_an_engine_that_is_slow_to_start_costs_no_reset_its_time():
    settings = EchoSettings(on_warm_up="sleep 4")
    async with pool_of(settings=settings, step_timeout=3.0) as pool, episode_of(pool) as episode:
        assert (await episode.step("well")).observation == "well"
        assert pool.died == 0


@on_a_loop
async def test_a_start_that_nobody_waits_for_any_more_serves_the_next_episode():
    async with pool_of(settings=EchoSettings(on_start="sleep 1")) as pool:
        pids = set()
        for _ in range(3):
            admitted = asyncio.create_task(pool.make(a_task()).admitted())
            await asyncio.sleep(0.05)
            admitted.cancel()
            with pytest.raises(asyncio.CancelledError):
                await admitted
            pids |= {worker.pid for worker in pool._live}
        async with episode_of(pool) as episode:
            assert {(await episode.step("x")).info["pid"]} == pids
        assert pool.died == 0


@on_a_loop
async def test_a_start_that_fails_counts_though_nobody_waits_for_it():
    async with pool_of(settings=EchoSettings(on_start="hang"), start_timeout=0.3) as pool:
        admitted = asyncio.create_task(pool.make(a_task()).admitted())
        await asyncio.sleep(0.05)
        admitted.cancel()
        await asyncio.wait([admitted])
        with pytest.raises(errors.WorkerStartError, match="start took more than"):
            await pool.make(a_task()).admitted()
        assert pool.died == 3


@on_a_loop
async def test_a_pool_may_be_closed_while_a_worker_starts():
    async with pool_of(settings=EchoSettings(on_start="hang")) as pool:
        waiting = asyncio.create_task(pool.make(a_task()).admitted())
        left = asyncio.create_task(pool.make(a_task()).admitted())
        await asyncio.sleep(0.05)
        left.cancel()
        await pool.close()
        with pytest.raises(errors.PoolClosed):
            await waiting
        assert (pool.live, pool.died) == (0, 0)


@on_a_loop
async def test_a_worker_that_was_waited_for_leaves_reset_its_whole_time():
    async with pool_of(settings=EchoSettings(on_start="sleep 1"), step_timeout=60.0) as pool:
        episode = pool.make(a_task())
        assert isinstance(episode, WaitsForItsPlace)
        await episode.admitted()
        with pytest.raises(RuntimeError, match="must be called once"):
            await episode.admitted()
        assert (await episode.reset()).messages
        with pytest.raises(RuntimeError, match="must be called once"):
            await episode.reset()
        await episode.close()


@on_a_loop
async def test_closing_a_pool_ends_what_runs_and_what_waits():
    async with pool_of(1) as pool, episode_of(pool) as episode:
        pid = (await episode.step("x")).info["pid"]
        step = asyncio.create_task(episode.step("hang"))
        waiting = [asyncio.create_task(pool.make(a_task()).reset()) for _ in range(3)]
        await asyncio.sleep(0.05)
        await pool.close()
        for task in (step, *waiting):
            with pytest.raises(errors.PoolClosed):
                await task
        assert not is_there(pid)
        with pytest.raises(errors.PoolClosed):
            await pool.make(a_task()).reset()
        assert (pool.live, pool.waiting, pool.died) == (0, 0, 0)


@on_a_loop
async def test_a_worker_imports_its_environment_and_nothing_heavy():
    async with pool_of() as pool, episode_of(pool) as episode:
        assert (await episode.step("heavy")).observation == "none"
        assert (await episode.step("cwd")).observation == os.getcwd()
        assert (await episode.step("oom")).observation == "1000"
        assert (await episode.step("variable NUMBA_NUM_THREADS")).observation == "1"


@on_a_loop
async def test_a_worker_has_no_secret_of_the_run():
    secrets = {"EMPG_TOKEN": "t" * 16, "HF_TOKEN": "hf_x", "WANDB_API_KEY": "w"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (secrets | {"ITS_OWN_KEY": "k"}).items():
            patch.setenv(name, value)
        async with pool_of() as pool, episode_of(pool) as episode:
            for name in secrets:
                assert (await episode.step(f"variable {name}")).observation == "unset"
            assert (await episode.step("variable ITS_OWN_KEY")).observation == "k"


@on_a_loop
async def test_a_pool_leaves_no_descriptor_open():
    async def play(*actions):
        async with pool_of() as pool:
            for action in actions:
                async with episode_of(pool) as episode:
                    with pytest.raises(RuntimeError):
                        await episode.step(action)

    await play("raise no")
    before = os.listdir("/proc/self/fd")
    await play("exit 1", "raise no")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_pool_keeps_to_one_loop():
    pool = WorkerPool(ECHO, EchoSettings(), EpisodeLimits(), memory_gib=1, worker_memory_gib=1)

    async def play():
        async with episode_of(pool):
            pass

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(play())
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run(play())
        first.run(pool.close())


@pytest.mark.parametrize(("memory", "of_one", "workers"), [(0.3, 0.1, 3), (1.9, 1.0, 1), (64, 0.5, 128)])
def test_as_many_workers_as_fit(memory, of_one, workers):
    pool = WorkerPool(ECHO, EchoSettings(), EpisodeLimits(), memory_gib=memory, worker_memory_gib=of_one)
    assert pool.workers == workers


@pytest.mark.parametrize(
    ("memory", "of_one", "reason"),
    [(0.4, 0.5, "at least 0.5 GiB"), (0.0, 0.5, "memory_gib is 0.0"), (1.0, float("nan"), "nan"), (1.0, -1, "-1")],
)
def test_a_pool_without_room_for_a_worker_is_refused(memory, of_one, reason):
    with pytest.raises(ValueError, match=reason):
        WorkerPool(ECHO, EchoSettings(), EpisodeLimits(), memory_gib=memory, worker_memory_gib=of_one)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="answer_bytes is 0"):
        WorkerOptions(answer_bytes=0)


@on_a_loop
async def test_a_task_that_is_no_json_is_refused_by_name():
    async with pool_of() as pool:
        with pytest.raises(ValueError, match=r"'a task' is not JSON.*a set is not JSON"):
            await pool.make(a_task(words={"a"})).reset()
        assert pool.live == 0


def test_the_event_loop_may_be_uvloop():
    uvloop = pytest.importorskip("uvloop")

    async def play():
        async with pool_of(2) as pool:
            async with episode_of(pool) as episode:
                text = "." + "\ud800x" * 100_000
                assert (await episode.step(text)).observation == text
            await fails(pool, errors.WorkerDied, "exit 3", reset="noise 300000")
            async with episode_of(pool) as episode:
                step = asyncio.create_task(episode.step("hang"))
                await asyncio.sleep(0.05)
                step.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await step

    uvloop.run(play())


PARENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.unit.environments.bad_environments import EchoSettings
from megatron_empg.environments.base import EpisodeLimits, Task
from megatron_empg.environments.workers import WorkerPool


async def main():
    name = "tests.unit.environments.bad_environments:Echo"
    pool = WorkerPool(name, EchoSettings(), EpisodeLimits(), memory_gib=2, worker_memory_gib=1)
    episodes = [pool.make(Task("t", [], {})) for _ in range(2)]
    for episode in episodes:
        await episode.reset()
        result = await episode.step("spawn")
        print((await episode.step("x")).info["pid"], result.observation, flush=True)
    await asyncio.gather(*(episode.step("hang") for episode in episodes))


asyncio.run(main())
"""


def test_nothing_is_left_when_the_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(ROOT)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [pid for _ in range(2) for pid in parent.stdout.readline().split()]
        assert len(pids) == 4
        assert all(map(is_there, pids))
        time.sleep(0.05)
        parent.kill()
        parent.wait()
    until = time.monotonic() + 60
    while any(map(is_there, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_there, pids))


STRINGS = ["", "x", "\ud800", "Done", "Stepped", "Opened", "Raised", "kind", "result", "opening", "messages"]


def test_answers_of_any_form_are_read_or_refused():
    rng = random.Random(1)
    good = [
        {"kind": "Done"},
        {"kind": "Raised", "error": "e", "traceback": "t"},
        {"kind": "Opened", "opening": {"messages": [{"role": "user", "content": "c"}], "anchor": None}},
        {
            "kind": "Stepped",
            "result": {
                "observation": "o",
                "done": False,
                "reward": 1,
                "success": None,
                "malformed": None,
                "anchor": None,
                "info": {"a": 1},
                "context": None,
            },
        },
    ]
    for answer in good:
        read_answer(wire.to_bytes(answer))

    def junk(depth):
        kinds = 8 if depth else 5
        which = rng.randrange(kinds)
        if which < 5:
            return [None, True, rng.choice(STRINGS), 10**400, float("inf")][which]
        if which == 5:
            return [junk(depth - 1) for _ in range(rng.randrange(3))]
        return {rng.choice(STRINGS): junk(depth - 1) for _ in range(rng.randrange(4))}

    def spoilt(value):
        if rng.random() < 0.15:
            return junk(2)
        if isinstance(value, dict):
            return {key: spoilt(inner) for key, inner in value.items() if rng.random() < 0.95}
        if isinstance(value, list):
            return [spoilt(inner) for inner in value]
        return value

    refused = 0
    for _ in range(3000):
        body = bytearray(wire.to_bytes(spoilt(rng.choice(good))))
        if rng.random() < 0.3 and body:
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            read_answer(bytes(body))
        except ValueError:
            refused += 1
    assert 500 < refused < 3000


@on_a_loop
async def test_messages_are_cut_where_they_end_and_refused_by_their_length():
    one, other = socket.socketpair()
    for end in (one, other):
        end.setblocking(False)
    with one, other:
        bodies = [b"", b"x", b"y" * 300_000]
        sending = [wire.send(one, body) for body in bodies]
        reading = [wire.receive(other, 300_000) for _ in bodies]

        async def send_all():
            for each in sending:
                await each

        task = asyncio.create_task(send_all())
        assert [await each for each in reading] == bodies
        await task
        await wire.send(one, b"12345")
        with pytest.raises(wire.TooLong, match="5"):
            await wire.receive(other, 4)
        one.close()
        assert await asyncio.get_running_loop().sock_recv(other, 5) == b"12345"
        with pytest.raises(EOFError):
            await wire.receive(other, 4)
