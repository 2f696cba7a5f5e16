"""The registry of metrics: every name that a part of the program writes has one entry, and each is written."""

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from megatron_empg.actor.actor import UpdateReport
from megatron_empg.actor.throughput import Throughput
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.diagnostics import batch_diagnostics, entropy_change, gradient_norms_by_entropy
from megatron_empg.algorithms.registry import AlgorithmKey
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import choices
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.run.metric_names import FAMILIES, STANDS_FOR, Metric, by_clock, find
from megatron_empg.trainer.advantages import credit_metrics
from megatron_empg.trainer.policy_update import update_metrics
from tests.support.batches import batch_of

PACKAGE = Path(__file__).resolve().parents[3] / "megatron_empg"
ENTRIES = [metric for family in FAMILIES for metric in family.metrics]
PARTS = [
    {part: name}
    for part in ("modulation", "regularizer", "correction")
    for name in choices(AlgorithmSection.model_fields[part].annotation)
]
CHOICES: list[dict[str, Any]] = [
    *({"name": name} for name in choices(Recipe.model_fields["algorithm"].annotation)),
    *PARTS,
    {"kl": {"coefficient": 0.1}},
    {"masks": {"truncated": True}},
]

THROUGHPUT = ("tokens_per_second", "tflops_per_rank", "mfu")


def test_all_choices_are_looked_at() -> None:
    named = {choice["name"] for choice in CHOICES if "name" in choice}
    assert named >= {"grpo", "dapo", "rloo", "reinforce_pp", "gspo", "gigpo", "sampo", "igpo"}
    assert len(PARTS) >= 3 + 3 + 5


def unknown(names: Any) -> list[str]:
    return [name for name in names if find(name) is None]


def section_of(chosen: dict[str, Any]) -> AlgorithmSection:
    return TypeAdapter(AlgorithmKey).validate_python(chosen)


def played() -> tuple[Any, Scores]:
    """Two questions of two episodes with two turns each, and the actor's scores of their own tokens."""
    batch = batch_of([[(3, 5), (8, 11)]] * 4, [1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1], truncated=torch.arange(4) > 2)
    generator = torch.Generator().manual_seed(0)
    logprobs, entropies = torch.rand(2, 20, generator=generator)
    return batch.experience, Scores(-logprobs, entropies)


def test_every_metric_of_a_batchs_credit_has_an_entry() -> None:
    experience, scores = played()
    written: set[str] = set()
    for chosen in [*PARTS, {"masks": {"truncated": True}}]:
        algorithm = Algorithm(section_of(chosen))
        for _ in range(2):  # EPO has a history from the second batch on
            credit = algorithm.credit(experience, scores, [])
            written |= set(credit_metrics(credit)) | set(batch_diagnostics(experience, scores, credit))
    groups = {name.split("/")[0] for name in written}
    assert groups == {"policy", "empg", "aem", "epo", "correction", "algorithm", "diagnostics"}
    assert unknown(written) == []


def written_by_updates(chosen: dict[str, Any]) -> set[str]:
    statistics = ("entropy", *Algorithm(section_of(chosen)).loss().statistics)
    return set(update_metrics([UpdateReport(1.0, 1.0, 1.0, 1, True, dict.fromkeys(statistics, 1.0))]))


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_every_metric_of_an_update_has_an_entry(chosen: dict[str, Any]) -> None:
    written = written_by_updates(chosen)
    assert "policy/ratio" in written
    assert unknown(written) == []


def test_metrics_that_are_put_together_have_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    written = {*entropy_change(first, second)[1], *gradient_norms_by_entropy(first, second)[1]}
    monkeypatch.setattr(Throughput, "mfu", lambda self: 0.5)  # as on a device whose peak is known
    speeds = set(Throughput(tokens=10, seconds=1.0, flops_per_rank=1.0).metrics("actor/score"))
    assert speeds == {f"actor/score_{what}" for what in THROUGHPUT}
    written |= speeds
    for greedy in (False, True):
        written |= set(Evaluation("test_id", greedy, 0.5, 8, 0, 1.0, {"two hops": 0.5}).metrics())
    assert len(written) == 11 + 11 + 3 + 8
    assert unknown(written) == []


@pytest.mark.parametrize("name", ["", "policy", "policy/entropi", "train/reward_mean", "actor/mfu", "time/1"])
def test_an_unknown_name_has_no_entry(name: str) -> None:
    assert find(name) is None


@pytest.mark.parametrize("word", ["x", "", "1_2"])
def test_a_bin_is_a_number(word: str) -> None:
    assert find(f"diagnostics/gradient_norm_bin_{word}") is None
    assert find("diagnostics/gradient_norm_bin_12") is not None


def test_what_the_clock_tells_is_marked() -> None:
    """Comparisons of runs that must agree to the bit leave these out, and no others."""
    clocks = ("time/step", "tokens_per_second", "actor/update_mfu", "engine/3/running", "rollout/tail_ratio")
    clocks += ("rollout/engines_healthy", "rollout/episodes_moved")  # what befell its processes is no number of it
    assert [name for name in clocks if not by_clock(name)] == []
    numbers = ("step", "train/reward", "policy/loss", "train/episodes_error", "eval/dev/sampled", "unheard/of")
    assert [name for name in numbers if by_clock(name)] == []


def test_a_name_is_found_whatever_fills_its_words() -> None:
    for name in ("eval/test_ood/greedy_errors", "eval/dev/sampled/3 hops", "diagnostics/entropy_change_bin_9"):
        entry = find(name)
        assert entry is not None
        assert entry.covers(name)


def test_braces_are_written_out() -> None:
    assert Metric("{a,b}/x_{c,d}", "", "").names == ["a/x_c", "a/x_d", "b/x_c", "b/x_d"]
    assert Metric("step", "", "").names == ["step"]


DICTIONARIES = ("metrics", "phases")
"""What the program calls its dictionaries of metrics."""


def keys_of_metrics(tree: ast.AST) -> set[str]:
    """Constant keys that are put into them, by ``metrics = {…}``, ``metrics |= {…}`` or ``metrics[…] = …``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        keys: list[ast.AST | None] = []
        if getattr(target, "id", "") in DICTIONARIES and isinstance(node.value, ast.Dict):
            keys = [*node.value.keys]
        if isinstance(target, ast.Subscript) and getattr(target.value, "id", "") in DICTIONARIES:
            keys = [target.slice]
        found |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return found


def test_every_key_of_a_metrics_dictionary_has_an_entry() -> None:
    """Those without a group before their name too."""
    files = [path for room in ("trainer", "algorithms", "actor") for path in (PACKAGE / room).rglob("*.py")]
    keys = {key for path in files for key in keys_of_metrics(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"policy_version", "tokens_per_second", "skipped_updates", "masked_updates", "time/evaluate"} <= keys
    assert unknown(keys) == []


def test_no_name_has_two_entries() -> None:
    for one, other in itertools.combinations(ENTRIES, 2):
        assert not set(one.names) & set(other.names), (one.name, other.name)


def test_every_entry_says_what_it_is() -> None:
    assert [entry.name for entry in ENTRIES if len(entry.meaning) < 10] == []
    assert [family.title for family in FAMILIES if not family.metrics] == []


GROUPS = {name.split("/")[0] for entry in ENTRIES for name in entry.names}


def strings_of_the_package() -> set[str]:
    """Plain strings and templates of the package that begin as a metric does, but for the registry's own."""
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "metric_families"]
    quoted = {
        word for path in files for word in re.findall(r'"([\w/{}.\[\]]+)"', path.read_text(encoding="utf-8"))
    }
    return {word for word in quoted if word.split("/")[0] in GROUPS}


def test_every_entry_is_written_by_something() -> None:
    strings = strings_of_the_package() - {"policy/{statistic}"}  # of which every name is known:
    strings |= {name for chosen in CHOICES for name in written_by_updates(chosen)}
    strings |= {f"actor/{phase}_{what}" for phase in ("score", "update") for what in THROUGHPUT}
    assert len(strings) > 90
    stale = [name for entry in ENTRIES for name in entry.names if not is_written(name, strings)]
    assert stale == []


def is_written(name: str, strings: set[str]) -> bool:
    """Whether one of the strings is the name, or a template that gives it."""
    for word in STANDS_FOR:
        name = name.replace(word, "1")
    templates = [".+".join(map(re.escape, re.split(r"\{[^}]*\}", string))) for string in strings]
    return any(re.fullmatch(template, name) for template in templates)


def test_an_entry_that_nothing_writes_is_found() -> None:
    strings = {"train/reward", "empg/{name}_{part}"}
    assert is_written("train/reward", strings)
    assert is_written("empg/g_std", strings)
    assert not is_written("train/rewards", strings)
    assert not is_written("empg/k", strings)
