"""What every rehearsal may use."""

from pathlib import Path

import pytest

from tests.recipes.prepared_miniature import prepare_miniature


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that jobs are given."""
    return prepare_miniature(tmp_path_factory.mktemp("data") / "deepsearch")
