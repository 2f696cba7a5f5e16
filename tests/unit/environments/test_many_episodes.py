"""256 episodes at once, by each way an episode can run: all of them end, and not as errors.

bench/environments.py measures memory and CPU time of the same, with every engine.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.recipe import load_recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.service.episode_source import EpisodeSource, open_episode_source
from tests.support.crowd import TOKEN, Crowd, TreeMemory, play_crowd
from tests.support.delayed_search import delayed_server

ROOT = Path(__file__).resolve().parents[3]
EPISODES = 256
PAGES = 200
LIMIT = 8 * (1 << 30)


@pytest.fixture(scope="module")
def chat() -> ChatTokens:
    return ChatTokens.from_pretrained(ROOT / "recipes/miniature/tokenizer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first pages of the miniature, countries, and what their facts lead to."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = (ROOT / "recipes/miniature/corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:PAGES]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Any]:
    """Settings of published questions over an index of the same pages."""
    folder = tmp_path_factory.mktemp("published")
    pages, questions = folder / "pages.jsonl", folder / "questions.jsonl"
    documents = load_corpus(corpus).documents
    lines = [json.dumps({"contents": f"{page.title}\n{page.text}"}) + "\n" for page in documents]
    pages.write_text("".join(lines), encoding="utf-8")
    build_index(pages, folder / "index", progress=lambda line: None)
    lines = []
    for number in range(EPISODES):
        page = documents[number % PAGES]
        question = {"id": str(number), "question": f"{page.entity} {number}", "answers": [page.title]}
        lines.append(json.dumps(question) + "\n")
    questions.write_text("".join(lines), encoding="utf-8")
    files = {"train": [{"dataset": "jsonl", "path": str(questions)}]}
    return {"questions": files, "index": str(folder / "index")}


def play(chat: ChatTokens, settings: dict[str, Any], *overrides: str) -> tuple[Crowd, dict[str, float]]:
    """The rehearsal of each episode, which ends with the right answer; and the source's metrics at the end."""

    async def all_of_them() -> tuple[Crowd, dict[str, float]]:
        recipe = load_recipe(
            ROOT / "recipes/quickstart.yaml", [f"environment.settings={json.dumps(settings)}", *overrides]
        )
        async with open_episode_source(recipe.service_config()) as source:
            return await _played(source), source.metrics()

    async def _played(source: EpisodeSource) -> Crowd:
        tasks = source.tasks.sample("train", EPISODES, seed=0)
        return await play_crowd(source, chat, tasks, [source.tasks.rehearse(task) for task in tasks])

    with TreeMemory() as memory:
        result = asyncio.run(all_of_them())
    assert memory.peak < LIMIT
    return result


def all_won(crowd: Crowd, turns: int = 3) -> bool:
    assert crowd.errors == []
    assert len(crowd.episodes) == EPISODES
    assert {len(episode.turns) for episode in crowd.episodes} == {turns}
    return all(episode.outcome == "success" for episode in crowd.episodes)


def test_they_end_over_pages_in_this_process(chat: ChatTokens, corpus: Path) -> None:
    crowd, _ = play(chat, {"corpus": str(corpus)})
    assert all_won(crowd)
    assert crowd.most == EPISODES


def test_they_end_over_a_search_server_that_takes_300_ms_an_answer(
    chat: ChatTokens, published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with delayed_server(Path(published["index"]), TOKEN, 0.3) as url:
        crowd, _ = play(chat, {"questions": published["questions"], "search_url": url})
    assert all_won(crowd, turns=2)  # a search and the answer: what pages there are is not known here
    assert crowd.most == EPISODES
    observed = [turn.observation for episode in crowd.episodes for turn in episode.turns[:-1]]
    assert all(text.startswith("found\n1 ") for text in observed if text is not None)


def test_they_end_in_as_many_worker_processes_as_memory_has_room_for(chat: ChatTokens, corpus: Path) -> None:
    """Two workers take turns at them: each reads the corpus once."""
    crowd, metrics = play(
        chat,
        {"corpus": str(corpus)},
        "environment.name=tests.support.isolated_search:IsolatedSearch",
        "limits.environment_memory=1",
    )
    assert all_won(crowd)
    assert crowd.most == 2
    assert metrics["rollout/environment_workers"] == 2
    assert metrics["rollout/environment_workers_died"] == 0


def test_episodes_beyond_the_workers_wait_for_one(chat: ChatTokens, corpus: Path) -> None:
    """All 256 begin at once, whatever the number of workers."""
    recipe = load_recipe(
        ROOT / "recipes/quickstart.yaml",
        [
            f"environment.settings.corpus={corpus}",
            "environment.name=tests.support.isolated_search:IsolatedSearch",
            "limits.environment_memory=1",
        ],
    )

    async def play_all() -> tuple[int, int, set[bool | None]]:
        async with open_episode_source(recipe.service_config()) as source:
            pool = source.pool
            assert pool is not None
            tasks = source.tasks.sample("train", EPISODES, seed=0)
            episodes = [source.make(task) for task in tasks]
            most = waiting = 0
            won = set()

            async def one(number: int) -> None:
                nonlocal most, waiting
                episode = episodes[number]
                await episode.reset()
                most, waiting = max(most, pool.live), max(waiting, pool.waiting)
                answer = source.tasks.rehearse(tasks[number])[-1]
                won.add((await episode.step(answer)).success)
                await episode.close()

            await asyncio.gather(*map(one, range(EPISODES)))
            return most, waiting, won

    most, waiting, won = asyncio.run(play_all())
    assert (most, won) == (2, {True})
    assert waiting == EPISODES - 2
