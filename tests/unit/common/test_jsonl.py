"""Lines of JSON that no writer of ours made are left out, as torn ones are."""

from pathlib import Path

import pytest

from megatron_empg.common.jsonl import read_lines


@pytest.mark.parametrize("line", ['{"step": ', "[1]", "9" * 5001, '{"x": ' + "[" * 200_000, "\0", ""])
def test_a_line_that_is_not_a_record_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n', encoding="utf-8")
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
