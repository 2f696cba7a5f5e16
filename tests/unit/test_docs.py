"""The documents: links lead somewhere, files and recipe keys that they name exist, and so do all metrics."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.recipe import Recipe, SftRecipe
from megatron_empg.section import Section, choices

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes/miniature/README.md"]
FOLDERS = ("bench", "container", "docs", "megatron_empg", "recipes", "slurm", "tests", "tools")
STAND_FOR_ANY = ("NAME",)
"""In a file's name: it stands for one of the reader's own."""
NO_KEYS = ("actor.score", "actor.update", "actor.py", "model.safetensors")
"""Words that look like a recipe's keys and are files or calls."""


def keys(section: type[Section], before: str = "") -> Iterator[str]:
    """Dotted names of sections and keys."""
    for name, field in section.model_fields.items():
        yield before + name
        for part in choices(field.annotation).values():
            yield from keys(part, f"{before}{name}.")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{before}{name}.")


KEYS = {*keys(Recipe), *keys(SftRecipe)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w*])", page.read_text(encoding="utf-8")
    )
    files = [name for name in named if not any(word in name for word in STAND_FOR_ANY)]
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipe_keys_that_a_page_names_exist(page: Path) -> None:
    sections = "|".join(name for name in KEYS if "." not in name)
    named = re.findall(rf"(?<![\w./])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*", page.read_text(encoding="utf-8"))
    known = [name for name in named if name.startswith("environment.settings.")]
    assert [name for name in named if name not in {*KEYS, *NO_KEYS, *known}] == []


def test_the_page_of_algorithms_names_every_one_with_its_keys() -> None:
    page = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
    owners = [Recipe.model_fields["algorithm"], *AlgorithmSection.model_fields.values()]
    chosen = [choice for field in owners for choice in choices(field.annotation).items()]
    words = {word for name, section in chosen for word in (name, *section.model_fields)}
    assert len(words) > 40
    assert [word for word in sorted(words) if f"`{word}`" not in page and f"`algorithm.{word}`" not in page] == []


def documented_metrics() -> set[str]:
    """Names of the table's first column, braces written out."""
    found: set[str] = set()
    for line in (ROOT / "docs/metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                found |= set(written_out(name))
    return found


def written_out(name: str) -> Iterator[str]:
    """A name with {a,b} in it is two names."""
    braces = re.search(r"\{([^}]+)\}", name)
    if braces is None:
        yield name
        return
    for word in braces[1].split(","):
        yield from written_out(name[: braces.start()] + word + name[braces.end() :])


def test_metrics_of_the_source_are_documented() -> None:
    named: set[str] = set()
    for path in (ROOT / "megatron_empg/trainer").glob("*.py"):
        groups = "train|rollout|policy|empg|validation|time"
        named |= set(re.findall(rf'"((?:{groups})/[a-z_]+)"', path.read_text(encoding="utf-8")))
    assert len(named) > 40
    assert named - documented_metrics() == set()
