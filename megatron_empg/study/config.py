"""What a study is: tasks, methods and seeds in a YAML file, checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from megatron_empg.common.errors import without_prefix
from megatron_empg.common.section import NonNegative, Positive, Section
from megatron_empg.common.values import PathText
from megatron_empg.environments.base import Split
from megatron_empg.recipe.errors import closest, shown
from megatron_empg.recipe.yaml_text import read_yaml
from megatron_empg.study.errors import StudyError

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
"""Names of tasks and methods, which become parts of file names."""
SERIES = r"^(test_id|test_ood)/(sampled|greedy)$"
Seeds = Annotated[list[NonNegative], Field(min_length=1)]


class StudyTask(Section):
    """One task: a recipe, and what every method's run of it is overridden with."""

    recipe: PathText
    overrides: list[str] = Field(default_factory=list)
    methods: list[str] | None = None
    """The methods that are run on it; all of them where nothing is said."""


class StudyMethod(Section):
    """One method: what a task's recipe is overridden with, behind the task's own overrides."""

    overrides: list[str] = Field(default_factory=list)
    base: str | None = None
    """The method that it is paired with: same task, same seed, same questions. Without one it is compared with
    nothing."""


class QuickPart(Section):
    """The part of a study that `--quick` makes. Its runs count for the whole study."""

    tasks: Annotated[list[str], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds


class Study(Section):
    """A study. Example: ``load_study(Path("studies/screening.yaml")).methods["grpo"].base``"""

    stage: str
    """What is asked, and how far the study is: a sentence for its report."""
    results: PathText
    """The file of one JSON line per run, `docs/study/NAME.jsonl`; the report goes beside it."""
    tasks: Annotated[dict[str, StudyTask], Field(min_length=1)]
    methods: Annotated[dict[str, StudyMethod], Field(min_length=1)]
    seeds: Seeds
    series: Annotated[list[Annotated[str, Field(pattern=SERIES)]], Field(min_length=1)]
    """Evaluations that are reported, as "test_id/sampled"; of a task those that its recipe measures."""
    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    """Further pairs, [method, base], beside each method and its own base."""
    choose_on: Split = "train"
    """The split on which a method is chosen for later stages: one that no result is reported on."""
    attempts: Positive = 2
    """How often a run may end with an error of its own before that is its result."""
    quick: QuickPart | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for fault in (*self._bad_names(), *self._unknown_names(), *self._repeated(), *self._other()):
            raise ValueError(fault)
        return self

    def methods_of(self, task: str) -> list[str]:
        """The names of the methods that are run on a task, in the study's order."""
        chosen = self.tasks[task].methods
        if chosen is None:
            return list(self.methods)
        return [method for method in self.methods if method in chosen]

    def pairs_of(self, task: str) -> list[tuple[str, str]]:
        """(method, base) of everything that is compared on a task: each method with its own base, then `pairs`."""
        methods = self.methods_of(task)
        found = [(method, self.methods[method].base) for method in methods]
        found += [(method, base) for method, base in self.pairs]
        return [(method, base) for method, base in found if base in methods and method in methods]

    def _bad_names(self) -> list[str]:
        faults = []
        for name in (*self.tasks, *self.methods):
            if not NAME.fullmatch(name):
                faults.append(
                    f"the name {name!r} is a part of file names: write it with small letters, digits and _"
                )
        return faults

    def _unknown_names(self) -> list[str]:
        """What refers to a task or method that the study does not have."""
        methods = set(self.methods)
        referred = [(f"methods.{name}.base", method.base, methods) for name, method in self.methods.items()]
        for pair in self.pairs:
            referred += [("pairs", method, methods) for method in pair]
        for name, task in self.tasks.items():
            referred += [(f"tasks.{name}.methods", method, methods) for method in task.methods or ()]
        if self.quick is not None:
            referred += [("quick.methods", method, methods) for method in self.quick.methods]
            referred += [("quick.tasks", task, set(self.tasks)) for task in self.quick.tasks]
        faults = []
        for key, given, known in referred:
            if given is not None and given not in known:
                there = ", ".join(sorted(known))
                faults.append(f"{key} is {given!r}; {closest(given, known)}the study has: {there}")
        return faults

    def _repeated(self) -> list[str]:
        lists: dict[str, list[Any]] = {"seeds": list(self.seeds), "series": list(self.series)}
        if self.quick is not None:
            lists["quick.seeds"] = list(self.quick.seeds)
        return [
            f"{key} is {given}; give each once" for key, given in lists.items() if len(set(given)) < len(given)
        ]

    def _other(self) -> list[str]:
        faults = []
        if self.choose_on.startswith("test"):
            faults.append(
                f"choose_on is {self.choose_on}, a test split: what is chosen by a test is not tested by it any "
                "more; choose on train"
            )
        if self.results.suffix != ".jsonl":
            faults.append(f"results is {self.results}; its lines are JSON: name it NAME.jsonl")
        for name, method in self.methods.items():
            if method.base == name:
                faults.append(f"methods.{name}.base is itself; name another method, or leave it out")
        for paired, base in self.pairs:
            if base in (paired, self.methods[paired].base):
                faults.append(
                    f"pairs has [{paired}, {base}], which is compared already, or with itself: leave it out"
                )
        if self.quick is not None and not set(self.quick.seeds) <= set(self.seeds):
            faults.append(f"quick.seeds is {self.quick.seeds}; the study's seeds are {self.seeds}: take of these")
        return faults


def load_study(path: Path) -> Study:
    """Read a study. Raises StudyError naming every fault by its key."""
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read study {path}: {error}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"study {path} holds {type(raw).__name__}, not keys and values")
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        lines = [f"  - {_line(fault)}" for fault in error.errors()]
        raise StudyError(f"study {path} cannot be made:\n" + "\n".join(lines)) from None


def _line(fault: Any) -> str:
    """One of pydantic's faults in the project's words."""
    place = [str(part) for part in fault["loc"]]
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        known = list(_section_of(place).model_fields)
        return f"{key}: unknown key; {closest(place[-1], known)}allowed here: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{key}: missing; give it a value"
    if fault["type"] == "value_error" and not key:
        return without_prefix(str(fault["msg"]))
    return f"{key}: {without_prefix(str(fault['msg']))}; got {shown(fault['input'])}"


def _section_of(place: list[str]) -> type[Section]:
    """The section that has the last part of a place as a key."""
    sections: dict[str, type[Section]] = {"tasks": StudyTask, "methods": StudyMethod, "quick": QuickPart}
    if len(place) == 1:
        return Study
    return sections[place[0]]
