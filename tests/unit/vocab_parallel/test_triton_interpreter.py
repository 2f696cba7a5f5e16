"""The Triton kernels under Triton's interpreter: the tests of test_definition.py once more.

But for gradcheck, which calls a kernel a hundred times: the interpreter takes milliseconds for each row.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_triton_kernels_pass_the_same_tests() -> None:
    # The interpreter is chosen when Triton is first imported, hence a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    chosen = (
        "import torch; from megatron_empg.vocab_parallel.kernels import kernels_for;"
        "assert kernels_for(torch.device('cpu')).__name__.endswith('triton_kernels');"
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    tests = Path(__file__).with_name("test_definition.py")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            chosen,
            str(tests),
            "-x",
            "-k",
            "not gradcheck",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
