"""What an environment returns is judged the same on the event loop, in a worker process and by the check."""

import asyncio

import numpy as np
import pytest

from megatron_empg.environments.base import Opening, StepResult, Task, TaskSource
from megatron_empg.environments.conformance.subject import EnvironmentUnderTest
from megatron_empg.environments.shapes import checked_opening, checked_result
from megatron_empg.environments.workers import WorkerPool, errors

WRONG = {
    "bool reward": (StepResult("x", False, reward=True), "a reward of True, which is not a finite number"),
    "text reward": (StepResult("x", False, reward="1"), "a reward of '1'"),
    "huge reward": (StepResult("x", False, reward=10**400), "a reward of 1000"),
    "nan reward": (StepResult("x", False, reward=np.float64("nan")), "a reward of nan"),
    "text success": (StepResult(None, True, 1.0, success="no"), "success 'no', which is neither"),
    "text malformed": (StepResult("x", False, malformed="maybe"), "malformed 'maybe'"),
    "end and observation": (StepResult("x", True, 1.0), "an observation where it is done"),
    "no observation": (StepResult(None, False), "no observation where it goes on"),
    "no info": (StepResult("x", False, info=None), "info that is a NoneType, not a dict"),
    "object in info": (StepResult("x", False, info={"a": object()}), "info['a'] of <object object"),
    "number as anchor": (StepResult("x", False, anchor=5), "an anchor that is a int"),
    "number as observation": (StepResult(5, False), "an observation that is a int"),
    "done of 1": (StepResult(None, 1), "done 1, which is neither True nor False"),
    "nothing": (None, "a NoneType, not a StepResult"),
}
RIGHT = {
    "numpy": StepResult("x", np.bool_(False), np.float32(0.5), info={"n": np.int64(3), "yes": np.bool_(True)}),
    "whole": StepResult(None, True, 1, success=True),
}


class Answering:
    async def reset(self):
        return Opening()

    async def step(self, action):
        return WRONG[action][0] if action in WRONG else RIGHT[action]

    async def close(self):
        pass


class Source(TaskSource):
    """Answers."""

    isolation = "process"

    def tasks(self, split):
        return [Task("t", [{"role": "user", "content": "hi"}], {})]

    def make(self, task):
        return Answering()


def source():
    from megatron_empg.environments.registry import make_task_source

    return make_task_source(f"{__name__}:Source")


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_result_is_refused_with_its_fault_on_the_event_loop_and_by_the_check(what):
    answer, fault = WRONG[what]
    with pytest.raises(ValueError, match="step returned") as refused:
        checked_result(answer)
    assert fault in str(refused.value)
    made = source()
    subject = EnvironmentUnderTest("x", {}, made, made.make, 5.0)
    from megatron_empg.environments.conformance.findings import RuleBroken

    with pytest.raises(RuleBroken) as broken:
        asyncio.run(subject.step(Answering(), what))
    assert fault in str(broken.value)


def test_a_worker_refuses_the_same_results_with_the_same_words():
    async def play():
        made = source()
        pool = WorkerPool(f"{__name__}:Source", made.settings, made.limits, memory_gib=1.0, worker_memory_gib=1.0)
        try:
            for what, (_, fault) in WRONG.items():
                episode = pool.make(made.tasks("train")[0])
                await episode.reset()
                with pytest.raises(errors.EnvironmentRaised) as refused:
                    await episode.step(what)
                assert fault in str(refused.value), what
                await episode.close()
            for what, answer in RIGHT.items():
                episode = pool.make(made.tasks("train")[0])
                await episode.reset()
                assert await episode.step(what) == checked_result(answer)
                await episode.close()
        finally:
            await pool.close()

    asyncio.run(play())


def test_values_of_numpy_count_as_what_they_stand_for():
    result = checked_result(RIGHT["numpy"])
    assert result == StepResult("x", False, 0.5, info={"n": 3, "yes": True})
    assert [type(value) for value in (result.reward, result.done, *result.info.values())] == [
        float,
        bool,
        int,
        bool,
    ]


@pytest.mark.parametrize(
    ("opening", "fault"),
    [
        ("hello", "a str, not an Opening"),
        (Opening([{"role": "user"}]), "message 1 that is not {role, content}"),
        (Opening([{"role": ["user"], "content": "x"}]), "message 1 of the role ['user']"),
        (Opening(anchor=5), "an anchor that is a int"),
    ],
)
def test_a_wrong_opening_is_refused_with_its_fault(opening, fault):
    with pytest.raises(ValueError, match="reset returned") as refused:
        checked_opening(opening)
    assert fault in str(refused.value)
