"""What `empg preflight` looks at, by what it is given, and what it says of the rest."""

import json
from pathlib import Path

import pytest

from megatron_empg.cli import preflight as command
from megatron_empg.cluster.preflight import run
from megatron_empg.cluster.preflight.collect import PreflightOptions
from megatron_empg.cluster.preflight.facts import ClockFacts, LimitFacts, NodeFacts
from megatron_empg.cluster.preflight.judge import Requirements
from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS

RECIPE = """
run: {{folder: {folder}/run, steps: 1}}
model: {{path: recipes/miniature/policy}}
environment: {{name: deep_search, settings: {settings}}}
rollout: {{groups: 2, group_size: 2, max_turn_tokens: 8, max_episode_tokens: 64}}
"""


@pytest.mark.parametrize(
    ("settings", "data"),
    [("{}", DEFAULT_CORPUS), ("{corpus: corpora/own.jsonl}", "corpora/own.jsonl")],
    ids=["a recipe without a corpus", "with one"],
)
def test_the_corpus_that_the_run_will_read_is_looked_at(
    settings: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PreflightOptions] = []

    def note(questions: PreflightOptions, wanted: Requirements, **_: object) -> int:
        asked.append(questions)
        return 0

    monkeypatch.setattr(run, "run_preflight", note)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path, settings=settings))
    with pytest.raises(command.typer.Exit):
        command.preflight(recipe, data=[Path("more.txt")])
    assert asked[0].data == (Path(data), Path("more.txt"))


def test_every_check_that_was_not_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command itself, without a recipe or an option; the node's own facts are stand-ins."""

    def collect(name: str, asked: PreflightOptions) -> NodeFacts:
        assert (asked.run_folder, asked.model, asked.data, asked.ports) == (None, None, (), ())
        limits = LimitFacts(nofile=10**6, memlock=-1, nproc=10**6)
        node = NodeFacts(name=name, shared_memory=2**40, host_memory=2**40, limits=limits, infiniband=[])
        node.clock = ClockFacts(offset=0.0, uncertain=0.0)
        return node

    monkeypatch.setattr(run, "collect_node", collect)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    report = tmp_path / "report.json"
    with pytest.raises(command.typer.Exit):
        command.preflight(json=report)
    skipped = {
        finding["check"]: finding["detail"]
        for finding in json.loads(report.read_text())["findings"]
        if finding["status"] == "SKIP"
    }
    assert skipped["data"] == "not checked: neither a recipe nor --data was given"
    assert skipped["model"] == "not checked: neither a recipe nor --model was given"
    assert skipped["disk"] == "not checked: neither a recipe nor --run-folder was given"
    assert skipped["ports"] == "not checked: no --ports were given"
    assert "not asked for" not in capsys.readouterr().out
