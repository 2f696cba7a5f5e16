"""The suite as a whole: a planted fault is found and named with a non-zero exit code, and one rank is no pass."""

from pathlib import Path

from tests.support.suite_runs import run_suite


def test_a_corrupted_byte_is_found_and_its_rank_named(tmp_path: Path) -> None:
    options = ["--layout", "tensor=2", "--max-bytes", "4096", "--only", "correctness"]
    run = run_suite(tmp_path, 2, *options, "--inject", "corrupt", "1")
    assert run.codes == [1, 1], run.printed
    assert run.findings["verdict"] == "FAIL"
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("corrupt", [1]), fault
    first = fault["details"]["first"]
    assert set(first) == {"group", "collective", "dtype", "size", "rank", "source", "offset", "got", "expected"}
    assert first["source"] == 1
    # Every collective through which rank 1 sends something has noticed.
    seen = {wrong["collective"] for wrong in run.findings["correctness"]["wrong"]}
    assert {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send_recv", "batch_isend_irecv"} <= seen


def test_one_rank_never_passes(tmp_path: Path) -> None:
    run = run_suite(tmp_path, 1, "--max-bytes", "4096")
    assert run.codes == [0], run.printed
    assert run.findings["verdict"] == "NOT EXERCISED"
    assert "multi-rank NCCL not exercised" in run.findings["note"]
    assert "multi-rank NCCL not exercised" in run.printed
    assert "PASS" not in run.printed
    assert run.findings["bandwidth"] is run.findings["pairs"] is run.findings["latency"] is None
    assert run.findings["correctness"]["cases"]["world"] > 30
