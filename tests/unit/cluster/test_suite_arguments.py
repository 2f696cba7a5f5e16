"""What tools/nccl_suite.py refuses, by name and with exit code 2, before any rank is met."""

import runpy
import sys

import pytest
import torch

from tests.support.suite_runs import TOOL


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "speed"], "--only has speed; sections are correctness, late"),
        (["--inject", "explode", "1"], "first corrupt, delay or missing"),
        (["--inject", "missing", "last"], "--inject missing last"),
        (["--step-limit", "nan"], "argument --step-limit: invalid finite value: 'nan'"),
        (["--least-pair=-1"], "argument --least-pair: invalid finite value: '-1'"),
        (
            ["--only", "pairs", "--inject", "delay", "0"],
            "--inject delay is found by late, which --only leaves out",
        ),
        (["--backend", "gloo", "--inject", "missing", "7"], "planted on rank 7: there are 1 ranks"),
        (["--backend", "nccl"], "--backend gloo runs on CPU"),
        (["--backend", "gloo", "--recipe", "none.yaml"], "cannot read recipe none.yaml"),
        (["--backend", "gloo", "--layout", "tensor=3"], "needs a multiple of 3 ranks; there are 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "nccl" in options and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(sys, "argv", [str(TOOL), *options])
    main = runpy.run_path(str(TOOL))["main"]
    try:
        code = main()
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err
