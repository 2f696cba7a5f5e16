"""tools/mutation_places.py: a fault's place is a definition's tokens; the list of faults fits the code."""

from pathlib import Path

import pytest
from mutation_places import MisfitError, Place, replaced
from test_mutations import misfits

ROOT = Path(__file__).resolve().parents[2]

TEXT = """\
LIMIT = 3


class Mean:
    weighted: bool = True

    def of(self, values):
        # The total by the count.
        return total(
            values, weighted=self.weighted
        ) / len(values)


def of(values):
    return len(values) - len(values)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "mean.py").write_text(TEXT, encoding="utf-8")
    (tmp_path / "small.yaml").write_text("run: {steps: 3}\n", encoding="utf-8")
    return tmp_path


def test_every_fault_has_its_place_and_its_test() -> None:
    assert misfits(ROOT) == []


@pytest.mark.parametrize(
    ("place", "old", "new", "line"),
    [
        ("mean.py:LIMIT", "3", "4", "LIMIT = 4"),
        ("mean.py:Mean.weighted", "True", "False", "    weighted: bool = False"),
        ("mean.py:Mean.of", "len(values)", "1", "        ) / 1"),
        ("mean.py:of", "- len", "+ len", "    return len(values) + len(values)"),
        ("small.yaml", "steps: 3", "steps: 4", "run: {steps: 4}"),
    ],
)
def test_a_fragment_is_replaced_where_its_definition_has_it(
    tree: Path, place: str, old: str, new: str, line: str
) -> None:
    before = (tree / place.partition(":")[0]).read_text(encoding="utf-8").splitlines()
    after = replaced(tree, Place.read(place), old, new).splitlines()
    assert [changed for changed, kept in zip(after, before, strict=True) if changed != kept] == [line]


def test_lines_and_comments_do_not_matter(tree: Path) -> None:
    whole = "total(values, weighted=self.weighted) / len(values)"
    assert "return 0\n" in replaced(tree, Place.read("mean.py:Mean.of"), whole, "0")


@pytest.mark.parametrize(
    ("place", "old", "said"),
    [
        ("mean.py:of", "len(values)", "of of mean.py has 2 places with 'len(values)', not one"),
        ("mean.py:Mean.of", "sum(values)", "Mean.of of mean.py has 0 places"),
        ("mean.py:Median.of", "len", "mean.py defines Median.of 0 times, not once"),
        ("median.py:of", "len", "there is no file median.py"),
        ("small.yaml", "4}", "small.yaml has 0 places"),
    ],
)
def test_a_place_that_is_gone_is_told(tree: Path, place: str, old: str, said: str) -> None:
    with pytest.raises(MisfitError) as misfit:
        replaced(tree, Place.read(place), old, "")
    assert said in str(misfit.value)


def test_a_place_without_a_suffix_is_a_module_of_the_package() -> None:
    assert Place.read("actor/packing:Packer.pack") == Place("megatron_empg/actor/packing.py", "Packer.pack")
