"""Known faults, each put into a copy of the project, each of which a named test must notice.

    python tools/test_mutations.py            all of them
    python tools/test_mutations.py bonus      those whose name contains the word

A fault counts as noticed when the named test fails by an assertion whose message says what it should: a mutated
program that merely no longer imports or crashes elsewhere proves nothing. The named unit tests must also pass on
the unchanged copy; the others take minutes, and `make test` and `make test-recipes` run them. The working tree is
never touched. Exit status 1 when a fault survives, or when the list of faults (tools/mutations.py) no longer fits
the code.
"""

import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mutation_places import MisfitError, Place, replaced
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("megatron_empg", "tests", "recipes", "pyproject.toml")
PARALLEL = 2
TIMEOUT_SECONDS = 500
FORKED = "tests/unit/"
"""Tests that take less time than importing what they need: forked from a process that has imported it."""
PRELOADED = ["torch", "torch.distributed.tensor", "numpy", "pydantic", "jaxtyping", "hypothesis", "pytest"]
"""Nothing of the project itself, which each fork imports from its own copy."""


@dataclass(frozen=True)
class Outcome:
    """What tests did in one copy: "passed", "failed" (by an assertion) or "broken", with the first message."""

    verdict: str
    message: str
    seconds: float


Runner = Callable[[Path, list[str]], Outcome]
"""Runs tests, up to the first that fails, with the tree in the place of the installed package."""


def copy_tree(source: Path, destination: Path) -> Path:
    """The project's own files, without what runs leave behind."""
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source / name, destination / name)
    return destination


def arguments(tree: Path, tests: list[str]) -> list[str]:
    return ["-q", "-x", "-p", "no:cacheprovider", f"--junitxml={tree / 'report.xml'}", *tests]


def run_tests(tree: Path, tests: list[str]) -> Outcome:
    """In a process of their own, which may start others."""
    command = [sys.executable, "-m", "pytest", *arguments(tree, tests)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Outcome("broken", f"no end after {TIMEOUT_SECONDS} s", time.monotonic() - started)
    return outcome(tree, process.returncode, output, time.monotonic() - started)


def run_in_fork(tree: Path, tests: list[str]) -> Outcome:
    """In this process, a fresh fork, which is used up by it."""
    import pytest

    started = time.monotonic()
    sys.dont_write_bytecode = True
    gc.freeze()  # pytest collects garbage again and again, and what was imported before is none
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path.insert(0, str(tree))
    os.chdir(tree)
    with (tree / "output.txt").open("w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    code = pytest.main(arguments(tree, tests))
    sys.stdout.flush()
    imported = sys.modules.get("megatron_empg")
    if imported is not None and not Path(str(imported.__file__)).is_relative_to(tree):
        return Outcome("broken", f"{imported.__file__} was imported instead of the copy", 0)
    return outcome(tree, code, (tree / "output.txt").read_text(encoding="utf-8"), time.monotonic() - started)


def outcome(tree: Path, code: int, output: str, seconds: float) -> Outcome:
    """What pytest's exit status and report say."""
    if code == 0:
        return Outcome("passed", "", seconds)
    report = tree / "report.xml"
    failures = list(ElementTree.parse(report).iter("failure")) if report.exists() else []
    if not failures:
        return Outcome("broken", output[-2000:], seconds)
    short, full = failures[0].get("message", ""), failures[0].text or ""
    by_assertion = re.match(r"AssertionError|assert |Failed", short)
    return Outcome("failed" if by_assertion else "broken", f"{short}\n{full}", seconds)


def uses_the_copy(tree: Path) -> bool:
    """Whether a process started there imports the copy, and not the installed project."""
    command = [sys.executable, "-c", "import megatron_empg; print(megatron_empg.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    answer = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    return Path(answer.stdout.strip()).is_relative_to(tree)


def misfits(tree: Path) -> list[str]:
    """Faults of the list that the code has moved away from: no such place, or no such test."""
    found = []
    for mutation in MUTATIONS:
        try:
            mutated(mutation, tree)
        except MisfitError as misfit:
            found.append(f"{mutation.name}: {misfit}")
        file, _, test = mutation.test.partition("[")[0].partition("::")
        path = tree / file
        if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
            found.append(f"{mutation.name}: there is no test {mutation.test}")
    return found


def mutated(mutation: Mutation, tree: Path) -> str:
    """The text of the file with the fault. Raises MisfitError."""
    return replaced(tree, Place.read(mutation.place), mutation.old, mutation.new)


def mutate(mutation: Mutation, tree: Path) -> None:
    path = tree / Place.read(mutation.place).file
    path.write_text(mutated(mutation, tree), encoding="utf-8")


def judge(mutation: Mutation, outcome: Outcome) -> str:
    """ "caught", or why not."""
    if outcome.verdict == "passed":
        return "SURVIVED"
    if outcome.verdict == "broken":
        return "BROKEN (no assertion failed)"
    return "caught" if re.search(mutation.told, outcome.message) else "CAUGHT BY ACCIDENT (another message)"


class Runs:
    """Runs tests on copies of ``plain``, with a fault or without, two at a time."""

    def __init__(self, plain: Path, forked: Runner) -> None:
        self.plain, self.forked = plain, forked
        self.pool = ThreadPoolExecutor(PARALLEL)

    def all(self, chosen: list[Mutation]) -> tuple[dict[str, Outcome], dict[Mutation, Outcome]]:
        """Of the unchanged copy, if unit tests are among those named, and of each fault."""
        tests = sorted({mutation.test for mutation in chosen if mutation.test.startswith(FORKED)})
        kinds = {"none, unit tests": tests} if tests else {}
        with self.pool:
            sound = {kind: self.pool.submit(self._run, None, tests) for kind, tests in kinds.items()}
            mutated = {mutation: self.pool.submit(self._run, mutation, [mutation.test]) for mutation in chosen}
        return (
            {kind: job.result() for kind, job in sound.items()},
            {mutation: job.result() for mutation, job in mutated.items()},
        )

    def _run(self, mutation: Mutation | None, tests: list[str]) -> Outcome:
        with tempfile.TemporaryDirectory(dir=self.plain.parent) as folder:
            tree = copy_tree(self.plain, Path(folder))
            if mutation:
                mutate(mutation, tree)
            run = self.forked if tests[0].startswith(FORKED) else run_tests
            return run(tree, tests)


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutation for mutation in MUTATIONS if word in mutation.name]
    if not chosen:
        print(f"no fault's name holds {word!r}; names are in tools/mutations.py")
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="mutations_") as scratch:
        plain = copy_tree(ROOT, Path(scratch).resolve() / "plain")
        if faults := misfits(plain):
            print("\n".join(faults), "\nbring tools/mutations.py in line with the code", sep="")
            return 1
        if not uses_the_copy(plain):
            print("the installed megatron_empg is imported instead of the copy; nothing would be tested")
            return 1
        with context.Pool(PARALLEL, maxtasksperchild=1) as forks:

            def forked(tree: Path, tests: list[str]) -> Outcome:
                try:
                    return forks.apply_async(run_in_fork, (tree, tests)).get(TIMEOUT_SECONDS)
                except multiprocessing.TimeoutError:
                    return Outcome("broken", f"no end after {TIMEOUT_SECONDS} s", TIMEOUT_SECONDS)

            return report(*Runs(plain, forked).all(chosen))


def report(sound: dict[str, Outcome], mutated: dict[Mutation, Outcome]) -> int:
    """Print the table and what went wrong; the exit status."""
    bad = 0
    print(f"{'fault':56}{'verdict':12}{'seconds':>8}  test")
    for mutation, outcome in mutated.items():
        verdict = judge(mutation, outcome)
        print(f"{mutation.name:56}{verdict:12}{outcome.seconds:8.1f}  {mutation.test}")
        if verdict != "caught":
            bad += 1
            print(f"    wanted: {mutation.told}\n    got: {outcome.message[-1500:] or 'the test passed'}")
    for kind, outcome in sound.items():
        print(f"{kind:56}{outcome.verdict:12}{outcome.seconds:8.1f}  all that are named")
        if outcome.verdict != "passed":
            bad += 1
            print(outcome.message[-3000:])
    print(f"{bad} problems" if bad else f"all {len(mutated)} faults were caught")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
