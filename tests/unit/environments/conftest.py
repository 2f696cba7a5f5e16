"""One task source over the corpus that ships with the repository."""

from pathlib import Path

import pytest

from megatron_empg.environments.deep_search.source import DeepSearchTaskSource

MINIATURE = Path(__file__).resolve().parents[3] / "recipes" / "miniature"


@pytest.fixture(scope="session")
def miniature() -> Path:
    return MINIATURE


@pytest.fixture(scope="session")
def source() -> DeepSearchTaskSource:
    return DeepSearchTaskSource(MINIATURE / "corpus.jsonl", prompt="none")
