"""What the tests of real engines share."""

from pathlib import Path

import pytest
from needed import needs

from megatron_empg.environments.scienceworld.errors import EngineUnavailable
from megatron_empg.environments.scienceworld.installed import Installed, installed

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share an engine or games: `--dist loadgroup` runs them in one process."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def scienceworld() -> Installed:
    """Java and ScienceWorld's engine, or why they are not here."""
    try:
        return installed()
    except EngineUnavailable as error:
        needs(False, "ScienceWorld's engine", str(error))
        raise
