"""Where a run of this machine is disturbed: a network and a small disk of its own, and a search that fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.chaos import small_disk
from tests.end_to_end.chaos_search import UnreliableSearch, unreliable_search
from tests.end_to_end.disturbed_run import Run
from tests.support.own_network import missing_for_own_network, own_network

DISK = "160m"
STEPS = 1000
"""More than the faults need: a disturbed run is ended when it has had them."""


@dataclass
class Scene:
    """The folder of what is not disturbed, the small disk, and the search."""

    folder: Path
    disk: Path
    search: UnreliableSearch

    def start(self, folder: Path, more: dict[str, Any]) -> Run:
        """A run of two engines and of environments in worker processes, with a checkpoint behind every step."""
        overrides = {
            "environment.name": "tests.support.isolated_search:IsolatedSearch",
            "environment.settings.search_url": self.search.url,
            "limits.environment_memory": 3,
            "run.checkpoint_every": 1,
            "run.keep_checkpoints": 2,
        } | more
        return Run(folder, 2, STEPS, overrides, self.search.token).start()


@contextmanager
def chaos_scene(folder: Path) -> Iterator[Scene]:
    """Skips the test on a machine that lacks what it takes."""
    if missing := missing_for_own_network():
        pytest.skip(f"a slow network, a small disk and cut connections need {', '.join(missing)}")
    with own_network(), small_disk(folder / "disk", DISK) as disk, unreliable_search(folder) as search:
        yield Scene(folder, disk, search)
