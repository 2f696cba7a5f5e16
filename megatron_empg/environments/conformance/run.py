"""The conformance test: all rules, one after the other."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from megatron_empg.environments.base import STEP_SHARE, Environment, Task, TaskSource
from megatron_empg.environments.conformance import rules_of_episodes, rules_of_plugins, rules_of_tasks
from megatron_empg.environments.conformance.findings import (
    Finding,
    Rule,
    RuleBroken,
    RuleDoubtful,
    RuleNotTried,
)
from megatron_empg.environments.conformance.subject import Subject
from megatron_empg.environments.registry import make_task_source

RULES: tuple[Rule, ...] = (*rules_of_plugins.RULES, *rules_of_tasks.RULES, *rules_of_episodes.RULES)
CALL_TIMEOUT = 60.0
WORKERS = 3


def check_environment(
    name: str,
    settings: Mapping[str, Any],
    *,
    call_timeout: float = CALL_TIMEOUT,
    rules: Sequence[Rule] = RULES,
    begun: Callable[[str], None] = lambda sentence: None,
    found: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """What each of the rules says of the environment `name` with these settings, in order.

    `call_timeout`: seconds of one reset, step or close. `begun` is told the rule that comes next, `found` what it
    said. Raises ValueError or OSError where the environment cannot be made.
    """
    given = dict(settings)
    source = make_task_source(name, step_timeout=STEP_SHARE * call_timeout, **given)

    async def all_of_them() -> list[Finding]:
        findings: list[Finding] = []
        async with _where_a_run_plays(name, source) as make:
            subject = Subject(name, given, source, make, call_timeout)
            for rule in rules:
                begun(rule.sentence)
                findings.append(await _finding(rule, subject))
                found(findings[-1])
        return findings

    return asyncio.run(all_of_them())


@asynccontextmanager
async def _where_a_run_plays(name: str, source: TaskSource) -> AsyncIterator[Callable[[Task], Environment]]:
    """How an episode is made: on this event loop, or in a worker process."""
    if source.isolation != "process":
        yield source.make
        return
    from megatron_empg.environments.workers import WorkerPool

    memory = source.worker_memory_gib
    pool = WorkerPool(name, source.settings, source.limits, memory_gib=WORKERS * memory, worker_memory_gib=memory)
    try:
        yield pool.make
    finally:
        await pool.close()


async def _finding(rule: Rule, subject: Subject) -> Finding:
    try:
        checked = rule.check(subject)
        if inspect.isawaitable(checked):
            await checked
    except RuleNotTried as reason:
        return Finding(rule.sentence, "not tried", str(reason))
    except RuleDoubtful as doubt:
        return Finding(rule.sentence, "doubtful", str(doubt))
    except RuleBroken as fault:
        return Finding(rule.sentence, "broken", str(fault))
    except Exception as error:
        return Finding(rule.sentence, "broken", _explained(error))
    return Finding(rule.sentence, "kept")


def _explained(error: Exception) -> str:
    """The error in one line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said:.400} ({last.filename}, line {last.lineno})"
