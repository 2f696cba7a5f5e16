"""A simulated cluster for the tests of this folder, or why there is none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_programs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _slurm_is_here() -> None:
    missing = missing_programs()
    if missing:
        reason = f"a simulated Slurm needs {', '.join(missing)}: `make test-slurm` as root installs the packages"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of 8 fake GPUs, with nothing running on them."""
    folder = Path(tempfile.mkdtemp(prefix="empg_slurm_", dir="/tmp"))
    try:
        with Cluster(folder, nodes=3) as found:
            yield found
    finally:
        shutil.rmtree(folder)
