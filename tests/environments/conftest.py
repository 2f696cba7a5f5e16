"""What the tests of real engines share."""

import pytest

from megatron_empg.environments.scienceworld.errors import EngineUnavailable
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation, installed
from tests.environments.needed import needs


@pytest.fixture(scope="session")
def scienceworld() -> JavaInstallation:
    """Java and ScienceWorld's engine, or why they are not here."""
    try:
        return installed()
    except EngineUnavailable as error:
        needs(False, "ScienceWorld's engine", str(error))
        raise
