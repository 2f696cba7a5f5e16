"""What is shown of the log of a process that has ended."""

from pathlib import Path

import pytest

from megatron_empg.common.log_ends import first_error, why

RECORDED = Path(__file__).parents[1] / "fixtures/engine_without_memory.log"
"""What an engine of vLLM 0.32.0 wrote that was asked for a KV cache larger than the machine's memory."""


def test_of_an_engine_the_error_is_shown_that_its_end_only_points_to() -> None:
    said = why(RECORDED)
    assert "Engine core initialization failed. See root cause above." in said.splitlines()[-1]
    first = said.splitlines()[1]
    assert first.startswith(
        "ValueError: Available memory on node 0 (22.2/23.54 GiB) on kv cache allocation is less "
    )
    assert said.startswith(f"the first error in {RECORDED}:\n")


def test_an_error_that_stands_in_the_end_is_not_said_twice(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    log.write_text("started\nTraceback (most recent call last):\n  File x\nKeyError: 'gone'\n", encoding="utf-8")
    assert why(log).count("KeyError: 'gone'") == 1
    assert why(log).startswith(f"end of {log}:\nstarted")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "torch.OutOfMemoryError: CUDA out of memory."),
        ("(Worker_TP1 pid=7) ERROR 11-26 16:20:20 [x.py:1] OSError: no", "OSError: no"),
        ("AssertionError", "AssertionError"),
        (
            "error: the driver at http://a:1/probe answered 500",
            "error: the driver at http://a:1/probe answered 500",
        ),
        ("This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.", None),
        ("    raise ValueError(", None),
        ("(EngineCore pid=1) ERROR 11-26 16:20:20 [core.py:1510] EngineCore failed to start.", None),
        ("train/episodes_error: 3", None),
    ],
)
def test_an_error_is_told_from_a_line_that_speaks_of_one(line: str, found: str | None) -> None:
    assert first_error(f"before\n{line}\nafter") == found


def test_a_log_that_is_no_text_and_has_no_error_is_shown_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"\xff\xfe started\n")
    assert why(log) == f"end of {log}:\n\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} started"
