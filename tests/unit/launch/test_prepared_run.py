"""From an empty folder to a question played: fetched from a local server, indexed, found by the recipe."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megatron_empg.common.http import healthy
from megatron_empg.launch import commands
from megatron_empg.launch.play import play_one_question
from megatron_empg.launch.prepared_data import DataChoice, data_overrides
from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.prepare.deepsearch import PreparationOptions, prepare
from megatron_empg.prepare.sources import read_sources
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from tests.support.file_server import file_server

ROOT = Path(__file__).parents[3]
INSTRUCT = ROOT / "tests/recipes/policies/instruct_tools"
RECIPE = "recipes/deepsearch_7b.yaml"
QUESTION = {"_id": "q1", "question": "Who wrote the first program?", "answer": "Ada Lovelace", "type": "bridge"}
PAGES = [
    {"id": "0", "contents": "Ada Lovelace\nAda Lovelace wrote the first program, for a machine never built."},
    {"id": "1", "contents": "Charles Babbage\nCharles Babbage designed the Analytical Engine."},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the real preparation made, of a model, one question and two pages."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield make(tmp_path_factory.mktemp("made"), monkeypatch)


@pytest.fixture
def prepared(made: Path, tmp_path: Path) -> Path:
    """The same, to be harmed."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "*")
    lines = "".join(json.dumps(page) + "\n" for page in PAGES)
    with file_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        files = {path.name: path.read_bytes() for path in INSTRUCT.iterdir() if path.is_file()}
        server.put("model", "Own/Qwen2.5-7B-Instruct", files)
        server.put("dataset", "own/pages", {"pages.jsonl": lines.encode()})
        server.files["/hotpot.json"] = json.dumps([QUESTION]).encode()
        here = [{"place": f"{server.url}/hotpot.json"}]
        splits = ("train", "test_id", "test_ood")
        sources = tmp_path / "sources.yaml"
        content = {
            "model": "hub:Own/Qwen2.5-7B-Instruct",
            "questions": [{"dataset": "hotpotqa", "split": split, "from": here} for split in splits],
            "corpus": {"from": [{"place": "hub:own/pages:pages.jsonl"}]},
        }
        sources.write_text(yaml.safe_dump(content), encoding="utf-8")
        prepare(read_sources(sources), PreparationOptions(tmp_path / "data"), lambda text: None)
    return tmp_path / "data"


def resolved(folder: Path) -> Recipe:
    return load_recipe(RECIPE, data_overrides(load_recipe(RECIPE), [], DataChoice(folder)))


def test_a_shipped_recipe_plays_a_question_over_what_was_prepared(prepared: Path) -> None:
    """Without an engine: prompt by the model's template, turns in the environment's syntax, a real search."""
    lines: list[str] = []
    play_one_question(resolved(prepared), lines.append)
    said = "\n".join(lines)
    assert "Who wrote the first program?" in said
    assert "<|im_start|>" in said
    assert "wrote the first program, for a machine never built" in said, "the search found the page"
    assert said.endswith("the episode ends with reward 1")


def test_the_search_service_of_a_job_serves_the_prepared_index(prepared: Path) -> None:
    """As the job starts it, and as it asks for its health: with the run's token, and refused without."""
    recipe = resolved(prepared)
    (service,) = plan_of(recipe).services
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = commands.service(sys.executable, service, "127.0.0.1", port)
    token = "a-token-of-24-characters"
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {service.token_variable: token})
    try:
        url = commands.url_of("127.0.0.1", port)
        deadline = time.monotonic() + 120
        while not healthy(url, token):
            assert server.poll() is None, "it ended before it was healthy"
            assert time.monotonic() < deadline, "it was never healthy"
            time.sleep(0.2)
        assert not healthy(url, "wrong")
    finally:
        server.kill()
        server.wait()


def test_an_index_that_is_damaged_is_named_when_a_question_is_played(prepared: Path) -> None:
    (prepared / "index/manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"manifest\.json"):
        play_one_question(resolved(prepared), print)


def test_a_model_without_a_template_is_named_when_a_question_is_played(prepared: Path) -> None:
    for path in (prepared / "model/Qwen2.5-7B-Instruct").glob("tokenizer*"):
        path.unlink()
    recipe = load_recipe(RECIPE, data_overrides(load_recipe(RECIPE), ["model.path=x"], DataChoice(prepared)))
    recipe.model.path = prepared / "model/Qwen2.5-7B-Instruct"
    with pytest.raises(RecipeError, match=r"model\.path: the chat template of"):
        play_one_question(recipe, print)
