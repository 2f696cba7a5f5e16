"""Whether bench/seeds.py tells runs apart by their folders."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seeds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "bench/seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_other_overrides_are_other_folders(seeds: ModuleType) -> None:
    recipe = Path("recipes/quickstart.yaml")
    given = [
        [], ["algorithm.modulation=none"], ["algorithm.modulation=empg"], ["algorithm.modulation.k=3"],
        ["algorithm.modulation={k: 3}"], ["algorithm.modulation={k_ 3}"], ["model.path=a/b"], ["model.path=a_b"],
        ["limits.sync_timeout=" + "9" * 300], ["limits.sync_timeout=" + "9" * 301],
    ]  # fmt: skip
    names = [seeds.folder_name(recipe, overrides) for overrides in given]
    assert len(set(names)) == len(names)
    assert names[1] == "quickstart,algorithm.modulation=none"
    assert all("/" not in name and len(name) < 160 for name in names)


def test_their_order_is_no_difference(seeds: ModuleType) -> None:
    recipe = Path("recipes/quickstart.yaml")
    assert seeds.folder_name(recipe, ["b=1", "a=2"]) == seeds.folder_name(recipe, ["a=2", "b=1"])
