"""Which questions a run's evaluations found answered."""

from pathlib import Path

from megatron_empg.run.evaluations import Answered, read_answered, write_answered
from megatron_empg.run.folder import RunFolder


def test_what_is_written_is_read_in_its_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    passes = [Answered(0, "test_id/sampled", "0110"), Answered(0, "test_id/greedy", "0111")]
    assert read_answered(folder) == []
    for passed in passes:
        write_answered(folder, passed)
    assert read_answered(folder) == passes


def test_a_pass_whose_questions_nobody_noted_has_no_line(tmp_path: Path) -> None:
    write_answered(RunFolder(tmp_path), Answered(0, "test_id/sampled", ""))
    assert not RunFolder(tmp_path).evaluations.exists()
