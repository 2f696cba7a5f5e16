"""What `empg watch` reads while somebody else writes it: metrics that grow, logs, curves in a line."""

import json
import os
from pathlib import Path

import pytest

from megatron_empg.common.jsonl import append_line, keep_lines
from megatron_empg.run.watch.growing_file import GrowingLines
from megatron_empg.run.watch.log_warnings import PLAN, TAIL_BYTES, last_warnings, newest_change, plain
from megatron_empg.run.watch.sparkline import ASCII, sparkline


def test_a_growing_file_is_read_on_from_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = GrowingLines(path)
    assert lines.look() == []
    for step in (1, 2):
        append_line(path, {"step": step})
        assert [record["step"] for record in lines.look()] == list(range(1, step + 1))


def test_half_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = GrowingLines(path)
    line = json.dumps({"step": 1, "name": "Ä"}, ensure_ascii=False).encode() + b"\n"
    for end in range(len(line)):
        path.write_bytes(line[:end])
        assert lines.look() == [], end
    path.write_bytes(line)
    assert lines.look() == [{"step": 1, "name": "Ä"}]


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n[1]\n\xff\xfe\n\n' + b'{"x": ' + b"[" * 200_000 + b'\n{"step": 2}\n')
    assert GrowingLines(path).look() == [{"step": 1}, {"step": 2}]


def test_a_file_that_a_resumed_run_cuts_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = GrowingLines(path)
    for step in (1, 2, 3):
        append_line(path, {"step": step, "at": "first"})
    assert len(lines.look()) == 3
    keep_lines(path, lambda record: record["step"] < 2)
    append_line(path, {"step": 2, "at": "again"})
    append_line(path, {"step": 3, "at": "again, and longer than it was"})
    assert [record["at"][:5] for record in lines.look()] == ["first", "again", "again"]


def test_a_file_that_is_gone_has_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    lines = GrowingLines(path)
    assert len(lines.look()) == 1
    path.unlink()
    assert lines.look() == []


def test_warnings_of_the_log_that_was_written_last_come_last(tmp_path: Path) -> None:
    for age, (name, text) in enumerate(
        {
            "engine_0.1.log": "ERROR of an earlier start\n",
            "trainer.log": "all well\nerror: the policy diverged\n",
            "driver.log": "WARNING nothing is wrong\nKeyError: 'x'\nan error rate of 3\n",
        }.items()
    ):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (100 + age, 100 + age))
    found = last_warnings(tmp_path, 10)
    assert [(line.log, line.text) for line in found] == [
        ("trainer", "error: the policy diverged"),
        ("driver", "WARNING nothing is wrong"),
        ("driver", "KeyError: 'x'"),
    ]
    assert last_warnings(tmp_path, 1) == found[-1:]
    assert last_warnings(tmp_path, 0) == []
    assert last_warnings(tmp_path / "absent", 3) == []


def test_of_slurm_s_logs_the_newest_start_s_are_read(tmp_path: Path) -> None:
    """JOB.NUMBER/NAME.NODE.TASK.log, beside trackers' folders and a run's logs without Slurm."""
    texts = {
        "9.1/engines.n2.0.log": "WARNING of job 9, which came before\n",
        "7.1/trainer.n1.0.log": "error: of the first start\n",
        "7.2/trainer.n1.0.log": "error: of the newest start\n",
        "7.2/trainer.n2.1.log": "WARNING of another task\n",
        "wandb/debug.log": "ERROR of a tracker\n",
        "driver.log": "WARNING without Slurm\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for age, name in enumerate(
        ["driver.log", "7.2/trainer.n1.0.log", "7.2/trainer.n2.1.log", "7.1/trainer.n1.0.log"]
    ):
        os.utime(tmp_path / name, (100 + age, 100 + age))
    for began, attempt in enumerate(["9.1", "7.1", "7.2", "wandb"]):
        plan = tmp_path / attempt / PLAN
        plan.write_text("{}")
        os.utime(plan, (50 + began, 50 + began))
    assert [(line.log, line.text) for line in last_warnings(tmp_path, 10)] == [
        ("driver", "WARNING without Slurm"),
        ("trainer.n1.0", "error: of the newest start"),
        ("trainer.n2.1", "WARNING of another task"),
    ]
    assert newest_change(tmp_path) == 102


def test_a_traceback_with_one_head_is_its_last_line(tmp_path: Path) -> None:
    head = "(APIServer pid={}) ERROR 11-27 06:52:57 [async_llm.py:906]"
    said = ["Traceback (most recent call last):", "  File x", "EngineDeadError: gone"]
    (tmp_path / "engine_0.log").write_text("".join(f"{head.format(7)} {line}\n" for line in said))
    (only,) = last_warnings(tmp_path, 5)
    assert only.text == "ERROR 11-27 06:52:57 [async_llm.py:906] EngineDeadError: gone"


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    filler = "x" * 99 + "\n"
    (tmp_path / "a.log").write_text(
        "WARNING at the begin\n" + filler * (2 * TAIL_BYTES // 100) + "WARNING at the end\n"
    )
    assert [line.text for line in last_warnings(tmp_path, 5)] == ["WARNING at the end"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m text", "red text"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1b]0;title\x07bell", "0;titlebell"),
        ("a\rb\x00c\x9bd", "abcd"),
        ("  plain [bold]text[/bold] ", "plain [bold]text[/bold]"),
    ],
)
def test_a_log_cannot_move_the_terminals_cursor(line: str, shown: str) -> None:
    assert plain(line) == shown


def test_a_curve_rises_from_the_lowest_letter_to_the_highest() -> None:
    assert sparkline([0, 1, 2], 10) == "▁▅█"
    assert sparkline([3, 3], 10) == "▁▁"
    assert sparkline([2.0], 10) == "▁"
    assert sparkline([], 10) == sparkline([1.0], 0) == ""
    assert sparkline([0, 7], 10, ramp=ASCII) == "_#"


def test_a_long_curve_is_as_wide_as_it_may_be() -> None:
    line = sparkline(list(range(1000)), 37)
    assert len(line) == 37
    assert line == "".join(sorted(line, key="▁▂▃▄▅▆▇█".index))
