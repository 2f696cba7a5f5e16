"""The conformance test: all rules, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from megatron_empg.environments.asking import abandon_what_was_left_behind, answer_of
from megatron_empg.environments.base import STEP_SHARE, Environment, Task, TaskSource
from megatron_empg.environments.conformance import rules_of_episodes, rules_of_plugins, rules_of_tasks
from megatron_empg.environments.conformance.findings import (
    Rule,
    RuleBroken,
    RuleDoubtful,
    RuleFinding,
    RuleNotTried,
)
from megatron_empg.environments.conformance.rules_of_tasks import splits_exist
from megatron_empg.environments.conformance.subject import EnvironmentUnderTest
from megatron_empg.environments.registry import make_task_source

RULES: tuple[Rule, ...] = (*rules_of_plugins.RULES, *rules_of_tasks.RULES, *rules_of_episodes.RULES)
_OF_TASKS = (*rules_of_tasks.RULES, *rules_of_episodes.RULES)
CALL_TIMEOUT = 60.0
SECONDS_TO_END = 5.0
"""What an environment still does at the end may end by itself within these."""
WORKERS = 3


def check_environment(
    name: str,
    settings: Mapping[str, Any],
    *,
    call_timeout: float = CALL_TIMEOUT,
    rules: Sequence[Rule] = RULES,
    begun: Callable[[str], None] = lambda sentence: None,
    found: Callable[[RuleFinding], None] = lambda finding: None,
) -> list[RuleFinding]:
    """What each of the rules says of the environment `name` with these settings, in order.

    `call_timeout`: seconds of one reset, step or close. `begun` is told the rule that comes next, `found` what it
    said. Raises ValueError or OSError where the environment cannot be made, whatever it raised itself.
    """
    given = dict(settings)
    source = _made(name, STEP_SHARE * call_timeout, given)

    async def all_of_them() -> list[RuleFinding]:
        findings: list[RuleFinding] = []
        try:
            async with _where_a_run_plays(name, source) as make:
                subject = EnvironmentUnderTest(name, given, source, make, call_timeout)
                listed = True
                for rule in rules:
                    begun(rule.sentence)
                    tried = listed or rule not in _OF_TASKS
                    findings.append(await _finding(rule, subject) if tried else _without_tasks(rule))
                    found(findings[-1])
                    if rule.check is splits_exist:
                        listed = findings[-1].verdict != "broken"
        finally:
            with contextlib.suppress(Exception):  # one of the rules looks at it
                await answer_of("close", source.close, call_timeout)
            await abandon_what_was_left_behind(min(SECONDS_TO_END, call_timeout))
        return findings

    return asyncio.run(all_of_them())


def _made(name: str, step_timeout: float, settings: dict[str, Any]) -> TaskSource:
    try:
        return make_task_source(name, step_timeout=step_timeout, **settings)
    except (ValueError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an environment of somebody's may even leave the process
        raise ValueError(f"it raised {_explained(error)}") from error


@asynccontextmanager
async def _where_a_run_plays(name: str, source: TaskSource) -> AsyncIterator[Callable[[Task], Environment]]:
    """How an episode is made: on this event loop, or in a worker process."""
    if source.isolation != "process":
        yield source.make
        return
    from megatron_empg.environments.workers import WorkerPool

    memory = source.worker_memory_gib
    try:
        pool = WorkerPool(
            name,
            source.settings,
            source.limits,
            memory_gib=WORKERS * memory,
            worker_memory_gib=memory,
            python=type(source).worker_python(source.settings),
        )
    except (ValueError, TypeError) as error:
        yield partial(_unmade, str(error))
        return
    try:
        yield pool.make
    finally:
        await pool.close()


def _unmade(reason: str, task: Task) -> Environment:
    raise RuleNotTried(f"there are no worker processes for episodes: {reason}")


def _without_tasks(rule: Rule) -> RuleFinding:
    """A fault of the data is told once, and not by each rule that would read them again."""
    return RuleFinding(rule.sentence, "not tried", "tasks cannot be listed, as said above")


async def _finding(rule: Rule, subject: EnvironmentUnderTest) -> RuleFinding:
    try:
        checked = rule.check(subject)
        if inspect.isawaitable(checked):
            await checked
    except RuleNotTried as reason:
        return RuleFinding(rule.sentence, "not tried", str(reason))
    except RuleDoubtful as doubt:
        return RuleFinding(rule.sentence, "doubtful", str(doubt))
    except RuleBroken as fault:
        return RuleFinding(rule.sentence, "broken", str(fault))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return RuleFinding(rule.sentence, "broken", _explained(error))
    return RuleFinding(rule.sentence, "kept")


def _explained(error: BaseException) -> str:
    """The error in one line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said:.400} ({last.filename}, line {last.lineno})"
