"""Rules of tasks, and of how they are drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from megatron_empg.environments.base import SPLITS, EpisodeLimits, Split, Task
from megatron_empg.environments.conformance.findings import Rule, RuleBroken, RuleDoubtful, RuleNotTried, refuse
from megatron_empg.environments.conformance.subject import EnvironmentUnderTest
from megatron_empg.environments.shapes import task_faults

MOST_TASKS = 5000
"""Tasks of each split that are looked at."""
DRAWN = 8
START_SECONDS = 600.0


def splits_exist(subject: EnvironmentUnderTest) -> None:
    empty: list[str] = []
    for split in SPLITS:
        tasks = subject.source.tasks(split)
        if not isinstance(tasks, Sequence):
            raise RuleBroken(f"tasks({split!r}) gave a {type(tasks).__name__}, not a sequence")
        if not len(tasks):
            empty.append(split)
    if "train" in empty:
        raise RuleBroken("the split train is empty, so there is nothing to train on")
    if empty:
        raise RuleDoubtful(f"{' and '.join(empty)}: no tasks, so that nothing can be evaluated there")


def ids_are_unique(subject: EnvironmentUnderTest) -> None:
    found: dict[str, Split] = {}
    shared: list[str] = []
    faults: list[str] = []
    for split in SPLITS:
        seen: set[str] = set()
        for task in _looked_at(subject, split):
            if not isinstance(task.id, str) or not task.id:
                faults.append(f"a task of {split} has the id {task.id!r}; it must be a text")
            elif task.id in seen:
                faults.append(f"{split} has two tasks of the id {task.id!r}")
            elif task.id in found:
                shared.append(f"{task.id!r} is in {found[task.id]} and in {split}")
            seen.add(task.id)
        found |= dict.fromkeys(seen, split)
    refuse(faults)
    if shared:
        raise RuleDoubtful(f"{len(shared)} tasks are in two splits: {shared[0]}")


def tasks_are_well_formed(subject: EnvironmentUnderTest) -> None:
    faults: list[str] = []
    for split in SPLITS:
        for task in _looked_at(subject, split):
            faults += [f"task {task.id!r} of {split} has {fault}" for fault in task_faults(task)]
    refuse(faults)


def draws_follow_from_the_seed(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    again = _again(subject)
    for split in _with_tasks(subject):
        drawn = source.sample(split, DRAWN, seed=3)
        if drawn != source.sample(split, DRAWN, seed=3) or drawn != again.sample(split, DRAWN, seed=3):
            raise RuleBroken(f"two samples of {split} with one seed differ")
        _check_drawn(f"sample({split!r}, {DRAWN})", drawn, DRAWN, source.tasks(split))
        _check_drawn(f"sample({split!r}, 0)", source.sample(split, 0, seed=3), 0, source.tasks(split))
        samples = [[task.id for task in source.sample(split, DRAWN, seed=seed)] for seed in range(5)]
        if len(source.tasks(split)) > 2 * DRAWN and all(ids == samples[0] for ids in samples):
            raise RuleBroken(f"samples of {split} are the same for every seed")


def fixed_sets_stay_fixed(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    again = _again(subject)
    for split in _with_tasks(subject):
        there = len(source.tasks(split))
        count = min(DRAWN, there)
        whole = source.fixed(split, count)
        if len({task.id for task in whole}) < len(whole):
            raise RuleBroken(f"fixed({split!r}, {count}) has a task twice")
        _check_drawn(f"fixed({split!r}, {count})", whole, count, source.tasks(split))
        for shorter in (count // 2, count):
            if again.fixed(split, shorter) != whole[:shorter]:
                raise RuleBroken(f"fixed({split!r}, {shorter}) is not how fixed({split!r}, {count}) begins")
        _refuses_too_many(subject, split, there)


def draws_are_the_same_in_another_process(subject: EnvironmentUnderTest) -> None:
    ours = drawn_ids(subject.name, subject.settings)
    theirs = _ids_of_another_process(subject)
    differing = [what for what, ids in ours.items() if theirs.get(what) != ids]
    if differing:
        raise RuleBroken(
            f"{differing[0]} has other tasks in another process: does the order of a set, or hash(), decide? "
            "Sort, and draw with random.Random(text)"
        )


def drawn_ids(name: str, settings: dict[str, Any]) -> dict[str, list[str]]:
    """{what was drawn: ids} of an environment that was made anew."""
    from megatron_empg.environments.registry import make_task_source

    source = make_task_source(name, **settings)
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        if count := min(DRAWN, len(source.tasks(split))):
            found[f"tasks({split!r})"] = [task.id for task in islice(source.tasks(split), DRAWN)]
            found[f"fixed({split!r})"] = [task.id for task in source.fixed(split, count)]
            found[f"sample({split!r})"] = [task.id for task in source.sample(split, count, seed=3)]
    return found


def _ids_of_another_process(subject: EnvironmentUnderTest) -> dict[str, Any]:
    program = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from megatron_empg.environments.conformance.rules_of_tasks import drawn_ids; "
        "print('\\n' + json.dumps(drawn_ids(sys.argv[2], json.load(sys.stdin))))"
    )
    words = [json.dumps(sys.path), subject.name]
    # Not among the words, which every user of the machine can read: there may be a key in them.
    settings = json.dumps(subject.settings, default=str).encode()
    seed = "2"
    if os.environ.get("PYTHONHASHSEED") == "2":
        seed = "1"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONHASHSEED": seed}, input=settings, capture_output=True, timeout=START_SECONDS,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuleBroken(f"it cannot be made in another process: {said[-1] if said else done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.decode("utf-8").rpartition("\n{")[2].join(("{", "")))
    return found


def _looked_at(subject: EnvironmentUnderTest, split: Split) -> Sequence[Task]:
    return list(islice(subject.source.tasks(split), MOST_TASKS))


def _with_tasks(subject: EnvironmentUnderTest) -> list[Split]:
    found = [split for split in SPLITS if len(subject.source.tasks(split))]
    if not found:
        raise RuleNotTried("there are no tasks")
    return found


def _again(subject: EnvironmentUnderTest) -> Any:
    """Another instance, so that nothing depends on what was asked of the first."""
    source = subject.source
    return type(source)(source.settings, EpisodeLimits(source.limits.max_turns, source.limits.step_timeout))


def _check_drawn(what: str, drawn: Any, count: int, tasks: Sequence[Task]) -> None:
    if not isinstance(drawn, list) or not all(isinstance(task, Task) for task in drawn):
        raise RuleBroken(f"{what} is not a list of tasks")
    if len(drawn) != count:
        raise RuleBroken(f"{what} gave {len(drawn)} tasks")
    if len(tasks) > MOST_TASKS:
        return
    known = {task.id for task in tasks}
    strange = [task.id for task in drawn if task.id not in known]
    if strange:
        raise RuleBroken(f"{what} gave {strange[0]!r}, which is not a task of that split")


def _refuses_too_many(subject: EnvironmentUnderTest, split: Split, there: int) -> None:
    try:
        subject.source.fixed(split, there + 1)
    except ValueError:
        return
    raise RuleBroken(f"fixed({split!r}, {there + 1}) of {there} tasks raises no ValueError")


RULES = (
    Rule("there are tasks of every split", splits_exist),
    Rule("ids of tasks are unique", ids_are_unique),
    Rule("tasks have chat messages, a payload of JSON, and a kind", tasks_are_well_formed),
    Rule("samples follow from their seed", draws_follow_from_the_seed),
    Rule("fixed sets stay the same, and a shorter one begins the longer", fixed_sets_stay_fixed),
    Rule("another process draws the same tasks", draws_are_the_same_in_another_process),
)
