"""docs/algorithms.md: every algorithm and part with its keys and defaults, and an example that works."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.epo import PRESETS
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import Section, choices
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.experience import experience_of
from tests.support.batches import batch_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
REGISTRY = (ROOT / "megatron_empg/algorithms/registry.py").read_text(encoding="utf-8")
PARTS = ("modulation", "regularizer", "correction")


def chapters() -> dict[str, str]:
    """{heading without its marks: text until the next heading}."""
    _, *pieces = re.split(r"^#{2,3} ", PAGE, flags=re.MULTILINE)
    return {piece.split("\n")[0].strip("`"): piece for piece in pieces}


def rows(chapter: str) -> Iterator[list[str]]:
    """The cells of each line of its tables."""
    for line in chapter.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def value_of(cell: str) -> Any:
    """What a cell says, as a recipe would have it."""
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def own_keys(section: type[Section]) -> dict[str, Any]:
    """{key: default}, those of a section inside it with its name before theirs."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        default = field.default
        if name == "name" or (issubclass(section, AlgorithmSection) and name in AlgorithmSection.model_fields):
            continue
        if isinstance(default, Section):
            found |= {f"{name}.{key}": value for key, value in own_keys(type(default)).items()}
        else:
            found[name] = default
    return found


OPTIONAL = [choices(AlgorithmSection.model_fields[part].annotation) for part in PARTS]
ALGORITHMS = choices(Recipe.model_fields["algorithm"].annotation)
CHOICES = [ALGORITHMS, *OPTIONAL, {"KL": KlSection, "Masks": MasksSection}]
assert all(CHOICES)
SECTIONS = {name: section for group in CHOICES for name, section in group.items() if name != "none"}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_has_every_key_of_a_choice_with_its_default(name: str) -> None:
    told = {row[0].strip("`"): value_of(row[1]) for row in rows(chapters()[name]) if row[0].startswith("`")}
    defaults = own_keys(SECTIONS[name])
    assert {key: told.get(key, "not told") for key in defaults} == defaults


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_says_where_a_choice_comes_from_and_when_to_use_it(name: str) -> None:
    chapter = chapters()[name]
    if name not in ("KL", "Masks"):
        assert "*Use it*" in chapter
    if name not in ("entropy", "sequence_rejection", "Masks"):
        assert re.search(r"arXiv \d{4}\.\d{5}|,\s20\d\d\)", chapter)
    for key, _, origin in (row[:3] for row in rows(chapter) if row[0].strip("`") in own_keys(SECTIONS[name])):
        assert origin or name == "epo", key


def test_a_default_that_the_page_tells_wrongly_is_found() -> None:
    assert value_of("3e-4") == 3e-4
    assert [value_of(cell) for cell in ("true", "null", "minmax")] == [True, None, "minmax"]
    assert list(rows("text\n| `k` | 2 | page |\n")) == [["`k`", "2", "page"]]


def test_the_presets_of_epo_are_told_with_their_numbers() -> None:
    told = {row[0].strip("`"): row[1:-1] for row in rows(chapters()["epo"]) if row[0].strip("`") in PRESETS}
    numbers = {name: [value_of(cell) for cell in cells] for name, cells in told.items()}
    assert numbers == {name: list(vars(preset).values()) for name, preset in PRESETS.items()}


def test_the_page_counts_the_combinations() -> None:
    count = 1
    for names in (ALGORITHMS, *OPTIONAL):
        count *= len(names)
    assert f"all {count} combinations" in " ".join(PAGE.split())


# The example


def block(language: str, after: str) -> str:
    """The first block of a language after some words of the page."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE[PAGE.index(after) :], re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def patched(source: str, diff: str) -> str:
    """The registry with an entry: the import after the others, the name behind the others (`…` on the page)."""
    imported, named = [line[1:] for line in diff.splitlines() if line.startswith("+")]
    union, name = named.split("… | ")
    (line,) = [line for line in source.splitlines() if line.startswith(union)]
    before, after = source.replace(line, f"{line} | {name}").split("from megatron_empg.common.section", maxsplit=1)
    return f"{before}{imported}\nfrom megatron_empg.common.section{after}"


def module_of(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The source as a module that others can import."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> TypeAdapter[AlgorithmSection]:
    """`algorithm` as recipes have it once the page's file and entry are there."""
    module_of("megatron_empg.algorithms.opo", block("python", "## Adding one"), monkeypatch)
    registry = patched(REGISTRY, block("diff", "## Adding one"))
    return TypeAdapter(module_of("registry_with_opo", registry, monkeypatch).AlgorithmKey)


def uneven() -> Experience:
    """Two questions: episodes of 2 + 3 and 5 own tokens, then of 1 and 3."""
    return batch_of(
        [[(3, 5), (8, 11)], [(3, 8)], [(3, 4)], [(3, 6)]], [1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1]
    ).experience


def test_the_example_is_short() -> None:
    assert len(block("python", "## Adding one").splitlines()) <= 30
    assert sum(line.startswith("+") for line in block("diff", "## Adding one").splitlines()) == 2


def test_the_example_is_chosen_by_its_name_like_any_other(key: TypeAdapter[AlgorithmSection]) -> None:
    chosen: Any = key.validate_python({"name": "opo", "clip": 0.1, "modulation": "aem", "correction": "tis"})
    assert (chosen.name, chosen.clip, chosen.modulation.name) == ("opo", 0.1, "aem")
    assert key.validate_python(chosen.model_dump()) == chosen
    assert key.validate_python("gspo").name == "gspo"
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        key.validate_python({"name": "opo", "clip": 2.0})


def test_the_examples_advantages_are_those_of_its_equation(key: TypeAdapter[AlgorithmSection]) -> None:
    experience = uneven()
    advantages = key.validate_python("opo").advantages(experience, [])
    # Baselines: (5·1 + 5·0) / 10 and (1·0 + 3·1) / 4.
    assert advantages.episodes.tolist() == [0.5, -0.5, -0.75, 0.25]
    assert advantages.turns.tolist() == [0.5, 0.5, -0.5, -0.75, 0.25]
    nothing = experience_of(
        [], torch.empty(0, dtype=torch.long), rewards=torch.empty(0), groups=torch.empty(0, dtype=torch.long),
        rollout_logprobs=torch.empty(0),
    )  # fmt: skip
    assert key.validate_python("opo").advantages(nothing, []).turns.tolist() == []


def test_the_example_trains_with_every_part_on(key: TypeAdapter[AlgorithmSection]) -> None:
    parts = {"modulation": "empg", "regularizer": "epo", "correction": "icepop", "kl": {"coefficient": 0.1}}
    algorithm = Algorithm(key.validate_python({"name": "opo", **parts}))
    experience = uneven()
    scores = Scores(torch.full((14,), -0.5), torch.linspace(0.1, 1.0, 14))
    credit = algorithm.credit(experience, scores, [scores])
    assert credit.turns.isfinite().all()
    samples = algorithm.samples(experience, scores, credit, [0, 1, 2, 3])
    assert samples[0].streams.present().keys() >= {"advantages", "reference_logprobs"}
    assert set(algorithm.loss().statistics) >= {"ratio", "clipped", "kl_to_reference", "epo_outside"}
