"""One task source over the corpus that ships with the repository."""

from pathlib import Path

import pytest

from megatron_empg.environments.base import TaskSource
from megatron_empg.environments.registry import make_task_source

MINIATURE = Path(__file__).resolve().parents[3] / "recipes" / "miniature"


@pytest.fixture(scope="session")
def miniature() -> Path:
    return MINIATURE


@pytest.fixture(scope="session")
def source() -> TaskSource:
    return make_task_source("deep_search", corpus=MINIATURE / "corpus.jsonl", prompt="none")
