"""What all tests share: one thread a process, and small models made on the spot."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two files run at a time (pytest-xdist) one at most starts ranks: four ranks on two cores crawl."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("distributed" if folder == "distributed" else str(item.path)))
