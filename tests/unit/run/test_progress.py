import io
import time

from rich.console import Console

from megatron_empg.run.progress import StepProgress, duration, evaluation_line

METRICS = {
    "train/reward": 0.4375,
    "train/success": 0.4375,
    "policy/entropy": 0.512,
    "policy/approx_kl": 3.1e-4,
    "tokens_per_second": 2345.0,
    "time/rollout": 2.41,
    "time/score": 0.5,
    "time/update": 1.3,
    "time/sync": 0.2,
    "time/step": 4.5,
}


def printed(terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, highlight=False, soft_wrap=True)
    with StepProgress(40, console=console) as progress:
        progress.phase("rollout", 3, 64)
        if terminal:
            time.sleep(0.4)  # the live line is redrawn ten times a second
        progress.finish_step(1, METRICS)
        progress.phase("rollout")
        progress.finish_step(2, {**METRICS, "policy/kl_to_initial": 0.0123, "eval/test_id/sampled": 0.41})
        progress.note("[not markup] checkpoint written")
    return stream.getvalue()


def test_plain_output_is_one_line_a_step() -> None:
    header, first, second, evaluation, note = printed(terminal=False).splitlines()
    assert header.split()[:3] == ["step", "reward", "success"]
    assert " ".join(first.split()) == "1/40 0.438 43.8% 0.512 3.1e-04 - 2,345 2.4s 0.5s 1.3s 0.2s 4.5s"
    assert "0.0123" in second
    assert evaluation == "evaluation at step 2: test_id sampled 41.0%"
    assert note == "[not markup] checkpoint written"


def test_a_terminal_also_shows_the_running_phase() -> None:
    assert "rollout 3/64" in printed(terminal=True)
    assert "rollout 3/64" not in printed(terminal=False)


def test_an_evaluation_alone_has_no_empty_line() -> None:
    stream = io.StringIO()
    with StepProgress(40, console=Console(file=stream, width=160)) as progress:
        progress.finish_step(0, {"eval/test_ood/greedy": 0.5, "eval/test_ood/greedy_questions": 2000})
    assert stream.getvalue() == "evaluation at step 0: test_ood greedy 50.0%\n"
    assert evaluation_line(1, METRICS) == ""


def test_a_warm_ups_validation_is_a_line() -> None:
    metrics = {"validation/loss": 0.51234, "validation/correct_surely": 0.9}
    assert evaluation_line(3, metrics) == (
        "evaluation at step 3: held-out walkthroughs: loss 0.5123, sure tokens 90.0%"
    )


def test_an_evaluation_of_few_questions_says_how_sure_it_is() -> None:
    few = {"eval/test_id/sampled": 0.5, "eval/test_id/sampled_questions": 60.0, "eval/test_id/greedy": 1.0}
    few |= {"eval/test_id/greedy_questions": 60.0, "eval/test_id/greedy/two_hops": 1.0}
    assert evaluation_line(3, few) == (
        "evaluation at step 3: test_id sampled 50.0% ± 12 points (60 questions), greedy 100.0%"
    ), "a share at the edge is surer"
    assert "± 9 points (8" not in evaluation_line(3, {**few, "eval/test_id/sampled_questions": 400.0})
    shares = {
        questions: evaluation_line(3, {**few, "eval/test_id/sampled_questions": questions})
        for questions in (380.0, 390.0)
    }
    assert [questions for questions, line in shares.items() if "±" in line] == [380.0], "above 5 points"


def test_durations() -> None:
    assert [duration(s) for s in (4.6, 200, 7500)] == ["5s", "3m 20s", "2h 05m"]
    assert {duration(s) for s in (1e9, 1e308, float("inf"), float("nan"))} == {"over 30 years"}


def test_a_step_that_trained_on_nothing_says_why():
    console = Console(file=io.StringIO(), width=200)
    progress = StepProgress(2, console=console)
    progress.finish_step(1, {"train/reward": 0.0, "train/idle": 1.0, "train/groups_dropped_equal": 8})
    progress.finish_step(2, {"train/reward": 0.5, "train/idle": 0.0, "train/groups_dropped_equal": 2})
    said = console.file.getvalue()
    assert "step 1 trained on nothing: too few groups to learn from, 8 had equal rewards" in said
    assert "step 2 trained" not in said
