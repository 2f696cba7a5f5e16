"""What all tests share: one thread a process, the same examples of properties at every run, long files first."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# HYPOTHESIS_PROFILE=random looks for other examples at every run; what it finds becomes an @example.
# A machine that does other things as well may take long over an example: that is no fault of it.
settings.register_profile("random", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

LONGEST = (
    "test_engine.py",
    "test_still_needed.py",
    "test_weight_sync.py",
    "test_environment_workers.py",
    "test_sft.py",
    "test_conversion_files.py",
    "test_engine_bfloat16.py",
    "test_local_run.py",
    "test_search_index.py",
    "test_identity.py",
    "test_loss_oracles.py",
    "test_retrieve_protocol.py",
    "test_prepare.py",
    "test_check.py",
)
"""Files that begin first where several run at once, so that none is left alone at the end. Those with real engines
take turns with those that need none."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
