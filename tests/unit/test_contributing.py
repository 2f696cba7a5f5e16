"""The examples of CONTRIBUTING.md work as they are typed there; each page names files that are to be touched."""

import json
import re
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from megatron_empg.algorithms.registry import Algorithms
from megatron_empg.common.section import named
from megatron_empg.environments.conformance import check_environment
from megatron_empg.report import figures
from megatron_empg.report.data import RunData
from megatron_empg.run import metric_names
from megatron_empg.weights.mapping import families
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table
from megatron_empg.weights.sync.broadcast_transport import BroadcastTransport

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
KINDS = ("an algorithm", "an environment", "a model family", "a sync backend", "a metric", "a chart")


def chapter(title: str) -> str:
    """The page's text below a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def block(title: str, word: str, language: str = "python") -> str:
    """The chapter's first block of code that holds a word."""
    found = re.findall(rf"^```{language}\n(.*?)^```", chapter(title), re.DOTALL | re.MULTILINE)
    return next(code for code in found if word in code)


def added(title: str, word: str) -> list[str]:
    """The lines that the chapter's first diff with a word adds."""
    return [line[1:] for line in block(title, word, "diff").splitlines() if line.startswith("+")]


def module_of(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The source as a module that others can import."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_has_a_table_of_files_an_example_and_its_tests(kind: str) -> None:
    text = chapter(f"Add {kind}")
    assert text.lstrip().startswith("| file | |") or "\n| file | |\n" in text
    assert "As an example" in text
    assert "python -m pytest" in text or "environments check" in text


def test_an_algorithm_is_a_new_file_and_a_name() -> None:
    text = chapter("Add an algorithm")
    files = re.findall(r"^\| `(megatron_empg/[^`]+)`", text, re.MULTILINE)
    assert files == ["megatron_empg/algorithms/NAME.py", "megatron_empg/algorithms/registry.py"]
    registry = (ROOT / files[1]).read_text(encoding="utf-8")
    (line,) = re.findall(r"^Algorithms = .*$", registry, re.MULTILINE)
    assert added("Add an algorithm", "Algorithms = ")[1] == f"{line} | Median"


def test_the_example_of_an_algorithm_passes_its_own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "megatron_empg.algorithms.median"
    median: Any = module_of(name, block("Add an algorithm", "class Median"), monkeypatch).Median
    own = module_of("test_median", block("Add an algorithm", "def test_"), monkeypatch)
    tests = [value for key, value in vars(own).items() if key.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    chosen: Any = Annotated[Algorithms | median, Field(discriminator="name"), named("grpo")]
    assert TypeAdapter(chosen).validate_python("median") == median()


def test_the_example_of_an_environment_keeps_every_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repeat.py").write_text(block("Add an environment", "class Repeat"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "repeat", raising=False)
    found = check_environment("repeat:Repeat", {})
    assert [finding for finding in found if finding.verdict == "broken"] == []
    assert len([finding for finding in found if finding.verdict == "kept"]) > 15


def test_the_example_of_a_family_has_the_published_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    row = added("Add a model family", '"mistral": Family(')[0].strip()
    monkeypatch.setitem(families.FAMILIES, "mistral", eval(f"{{{row}}}", dict(vars(families)))["mistral"])
    config = ModelConfig.from_dict(json.loads(block("Add a model family", "MistralForCausalLM", "json")))
    told = added("Add a model family", '"mistral-7b-v0.3":')[0].split(":")[1].strip(" ,")
    count = 0
    for parameter in parameter_table(config):
        for shape in parameter.shapes:
            size = 1
            for length in shape:
                size *= length
            count += size
    assert f"{count:_}" == told


def test_the_example_of_a_sync_backend_passes_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from safetensors.torch import load_file

    from megatron_empg.weights.sync import vllm_extension

    title = "Add a sync backend"
    transport = "megatron_empg.weights.sync.file_transport"
    module_of(transport, block(title, "class FileTransport"), monkeypatch)
    engine = dict(vars(vllm_extension)) | {"load_file": load_file}
    exec(block(title, "class FileEngine"), engine)
    for name in ("FileEngine", "FileInitInfo", "FileUpdateInfo"):
        monkeypatch.setattr(vllm_extension, name, engine[name], raising=False)
    own = module_of("test_file_sync", block(title, "def test_"), monkeypatch)
    tests = [value for key, value in vars(own).items() if key.startswith("test_")]
    assert len(tests) == 2
    for number, test in enumerate(tests):
        folder = tmp_path / str(number)
        folder.mkdir()
        test(folder)


def test_the_example_of_a_sync_backend_has_the_methods_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    source = block("Add a sync backend", "class FileTransport")
    made = module_of("file_transport", source, monkeypatch).FileTransport
    for method in ("connect", "begin", "stream", "send", "close"):
        given = list(signature(getattr(made, method)).parameters)
        assert given == list(signature(getattr(BroadcastTransport, method)).parameters), method


def test_the_example_of_a_metric_is_an_entry_and_is_measured_where_the_page_says() -> None:
    entry = added("Add a metric", "Metric(")[0].strip().rstrip(",")
    assert eval(entry, dict(vars(metric_names))).covers("train/longest_turn")
    measured = (ROOT / "megatron_empg/rollout/service/collect.py").read_text(encoding="utf-8")
    (line,) = re.findall(r'^ *metrics\["train/turns"\] = ', measured, re.MULTILINE)
    assert added("Add a metric", "metrics[")[0].startswith(line.replace("turns", "longest_turn"))
    tested = (ROOT / "tests/unit/rollout/service/test_collect.py").read_text(encoding="utf-8")
    assert "def test_the_batch_holds_what_was_played() -> None:" in tested


def test_the_example_of_a_chart_is_drawn_where_it_was_logged() -> None:
    places = dict(vars(figures))
    exec(block("Add a chart", "def longest_turn"), places)
    lines: list[dict[str, float]] = [
        {"step": 1, "train/longest_turn": 9.0},
        {"step": 2, "train/longest_turn": 12.0},
    ]
    drawn, empty = (
        places["longest_turn"](RunData("run", {}, "", [], metrics, [], [], [])) for metrics in (lines, lines[:0])
    )
    assert drawn.title == "Longest turn"
    assert empty is None
    page = (ROOT / "megatron_empg/report/page.py").read_text(encoding="utf-8")
    removed, put = block("Add a chart", "figures.training", "diff").splitlines()
    assert removed[1:] in page
    assert put[1:] == removed[1:].replace("figures.training", "figures.training, figures.longest_turn")
