"""Element types by name."""

import subprocess
import sys

import pytest
import torch

from megatron_empg.common.dtypes import DTYPE_BYTES, dtype_of, name_of


@pytest.mark.parametrize("name", DTYPE_BYTES)
def test_a_name_stands_for_torchs_type_of_so_many_bytes(name: str) -> None:
    assert dtype_of(name).itemsize == DTYPE_BYTES[name]
    assert name_of(dtype_of(name)) == name


def test_other_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="'int8' is not an element type of weights; there are float32, bfloat16, "
    ):
        dtype_of("int8")
    assert name_of(torch.int8) == "int8"


def test_names_and_sizes_are_known_without_torch() -> None:
    code = "import sys, megatron_empg.common.dtypes; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
