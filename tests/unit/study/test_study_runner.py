"""A study's runs are made once each, over kills and beside each other. A stand-in process trains nothing."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.run.folder import RunFolder
from megatron_empg.study import runner as runner_module
from megatron_empg.study.cells import Cell, Settings, cells_of, settings_of
from megatron_empg.study.config import Study
from megatron_empg.study.errors import StudyError
from megatron_empg.study.places import CellPlace
from megatron_empg.study.results import append_result, read_results
from megatron_empg.study.runner import StudyRunner, why_it_ended
from tests.support.recipes import ROOT
from tests.support.studies import result, small_study

STAND_IN = (sys.executable, str(ROOT / "tests/support/stand_in_training.py"))
FIRST = Cell("quickstart", "plain", 1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    study = small_study(tmp_path_factory.mktemp("study"))
    return settings_of(study, cells_of(study))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(runner_module, "check_settings", lambda settings: None)
    return small_study(tmp_path)


def make(study: Study, settings: Settings, cells: list[Cell] | None = None, **options: Any) -> tuple[bool, Path]:
    """Make the study's runs; whether all have a line, and the folder that they lie in."""
    runs = study.results.parent / "runs"
    made = StudyRunner(study, settings, runs, program=STAND_IN, **options).run(cells or cells_of(study))
    return made, runs


def behave(study: Study, behaviour: str) -> None:
    runs = study.results.parent / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "BEHAVIOUR").write_text(behaviour, encoding="utf-8")


def starts(runs: Path) -> list[str]:
    path = runs / "STARTS"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_every_run_is_made_once_and_leaves_its_line_alone(study: Study, settings: Settings) -> None:
    made, runs = make(study, settings)
    assert made
    assert starts(runs) == [cell.name for cell in cells_of(study)]
    assert not [path for path in runs.iterdir() if path.is_dir()]
    results = read_results(study.results)
    assert {cell: one.after["test_id/sampled"] for cell, one in results.items() if cell.seed == 1} == {
        FIRST: 0.75,
        Cell("quickstart", "empg", 1): 1.0,
    }
    assert results[FIRST].curve == [0.25, 0.5]
    assert (results[FIRST].episodes, results[FIRST].commit) == (258, "abc")
    make(study, settings)
    assert len(starts(runs)) == 4


def test_a_kill_between_run_and_line_loses_nothing(
    study: Study, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "append_result", killed)
        with pytest.raises(KeyboardInterrupt):
            make(study, settings, [FIRST])
    assert read_results(study.results) == {}
    made, runs = make(study, settings, [FIRST])
    assert made
    assert starts(runs) == [FIRST.name]  # it was not trained again


def test_a_kill_between_line_and_removal_leaves_no_folder(
    study: Study, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CellPlace, "remove_run", lambda place: None)
        _, runs = make(study, settings, [FIRST])
    assert (runs / FIRST.name).exists()
    make(study, settings, [FIRST])
    assert not (runs / FIRST.name).exists()
    assert starts(runs) == [FIRST.name]


@pytest.mark.parametrize(
    ("behaviour", "ended", "why"),
    [
        ("collapse", "collapsed", "step 1: the batch has 0 groups"),
        ("fail", "failed", "RuntimeError: a disk is gone"),
    ],
)
def test_a_run_that_fails_often_enough_is_a_line_too(
    behaviour: str, ended: str, why: str, study: Study, settings: Settings
) -> None:
    behave(study, behaviour)
    made, runs = make(study, settings, [FIRST])
    assert made
    assert starts(runs) == [FIRST.name] * study.attempts
    [found] = read_results(study.results).values()
    assert (found.ended, found.why, found.after) == (ended, why, {})
    assert (runs / FIRST.name).exists()


def test_failures_are_counted_over_starts(study: Study, settings: Settings) -> None:
    behave(study, "fail")
    CellPlace(study.results.parent / "runs", FIRST).note_failure("step 1: diverged")
    _, runs = make(study, settings, [FIRST])
    assert starts(runs) == [FIRST.name]
    assert read_results(study.results)[FIRST].ended == "failed"


def test_a_kill_after_the_last_failure_loses_nothing(study: Study, settings: Settings) -> None:
    place = CellPlace(study.results.parent / "runs", FIRST)
    place.folder.root.mkdir(parents=True)
    for _ in range(study.attempts):
        place.note_failure("step 1: diverged")
    made, runs = make(study, settings, [FIRST])
    assert (made, starts(runs)) == (True, [])
    assert read_results(study.results)[FIRST].ended == "collapsed"


def test_a_run_that_cannot_begin_ends_the_study_and_has_no_line(study: Study, settings: Settings) -> None:
    behave(study, "unusable")
    with pytest.raises(
        StudyError, match=r"quickstart-plain-1 ended with status 2 .*: error: model.path: there is"
    ):
        make(study, settings)
    assert read_results(study.results) == {}


def test_what_another_process_holds_is_left_to_it(study: Study, settings: Settings) -> None:
    with CellPlace(study.results.parent / "runs", FIRST).held():
        made, runs = make(study, settings)
    assert not made
    assert starts(runs) == [cell.name for cell in cells_of(study)[1:]]


def test_a_folder_in_which_a_process_trains_is_left_to_it(study: Study, settings: Settings) -> None:
    training = RunFolder(study.results.parent / "runs" / FIRST.name)
    training.lock()
    made, runs = make(study, settings, [FIRST])
    training.close()
    assert (made, starts(runs)) == (False, [])


def test_a_line_that_another_process_has_written_meanwhile_is_seen(
    study: Study, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = settings["quickstart", "plain"].identity
    runs = study.results.parent / "runs"
    runner = StudyRunner(study, settings, runs, program=STAND_IN)
    append_result(study.results, replace(result("plain", 1, "0110"), identity=identity))
    runner._complete(FIRST)
    assert starts(runs) == []


def when_it_waits(study: Study, then: Callable[[], None]) -> threading.Thread:
    waits = study.results.parent / "runs" / FIRST.name / "WAITS"

    def watch() -> None:
        while not waits.exists():
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_an_interrupt_goes_on_to_the_run_and_ends_the_study(study: Study, settings: Settings) -> None:
    behave(study, "wait")
    thread = when_it_waits(study, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    made, runs = make(study, settings)
    thread.join()
    assert (made, starts(runs), read_results(study.results)) == (False, [FIRST.name], {})
    assert signal.getsignal(signal.SIGINT) is before
    behave(study, "finish")
    assert make(study, settings, [FIRST])[0]
    assert read_results(study.results)[FIRST].ended == "finished"


def test_when_the_time_is_over_nothing_is_begun(study: Study, settings: Settings) -> None:
    made, runs = make(study, settings, minutes=0)
    assert (made, starts(runs)) == (False, [])


def test_when_the_time_is_over_the_running_one_is_asked_to_end(
    study: Study, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(study, "wait")
    runner = StudyRunner(study, settings, study.results.parent / "runs", program=STAND_IN, minutes=1)
    ends = time.monotonic() + 60
    waits = study.results.parent / "runs" / FIRST.name / "WAITS"
    wait = runner._process._wait

    def at_the_end(process: Any) -> int:
        while not waits.exists():
            time.sleep(0.01)
        monkeypatch.setattr(time, "monotonic", lambda: ends)
        return wait(process)

    monkeypatch.setattr(runner._process, "_wait", at_the_end)
    assert not runner.run(cells_of(study))
    assert starts(study.results.parent / "runs") == [FIRST.name]


def test_lines_of_other_runs_are_refused_before_anything_runs(study: Study, settings: Settings) -> None:
    append_result(study.results, result("plain", 1, "0110"))
    with pytest.raises(StudyError, match="the line of quickstart-plain-1 is of another run"):
        make(study, settings)


def test_the_guards_words_come_before_other_errors() -> None:
    log = "RuntimeError: NCCL\nerror: trainer ended; error: step 7: 9 optimizer steps in a row were skipped\n"
    assert why_it_ended(log) == "step 7: 9 optimizer steps in a row were skipped"
    assert why_it_ended("ValueError: x\n") == "ValueError: x"
    assert why_it_ended("nothing\n") == ""
