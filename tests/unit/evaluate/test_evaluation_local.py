"""An evaluation on this machine, whole but for the engine, a stand-in: over an index, and without a service."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.base import EpisodeLimits, Split, Task, TaskSource
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.evaluate import launch
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.options import EvaluationOptions
from megatron_empg.evaluate.run import EvaluationRun, _passes
from megatron_empg.recipe import RecipeError, load_recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.service.rollout_service import open_rollout_service
from tests.support.stub_engine import StubEngine

RECIPE = Path("recipes/quickstart.yaml")
POLICY = Path("recipes/miniature/policy")
TOKEN = "0123456789abcdef"
QUESTION = {"id": "q1", "question": "Who wrote it?", "answers": ["Ada"], "hops": 2}
PAGES = [
    {"id": "0", "contents": "Program\nAda wrote the program."},
    {"id": "1", "contents": "Engine\nCharles designed the engine."},
]


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_published_questions_are_asked_over_an_index_in_this_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(write_lines(tmp_path / "pages.jsonl", *PAGES), tmp_path / "index")
    questions = write_lines(tmp_path / "questions.jsonl", QUESTION)
    files = {split: [{"dataset": "jsonl", "path": str(questions)}] for split in ("train", "test_id")}
    chat = ChatTokens.from_pretrained(POLICY)
    seen: list[str] = []

    def turn(body: dict[str, Any]) -> list[int]:
        """Looks the question up, then answers what it reads."""
        read = chat._tokenizer.decode(body["token_ids"])
        seen.append(read)
        found = "Ada wrote the program" in read
        call = "<answer> Ada </answer>" if found else "<search> who wrote the program </search>"
        said = f"<think> so it is . </think> {call}"
        return [*chat._tokenizer(said, add_special_tokens=False)["input_ids"], chat.end_of_turn]

    settings = json.dumps({"corpus": None, "questions": files, "index": str(tmp_path / "index"), "prompt": "none"})
    words = [f"environment.settings={settings}", f"model.path={POLICY}"]
    options = EvaluationOptions(splits=("test_id",), questions=1, greedy=False, json_path=tmp_path / "out.json")
    with StubEngine(turn) as engine, EvaluationRun(RECIPE, words, options) as evaluation:
        (policy,) = evaluation.unanswered()

        async def ask() -> None:
            async with open_rollout_service(
                evaluation.recipe_of(policy).service_config(), [engine.url], TOKEN
            ) as driver:
                await evaluation.ask(driver, policy)

        asyncio.run(ask())
        document = evaluation.finish()
    (outcome,) = document.policies[0].outcomes
    assert (outcome.end, outcome.turns, outcome.hops, outcome.kind) == ("success", 2, 2, "jsonl"), seen
    assert "success in % by hops" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["policies"][0]["outcomes"][0]["success"] is True


class Failing(TaskSource):
    """Fails of its own kinds of errors, when it is made or when it is asked."""

    def __init__(self, settings: Any, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        if limits.max_turns == 3:
            raise KeyError("a shard")

    def tasks(self, split: Split) -> list[Task]:
        raise ZeroDivisionError("no shard")

    def make(self, task: Task) -> Any:
        raise NotImplementedError


class Nameless(Failing):
    def fixed(self, split: Split, count: int) -> list[Task]:
        return [Task("one", [], {})] * count


@pytest.mark.parametrize(
    ("name", "turns", "kind", "said"),
    [
        ("Failing", 3, RecipeError, r"environment\.settings: KeyError: 'a shard'"),
        ("Failing", 4, RecipeError, r"evaluation\.questions is 2: ZeroDivisionError: no shard"),
        ("Nameless", 4, EvaluationError, "2 questions have 1 names"),
    ],
)
def test_whatever_an_environment_raises_is_told_with_its_key(
    name: str, turns: int, kind: type[Exception], said: str
) -> None:
    where = f"environment.name={__name__}:{name}"
    words = [where, "environment.settings={}", f"environment.max_turns={turns}", "evaluation.questions=2"]
    with pytest.raises(kind, match=said):
        _passes(load_recipe(RECIPE, words), 1)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "--json is empty"),
        (".", "--json is empty, or the current folder"),
        ("..", r"--json \.\. is a folder"),
        ("{here}", "is a folder: name a file in it"),
        ("{here}/corpus.jsonl/out.json", r"corpus\.jsonl is not a folder"),
        ("{here}/dangling/out.json", "dangling is not a folder"),
        ("/proc/x/y.json", "nothing can be written in /proc|/proc/x cannot be made"),
    ],
)
def test_a_document_that_could_not_be_written_is_refused_before_anything_starts(
    tmp_path: Path, place: str, said: str
) -> None:
    (tmp_path / "corpus.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    options = EvaluationOptions(questions=1, json_path=Path(place.format(here=tmp_path)))
    words = [f"model.path={POLICY}"]
    with pytest.raises(EvaluationError, match=said), EvaluationRun(RECIPE, words, options):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "dangling"}


def test_what_cannot_be_written_is_told_by_the_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "megatron_empg.cli", "evaluate", str(RECIPE), "--json", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("error: --json ")


def test_a_new_folder_of_a_document_is_said_and_only_made_for_what_can_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new/folder/out.json"
    options = EvaluationOptions((POLICY, POLICY), questions=1, json_path=place)
    with pytest.raises(EvaluationError, match="are the same policy"):
        EvaluationRun(RECIPE, [], options)
    assert not (tmp_path / "new").exists()
    with EvaluationRun(RECIPE, [], EvaluationOptions((POLICY,), questions=1, json_path=place)):
        assert place.parent.is_dir()
    assert f"making the folder {place.parent}" in capsys.readouterr().out


def test_a_policy_that_is_given_twice_starts_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> Any:
        raise AssertionError("engines were started")

    for name in ("check_machine", "processes_of", "engine_parts"):
        monkeypatch.setattr(launch, name, start)
    for twice in ((POLICY, POLICY), (POLICY, POLICY / "../policy"), (POLICY.absolute(), POLICY)):
        with pytest.raises(EvaluationError, match="are the same policy"):
            launch.launch_evaluation(RECIPE, [], EvaluationOptions(twice, questions=1))
