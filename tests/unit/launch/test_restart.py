"""The restart policy as a table: what ended, how often before, what is left, and so what is done."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.restart import (
    AttemptEnd,
    EndCause,
    RecordedStart,
    RestartAction,
    RestartDecision,
    RestartOptions,
    RestartsError,
    decide,
    decide_part,
    most_restarts,
    used_up,
    wait_before,
)

JOB = RestartOptions(requeue=True)
MACHINE = RestartOptions()
FEW_NODES = RestartOptions(nodes=False, requeue=True)
LOST_MACHINE = RestartOptions(nodes=False)
SERVING = (ExitCode.SERVICE, ExitCode.ENGINES, ExitCode.DRIVER, ExitCode.TRAINER)
AGAIN = (EndCause.DIED, EndCause.HUNG, EndCause.UNFIT_NODE, EndCause.LOST_NODE)
"""What may not come again."""


def starts(*checkpoints: int) -> list[RecordedStart]:
    return [RecordedStart("7", checkpoint) for checkpoint in checkpoints]


@pytest.mark.parametrize(
    ("cause", "means", "action"),
    [
        (EndCause.FINISHED, JOB, RestartAction.DONE),
        (EndCause.FINISHED, MACHINE, RestartAction.DONE),
        (EndCause.STOPPED, JOB, RestartAction.DONE),  # by the file STOP
        (EndCause.STOPPED, MACHINE, RestartAction.DONE),
        (EndCause.FAULT, JOB, RestartAction.GIVE_UP),
        (EndCause.FAULT, MACHINE, RestartAction.GIVE_UP),
        (EndCause.DIED, JOB, RestartAction.RESTART_ALL),
        (EndCause.DIED, MACHINE, RestartAction.RESTART_ALL),
        (EndCause.DIED, FEW_NODES, RestartAction.REQUEUE),
        (EndCause.DIED, LOST_MACHINE, RestartAction.GIVE_UP),
        (EndCause.HUNG, JOB, RestartAction.REQUEUE),  # a new start of the job has its nodes anew
        (EndCause.HUNG, MACHINE, RestartAction.RESTART_ALL),
        (EndCause.HUNG, FEW_NODES, RestartAction.REQUEUE),
        (EndCause.HUNG, LOST_MACHINE, RestartAction.GIVE_UP),
        (EndCause.UNFIT_NODE, JOB, RestartAction.RESTART_ALL),  # there is a spare
        (EndCause.UNFIT_NODE, MACHINE, RestartAction.RESTART_ALL),
        (EndCause.UNFIT_NODE, FEW_NODES, RestartAction.REQUEUE),
        (EndCause.UNFIT_NODE, LOST_MACHINE, RestartAction.GIVE_UP),
        (EndCause.LOST_NODE, JOB, RestartAction.RESTART_ALL),
        (EndCause.LOST_NODE, MACHINE, RestartAction.RESTART_ALL),
        (EndCause.LOST_NODE, FEW_NODES, RestartAction.REQUEUE),
        (EndCause.LOST_NODE, LOST_MACHINE, RestartAction.GIVE_UP),
    ],
)
def test_what_is_done_after_an_end(cause: EndCause, means: RestartOptions, action: RestartAction) -> None:
    decision = decide(AttemptEnd(cause, "engines", ExitCode.ENGINES), starts(0), 4, means)
    assert decision.action is action


@pytest.mark.parametrize(
    ("cause", "with_queue", "without"),
    [
        (EndCause.FINISHED, RestartAction.DONE, RestartAction.DONE),
        (EndCause.STOPPED, RestartAction.REQUEUE, RestartAction.DONE),
        (EndCause.FAULT, RestartAction.GIVE_UP, RestartAction.GIVE_UP),
        (
            EndCause.DIED,
            RestartAction.REQUEUE,
            RestartAction.DONE,
        ),  # the time is up, so a restart in place is in vain
        (EndCause.HUNG, RestartAction.REQUEUE, RestartAction.DONE),
        (EndCause.UNFIT_NODE, RestartAction.REQUEUE, RestartAction.DONE),
        (EndCause.LOST_NODE, RestartAction.REQUEUE, RestartAction.DONE),
    ],
)
def test_what_is_done_after_an_end_that_a_signal_asked_for(
    cause: EndCause, with_queue: RestartAction, without: RestartAction
) -> None:
    end = AttemptEnd(cause, "trainer", ExitCode.TRAINER, requested=True)
    assert decide(end, starts(0), 4, JOB).action is with_queue
    assert decide(end, starts(0), 4, MACHINE).action is without


@pytest.mark.parametrize("means", [JOB, MACHINE, FEW_NODES])
@pytest.mark.parametrize("cause", AGAIN)
def test_the_file_stop_without_a_signal_ends_a_run_that_would_be_started_again(
    cause: EndCause, means: RestartOptions
) -> None:
    decision = decide(AttemptEnd(cause, says="so it ended", stop_file=True), starts(0), 4, means)
    why = "so it ended; not started again, as its end was asked for; newest checkpoint: step 4"
    assert decision == RestartDecision(RestartAction.DONE, why, in_order=False)


@pytest.mark.parametrize("cause", [EndCause.FINISHED, EndCause.STOPPED, EndCause.FAULT, *AGAIN])
def test_with_a_signal_the_file_stop_says_nothing_more(cause: EndCause) -> None:
    signalled = AttemptEnd(cause, requested=True)
    for means in (JOB, MACHINE):
        assert decide(replace(signalled, stop_file=True), starts(0), 4, means) == decide(
            signalled, starts(0), 4, means
        )


def test_a_run_that_ended_after_a_whole_step_ended_in_order() -> None:
    for end in (AttemptEnd(EndCause.STOPPED, stop_file=True), AttemptEnd(EndCause.STOPPED, requested=True)):
        assert decide(end, starts(0), 4, MACHINE).in_order


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (ExitCode.CONFIGURATION, 10), (ExitCode.PREFLIGHT, 11), (ExitCode.CONVERSION, 12), (ExitCode.SERVICE, 13),
        (ExitCode.ENGINES, 14), (ExitCode.DRIVER, 15), (ExitCode.TRAINER, 16), (ExitCode.WATCHDOG, 17),
    ],
)  # fmt: skip
def test_a_lasting_fault_ends_the_run_with_the_code_of_its_part(code: ExitCode, number: int) -> None:
    end = AttemptEnd(EndCause.FAULT, "a part", code, says="a part ended by its own error")
    decision = decide(end, starts(0), 4, JOB)
    assert (decision.action, decision.code, decision.why) == (RestartAction.GIVE_UP, number, end.says)


@pytest.mark.parametrize("means", [JOB, MACHINE])
@pytest.mark.parametrize("code", SERVING)
def test_a_part_that_died_is_restarted_with_all_others(code: ExitCode, means: RestartOptions) -> None:
    end = AttemptEnd(EndCause.DIED, "a part", code, says="a part was ended by SIGKILL")
    decision = decide(end, starts(0), 4, means)
    assert (decision.action, decision.code) == (RestartAction.RESTART_ALL, None)
    assert decision.why == "a part was ended by SIGKILL; going on from step 4 (restart 1 of at most 20)"


@pytest.mark.parametrize("means", [JOB, MACHINE, FEW_NODES])
@pytest.mark.parametrize("requested", [False, True])
def test_a_watchdog_that_was_killed_is_started_again_alone(means: RestartOptions, requested: bool) -> None:
    end = AttemptEnd(EndCause.DIED, "watchdog", ExitCode.WATCHDOG, requested)
    assert decide(end, starts(0, 0, 0), 0, means).action is RestartAction.RESTART_PART


def test_a_watchdog_that_is_killed_again_and_again_ends_the_run() -> None:
    end = AttemptEnd(EndCause.DIED, "watchdog", ExitCode.WATCHDOG, part_restarts=3)
    means = replace(JOB, most_restarts=3)
    assert decide(replace(end, part_restarts=2), starts(0), 0, means).action is RestartAction.RESTART_PART
    decision = decide(end, starts(0), 0, means)
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, ExitCode.WATCHDOG)


ALONE_CODES = (ExitCode.SERVICE, ExitCode.ENGINES, ExitCode.DRIVER)


def of_part(**how: Any) -> AttemptEnd:
    died = AttemptEnd(
        EndCause.DIED, "engine_1", ExitCode.ENGINES, says="engine_1 was ended by SIGKILL", alone=True
    )
    return replace(died, **how)


@pytest.mark.parametrize("code", ALONE_CODES)
def test_one_that_serves_is_started_again_alone(code: ExitCode) -> None:
    decision = decide_part(of_part(code=code), [], 4, 20)
    assert decision is not None
    assert (decision.action, decision.wait, decision.code) == (RestartAction.RESTART_PART, 1.0, None)
    assert decision.why == (
        "engine_1 was ended by SIGKILL; it alone is started again in 1 s (restart 1 of it), the run goes on"
    )


@pytest.mark.parametrize(
    "how",
    [
        {"alone": False},  # the trainer has ended too, or it never was healthy
        {"code": ExitCode.TRAINER},
        {"cause": EndCause.FAULT},
        {"cause": EndCause.LOST_NODE},
        {"cause": EndCause.UNFIT_NODE},
    ],
)
def test_what_is_more_than_one_part_s_death_is_the_run_s_to_decide(how: dict[str, Any]) -> None:
    assert decide_part(of_part(**how), [], 4, 20) is None


@pytest.mark.parametrize("asked", [{"stop_file": True}, {"requested": True}])
def test_a_run_that_is_asked_to_end_gets_its_part_back_so_that_it_ends_in_order(asked: dict[str, Any]) -> None:
    decision = decide_part(of_part(**asked), [], 4, 20)
    assert decision is not None
    assert decision.action is RestartAction.RESTART_PART


@pytest.mark.parametrize(
    ("restarts", "wait"),
    [([], 1), ([4], 2), ([4, 4], 4), ([4] * 3, 8), ([4] * 4, 16), ([0] * 4, 1), ([0] * 4 + [4], 2)],
)
def test_a_part_waits_longer_the_more_often_it_was_in_vain(restarts: list[int], wait: float) -> None:
    decision = decide_part(of_part(), restarts, 4, 20)
    assert decision is not None
    assert decision.wait == wait


def test_a_wait_has_an_end() -> None:
    assert [wait_before(number) for number in (0, 1, 5, 6, 1000)] == [1, 2, 32, 60, 60]


@pytest.mark.parametrize(("restarts", "most"), [([4] * 5, 20), ([0, 1, 2], 3), ([], 0)])
def test_a_part_that_was_restarted_too_often_is_the_run_s_to_decide(restarts: list[int], most: int) -> None:
    assert decide_part(of_part(), restarts, 4, most) is None
    assert decide(of_part(), starts(0), 4, JOB).action is RestartAction.RESTART_ALL


def test_too_few_nodes_without_a_queue_end_the_run_with_a_code_of_their_own() -> None:
    end = AttemptEnd(EndCause.LOST_NODE, says="lost node2")
    decision = decide(end, starts(0), 4, LOST_MACHINE)
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 18)
    assert decision.why.startswith("lost node2")


@pytest.mark.parametrize(
    ("history", "most", "says"),
    [
        ((4,), 20, ""),
        ((4, 4), 20, ""),
        ((4, 4, 4), 20, "two restarts brought no checkpoint after step 4"),
        ((2, 4, 4), 20, ""),
        ((4, 4, 4, 2), 20, ""),
        ((2, 2, 2), 20, ""),  # a newer one is there now
        ((0, 2, 4), 2, "restarted 2 times (EMPG_MAX_RESTARTS)"),
        ((0, 2), 2, ""),
        ((4,), 0, "restarted 0 times"),
        ((), 0, ""),
    ],
)
def test_a_run_is_not_restarted_too_often_nor_a_third_time_from_one_checkpoint(
    history: tuple[int, ...], most: int, says: str
) -> None:
    found = used_up(starts(*history), 4, most)
    assert found.startswith(says)
    assert bool(found) == bool(says)


@pytest.mark.parametrize("means", [JOB, MACHINE, FEW_NODES])
@pytest.mark.parametrize("cause", AGAIN)
def test_whatever_ended_a_run_whose_restarts_are_used_up_it_is_given_up(
    cause: EndCause, means: RestartOptions
) -> None:
    end = AttemptEnd(cause, "driver", ExitCode.DRIVER, says="so it ended")
    decision = decide(end, starts(4, 4, 4), 4, means)
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 19)
    assert decision.why == "so it ended; two restarts brought no checkpoint after step 4: giving up"
    often = decide(end, starts(1, 2, 3), 4, replace(means, most_restarts=2))
    assert (often.action, often.code) == (RestartAction.GIVE_UP, 19)


def test_a_chain_of_time_limits_counts_too() -> None:
    end = AttemptEnd(EndCause.STOPPED, requested=True, says="a signal came")
    assert decide(end, starts(0, 4, 8), 12, JOB).action is RestartAction.REQUEUE
    assert decide(end, starts(4, 4, 4), 4, JOB).code is ExitCode.RESTARTS


@pytest.mark.parametrize("end", [AttemptEnd(EndCause.FINISHED), AttemptEnd(EndCause.STOPPED)])
def test_a_run_that_is_done_is_done_however_often_it_was_restarted(end: AttemptEnd) -> None:
    assert decide(end, starts(4, 4, 4, 4), 4, JOB).action is RestartAction.DONE


@pytest.mark.parametrize(("given", "wanted"), [({}, 20), ({"EMPG_MAX_RESTARTS": ""}, 20)])
def test_twenty_restarts_are_the_most_where_nothing_is_said(given: dict[str, str], wanted: int) -> None:
    assert most_restarts(given) == wanted


def test_the_variable_says_how_many_restarts() -> None:
    assert most_restarts({"EMPG_MAX_RESTARTS": "0"}) == 0
    assert most_restarts({"EMPG_MAX_RESTARTS": "7"}) == 7
    for wrong in ("-1", "many", "1.5", "٣", "9" * 40):
        with pytest.raises(RestartsError, match=f"EMPG_MAX_RESTARTS is '{wrong}'") as refused:
            most_restarts({"EMPG_MAX_RESTARTS": wrong})
        assert refused.value.exit_code == 2
