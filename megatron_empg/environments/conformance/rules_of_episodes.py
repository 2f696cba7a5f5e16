"""Rules of episodes, which are played as a run plays them."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from megatron_empg.environments.asking import guarded, leave_behind
from megatron_empg.environments.base import DemonstratedTurn, Environment, StepResult, Task
from megatron_empg.environments.conformance.findings import Rule, RuleBroken, RuleDoubtful, RuleNotTried, refuse
from megatron_empg.environments.conformance.hostile_texts import HOSTILE_TEXTS
from megatron_empg.environments.conformance.subject import EnvironmentUnderTest
from megatron_empg.environments.shapes import conversation_faults

MOST_SECONDS_TO_MAKE = 0.05
MOST_SECONDS_OF_CPU = 0.05
"""Of one stretch in which no other episode goes on."""
MOST_SECONDS_ASLEEP = 0.5
JUNK = "a turn that means nothing"


async def making_costs_nothing(subject: EnvironmentUnderTest) -> None:
    if subject.in_process:
        raise RuleNotTried("episodes run in worker processes")
    task = subject.tasks()[0]
    subject.make(task)
    started = time.thread_time()
    one, other = subject.make(task), subject.make(task)
    seconds = (time.thread_time() - started) / 2
    if one is other:
        raise RuleBroken("make gave the same episode twice")
    for name in ("reset", "step", "close"):
        if not inspect.iscoroutinefunction(getattr(one, name, None)):
            raise RuleBroken(f"{name} of a {type(one).__name__} is not a coroutine: write `async def {name}`")
    if seconds > MOST_SECONDS_TO_MAKE:
        raise RuleDoubtful(f"make takes {1000 * seconds:.0f} ms; what takes time belongs into reset")


async def a_reset_opens_the_episode(subject: EnvironmentUnderTest) -> None:
    for task in subject.tasks():
        environment = subject.make(task)
        try:
            opening = await subject.reset(environment)
        finally:
            await subject.call("close", environment.close())
        told = [*task.prompt, *opening.messages]
        refuse([f"what the policy is told of task {task.id!r} has {fault}" for fault in conversation_faults(told)])
        roles = [message["role"] for message in told]
        for role, after in pairwise(roles):
            if role == after:
                raise RuleDoubtful(
                    f"task {task.id!r} has two messages of the {role}'s in a row, which some chat templates refuse"
                )


async def steps_give_results(subject: EnvironmentUnderTest) -> None:
    for task in subject.tasks():
        for script in [*subject.scripts(task), [JUNK, "", JUNK]]:
            await subject.played(task, script)


async def nothing_follows_the_end(subject: EnvironmentUnderTest) -> None:
    for task in subject.tasks():
        for script in subject.scripts(task):
            async with subject.episode(task) as environment:
                results = await subject.play(environment, script)
                if results[-1].done:
                    await _refuses_to_go_on(subject, environment)
                    return
    raise RuleNotTried("no turn is known that ends an episode: give tasks a gold, or rehearse an end")


async def _refuses_to_go_on(subject: EnvironmentUnderTest, environment: Environment) -> None:
    try:
        await subject.call("step", environment.step(JUNK))
    except RuntimeError as error:
        # A worker tells what was raised in it.
        if type(error) is RuntimeError or (subject.in_process and "RuntimeError" in str(error)):
            return
        raise
    raise RuleBroken("a step of an episode that is done raises no RuntimeError")


async def junk_is_answered_and_never_rewarded(subject: EnvironmentUnderTest) -> None:
    task = subject.tasks()[0]
    faults: list[str] = []
    left = list(HOSTILE_TEXTS)
    while left:
        async with subject.episode(task) as environment:
            while left:
                what = left.pop(0)
                result = await _answer_to(what, subject, environment, faults)
                if result is not None and result.reward > 0 and HOSTILE_TEXTS[what] != task.gold:
                    faults.append(f"{what} earns a reward of {result.reward:g}")
                if result is None or result.done:
                    break
    refuse(faults)


async def _answer_to(
    what: str, subject: EnvironmentUnderTest, environment: Environment, faults: list[str]
) -> StepResult | None:
    """None where it failed, which is noted."""
    try:
        return await subject.step(environment, HOSTILE_TEXTS[what])
    except RuleBroken as error:
        faults.append(f"{what}: {error}")
    except Exception as error:
        faults.append(f"{what} raises {type(error).__name__}: {error!s:.200}")
    return None


async def closing_twice_is_fine(subject: EnvironmentUnderTest) -> None:
    task = subject.tasks()[0]
    unbegun = subject.make(task)
    begun = subject.make(task)
    await subject.reset(begun)
    acting = subject.make(task)
    await subject.reset(acting)
    await subject.step(acting, subject.longest_script(task)[0])
    for environment in (unbegun, begun, acting):
        await subject.call("close", environment.close())
        await subject.call("close", environment.close())


async def same_turns_same_answers(subject: EnvironmentUnderTest) -> None:
    if not subject.source.deterministic:
        raise RuleNotTried("it says that it is not deterministic")
    for task in subject.tasks():
        script = [JUNK, *subject.longest_script(task)]
        first, second = [await subject.played(task, script) for _ in range(2)]
        _compare(task, first, second, "is answered differently when the same episode is played again")


async def episodes_do_not_disturb_each_other(subject: EnvironmentUnderTest) -> None:
    tasks = subject.tasks()
    one, other = tasks[0], tasks[-1]
    scripts = subject.longest_script(one), [JUNK, *subject.longest_script(other)]
    alone = await subject.played(one, scripts[0]), await subject.played(other, scripts[1])
    async with subject.episode(one) as first, subject.episode(other) as second:
        together: tuple[list[StepResult], list[StepResult]] = ([], [])
        for turn in range(max(map(len, scripts))):
            for environment, script, results in zip((first, second), scripts, together, strict=True):
                over = bool(results) and results[-1].done
                if turn < len(script) and not over:
                    results.append(await subject.step(environment, script[turn]))
    if not subject.source.deterministic:
        return
    for task, before, after in zip((one, other), alone, together, strict=True):
        _compare(task, before, after, "is answered differently while another episode is played")


async def a_cancelled_step_costs_its_episode_alone(subject: EnvironmentUnderTest) -> None:
    task = subject.tasks()[0]
    action = subject.longest_script(task)[0]
    async with subject.episode(task) as sound, subject.episode(task) as cancelled:
        step = asyncio.ensure_future(guarded("step", partial(cancelled.step, action)))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step], timeout=subject.call_timeout)
        if not step.done():
            leave_behind(step)
            raise RuleBroken("a step that is cancelled goes on")
        if not step.cancelled():
            step.exception()  # perhaps it was over before; what it raised is looked at elsewhere
        await subject.step(sound, action)
    await subject.played(task, [action])


async def the_gold_turn_answers_right(subject: EnvironmentUnderTest) -> None:
    told = [task for task in subject.tasks() if task.gold is not None]
    if not told:
        raise RuleNotTried("tasks have no gold")
    for task in told:
        (result,) = await subject.played(task, [str(task.gold)])
        if result.malformed:
            raise RuleBroken(f"the gold turn of task {task.id!r} cannot be read: {task.gold!r:.80}")
        if result.reward <= 0:
            raise RuleDoubtful(f"the gold turn of task {task.id!r} earns {result.reward:g}: {task.gold!r:.80}")


async def demonstrations_can_be_played(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    demonstrations = source.demonstrations()
    if demonstrations is None:
        raise RuleNotTried("it offers none")
    for task in subject.tasks():
        walkthrough = demonstrations.walkthrough(task, seed=0)
        if walkthrough != demonstrations.walkthrough(task, seed=0):
            raise RuleBroken(f"two walkthroughs of task {task.id!r} with one seed differ")
        turns = walkthrough.turns
        if not 1 <= len(turns) <= source.limits.max_turns:
            raise RuleBroken(
                f"the walkthrough of task {task.id!r} has {len(turns)} turns; 1 to {source.limits.max_turns} fit"
            )
        async with subject.episode_with_opening(task) as (environment, opening):
            results = await subject.play(environment, [turn.action for turn in turns])
        if source.deterministic:
            if opening != walkthrough.opening:
                raise RuleBroken(f"the walkthrough of task {task.id!r} has another opening when it is played")
            _compare_demonstration(task, turns, results)


def _compare_demonstration(task: Task, turns: Sequence[DemonstratedTurn], results: Sequence[StepResult]) -> None:
    told = [(turn.observation, turn.context) for turn in turns]
    met = [(result.observation, result.context) for result in results]
    if told != met:
        number = next((i for i, pair in enumerate(zip(told, met, strict=False)) if pair[0] != pair[1]), len(met))
        raise RuleBroken(
            f"turn {number + 1} of the walkthrough of task {task.id!r} has another observation when it is played"
        )
    unread = [number for number, result in enumerate(results, 1) if result.malformed]
    if unread:
        raise RuleBroken(f"turn {unread[0]} of the walkthrough of task {task.id!r} cannot be read")


async def rehearsals_can_be_read(subject: EnvironmentUnderTest) -> None:
    tried = 0
    for task in subject.tasks():
        texts = subject.source.rehearse(task)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RuleBroken("rehearse gave no list of texts")
        if texts:
            tried += 1
            results = await subject.played(task, texts)
            unread = [text for text, result in zip(texts, results, strict=False) if result.malformed]
            refuse([f"the rehearsed turn {text!r:.80} of task {task.id!r} cannot be read" for text in unread])
    if not tried:
        raise RuleNotTried("it rehearses nothing")


async def the_event_loop_stays_free(subject: EnvironmentUnderTest) -> None:
    """Comes last: it looks back on all that was played."""
    if subject.in_process:
        raise RuleNotTried("episodes run in worker processes")
    cpu, asleep = subject.hold.cpu, subject.hold.asleep
    way_out = 'await in_thread(...) around it, or isolation = "process"'
    if cpu > MOST_SECONDS_OF_CPU:
        raise RuleDoubtful(f"a call computed for {1000 * cpu:.0f} ms while all other episodes waited: {way_out}")
    if asleep > MOST_SECONDS_ASLEEP:
        raise RuleDoubtful(f"a call slept or waited for {asleep:.1f} s while all other episodes waited: {way_out}")


def _compare(task: Task, before: Sequence[StepResult], after: Sequence[StepResult], what: str) -> None:
    for number, (one, other) in enumerate(zip(before, after, strict=False), 1):
        if one != other:
            raise RuleBroken(
                f"turn {number} of task {task.id!r} {what}; where that must be, say `deterministic = False`"
            )
    if len(before) != len(after):
        raise RuleBroken(f"task {task.id!r} {what}")


RULES = (
    Rule("making an episode costs nothing, and each is one of its own", making_costs_nothing),
    Rule("a reset opens the episode with messages for the policy", a_reset_opens_the_episode),
    Rule("a step gives an observation exactly when it goes on, and a finite reward", steps_give_results),
    Rule("a step after the end raises RuntimeError", nothing_follows_the_end),
    Rule("junk is answered, and never rewarded", junk_is_answered_and_never_rewarded),
    Rule("closing is possible at any time, and twice", closing_twice_is_fine),
    Rule("the same turns meet the same answers", same_turns_same_answers),
    Rule("episodes do not disturb each other", episodes_do_not_disturb_each_other),
    Rule("a cancelled step costs its episode alone", a_cancelled_step_costs_its_episode_alone),
    Rule("the gold turn of a task answers right", the_gold_turn_answers_right),
    Rule("demonstrations can be played as they are told", demonstrations_can_be_played),
    Rule("rehearsed turns can be read", rehearsals_can_be_read),
    Rule("the event loop stays free for other episodes", the_event_loop_stays_free),
)
