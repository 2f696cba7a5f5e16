"""The documents: links lead somewhere, files and recipe keys that they name exist, and so do all metrics."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.cli import app
from megatron_empg.common.section import Section, choices
from megatron_empg.recipe import Recipe, SftRecipe
from megatron_empg.run.metric_names import FAMILIES, find

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "recipes/miniature/README.md",
]
INDEX = ROOT / "docs/README.md"
FOLDERS = ("bench", "container", "docs", "megatron_empg", "recipes", "slurm", "studies", "tests", "tools")
STAND_FOR_ANY = ("NAME",)
"""In a file's name: it stands for one of the reader's own."""
NO_KEYS = ("actor.score", "actor.update", "actor.py", "model.safetensors")
"""Words that look like a recipe's keys and are files or calls."""
NO_MODULES = (".sif", ".def", ".opo")
"""How dotted names end that are files, or a module that the reader is told to write."""
NO_METRICS = (".safetensors", ".py", "actor/score", "actor/update")
"""How strings end that look like names of metrics and are files, or what names begin with."""
REGISTRY = ("metric_names", "test_metric_names", "test_contributing")
"""Files that hold names of metrics as patterns, or such as are none."""
FAMILIES_FOLDER = "metric_families"
"""The registry's own, with more patterns."""


def keys(section: type[Section], before: str = "") -> Iterator[str]:
    """Dotted names of sections and keys."""
    for name, field in section.model_fields.items():
        yield before + name
        for part in choices(field.annotation).values():
            yield from keys(part, f"{before}{name}.")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{before}{name}.")


KEYS = {*keys(Recipe), *keys(SftRecipe)}


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[str, str]]:
    """(file, anchor) of every link that leads into the repository; an empty file is the page itself."""
    return re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The names by which links lead to the page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """Links that lead to no file, or to no heading of it."""
    found = []
    for name, anchor in links(page):
        there = page.parent / name if name else page
        if not there.exists():
            found.append(name)
        elif anchor and anchor not in anchors(there):
            found.append(f"{name}#{anchor}")
    return found


def names(page: Path) -> str:
    """A page in its folder: three are called README.md."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_to_files_and_their_headings(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `key`, two\n\n```\n# No heading\n```\n", encoding="utf-8")
    page = tmp_path / "page.md"
    sound = "[a](other.md) [b](other.md#one-key-two) [c](#here) [d](https://x.org/y#z)\n\n## Here\n"
    page.write_text(sound + "[e](gone.md) [f](other.md#no-heading) [g](#there)\n", encoding="utf-8")
    assert broken(page) == ["gone.md", "other.md#no-heading", "#there"]


def test_every_page_is_reached_from_the_readme_or_the_index() -> None:
    led_to = {(page.parent / name).resolve() for page in (ROOT / "README.md", INDEX) for name, _ in links(page)}
    assert [names(page) for page in PAGES if page.name != "README.md" and page.resolve() not in led_to] == []
    assert INDEX in led_to


def test_every_page_of_docs_is_in_the_index() -> None:
    led_to = {(INDEX.parent / name).resolve() for name, _ in links(INDEX)}
    pages = [page for page in (ROOT / "docs").glob("*.md") if page != INDEX]
    assert [page.name for page in pages if page.resolve() not in led_to] == []


def test_every_recipe_is_named_in_the_documents() -> None:
    texts = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    recipes = [path.name.removesuffix(".yaml") for path in (ROOT / "recipes").glob("*.yaml")]
    assert len(recipes) > 20
    assert [name for name in recipes if not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", texts)] == []


def test_the_glossary_names_classes_and_attributes_that_are_there() -> None:
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| .+ \| (.+) \|$", page, flags=re.MULTILINE)
    assert len(rows) > 50
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "megatron_empg").rglob("*.py"))
    for name in re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", "\n".join(rows)):
        for word in filter(None, name):
            assert re.search(rf"^\s*(?:class |def |async def )?{word}\b", sources, flags=re.MULTILINE), name


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (using,) = re.findall(r"^## Using it\n(.*?)^## ", readme, flags=re.MULTILINE | re.DOTALL)
    commands = set(get_command(app).commands) - {"plan", "preflight"}  # these are for clusters, further down
    assert [name for name in sorted(commands) if f"\nempg {name} " not in using] == []


def test_what_a_preparation_takes_is_what_it_says_itself(tmp_path: Path) -> None:
    words = ["-m", "megatron_empg.prepare", "deepsearch", str(tmp_path / "data"), "--dry-run"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    fetched, kept = re.findall(r"in all +(\d+)\.\d GB +(\d+)\.\d GB", done.stdout)[0]
    (most,) = re.findall(r"while the index is built, (\d+) GB lie on the disk", done.stdout)
    readme, slurm = (ROOT / name for name in ("README.md", "docs/slurm.md"))
    assert f"{fetched} GB to fetch, {most} GB of disk" in readme.read_text(encoding="utf-8")
    told = " ".join(slurm.read_text(encoding="utf-8").split())
    assert f"takes {kept} GB in the end and {most} GB while the index is built" in told


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w*])", page.read_text(encoding="utf-8")
    )
    given = given_by(page)
    files = [name for name in named if name not in given and not any(word in name for word in STAND_FOR_ANY)]
    assert [name for name in files if not (ROOT / name).exists()] == []


def given_by(page: Path) -> set[str]:
    """Files whose whole text stands on the page: the reader is to write them."""
    return set(re.findall(r"`([\w./-]+)`(?:, anywhere)?:\n\n```", page.read_text(encoding="utf-8")))


def is_module_or_part(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something that a module's text names."""
    words = name.split(".")
    place = ROOT
    while words and ((place / words[0]).is_dir() or (place / f"{words[0]}.py").is_file()):
        place = place / words.pop(0)
    home = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return not words or re.search(rf"\b{words[0]}\b", home.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w./])megatron_empg(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8"))
    given = {name.removesuffix(".py").replace("/", ".") for name in given_by(page)}
    modules = [name for name in named if name not in given and not name.endswith(NO_MODULES)]
    assert [name for name in modules if not is_module_or_part(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_recipe_keys_that_a_page_names_exist(page: Path) -> None:
    sections = "|".join(name for name in KEYS if "." not in name)
    told = re.sub(
        r"^```(?:python|diff).*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    told = told.replace(".md", "")
    named = re.findall(rf"(?<![\w./])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*", told)
    known = [name for name in named if name.startswith("environment.settings.")]
    assert [name for name in named if name not in {*KEYS, *NO_KEYS, *known}] == []


def test_the_page_of_algorithms_names_every_one_with_its_keys() -> None:
    page = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
    owners = [Recipe.model_fields["algorithm"], *AlgorithmSection.model_fields.values()]
    chosen = [choice for field in owners for choice in choices(field.annotation).items()]
    words = {word for name, section in chosen for word in (name, *section.model_fields)}
    assert len(words) > 40
    assert [word for word in sorted(words) if f"`{word}`" not in page and f"`algorithm.{word}`" not in page] == []


def named_metrics(path: Path) -> set[str]:
    """Strings of a Python file that are names of metrics; parts that are filled in stand in braces."""
    groups = "train|rollout|policy|empg|aem|epo|correction|algorithm|diagnostics|eval|validation|time|actor"
    groups += "|engine|trainer"
    quoted = re.compile(rf'"((?:{groups})/[\w/{{}}.\[\]]*[\w}}])"')
    found = quoted.findall(path.read_text(encoding="utf-8"))
    return {name for name in found if not name.endswith(NO_METRICS)}


def is_documented(name: str) -> bool:
    """Whether a metric is called so, whatever stands for the parts in braces."""
    if "{" not in name:
        return find(name) is not None
    pattern = re.compile(".+".join(map(re.escape, re.split(r"\{[^}]+\}", name))))
    entries = [metric for family in FAMILIES for metric in family.metrics]
    return any(pattern.fullmatch(own) for entry in entries for own in entry.names)


def test_metrics_that_anything_writes_reads_or_asserts_are_documented() -> None:
    """Also those that only slow tests ask for: a renamed metric must not live on there."""
    files = [path for folder in ("megatron_empg", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if path.stem not in REGISTRY and path.parent.name != FAMILIES_FOLDER]
    named = {(name, path) for path in files for name in named_metrics(path)}
    assert len({name for name, _ in named}) > 90
    unknown = {(name, str(path.relative_to(ROOT))) for name, path in named if not is_documented(name)}
    assert unknown == set()


def test_a_metric_of_an_older_release_is_not_documented() -> None:
    assert is_documented("eval/test_id/sampled_questions")
    assert is_documented("eval/{split}/{how}_errors")
    # In two parts, so that the test above does not take them for metrics that are asked for.
    assert not is_documented("eval/test_id/" + "questions")
    assert not is_documented("time/{phase}/" + "seconds")


def test_the_tables_of_metrics_are_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "tools/metrics_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
