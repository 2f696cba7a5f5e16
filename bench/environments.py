"""Many episodes at once with each kind of engine behind Deep Search: memory, CPU time, whether all of them end.

    python -m bench.environments
    python -m bench.environments --documents 200000 --rounds 10 --thought 200

Plays 256 episodes through the rollout as the driver does, against an engine that answers with scripted turns (a
search and a visit, `rounds` times, then the right answer) and answers none before all are under way. Each kind is
played in a process of its own. Memory is the peak, looked at twice per second, of the proportional set sizes of
that process and all below it: of services, of worker processes, of the tokenizer and the scripted engine as well.
CPU time is theirs too, from the first episode's beginning to the last one's end. Status 1 where an episode ends in
an error or without success, or memory passes the limit.

facts            questions and pages of the miniature, in this process
facts-service    the same pages behind search_service, a process of its own
index            the questions as published ones, over an index in this process
retrieve-server  the same over retrieve_server, a process of its own
slow-server      the same over a server that takes 300 ms for each answer
workers          facts, each episode in a worker process; limits.environment_memory has room for eight
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench.retrieval import write_corpus
from megatron_empg.environments.base import Task
from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.environments.deep_search.source import DeepSearch
from megatron_empg.environments.registry import make_task_source
from megatron_empg.recipe import load_recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.service.episode_source import open_episode_source
from tests.support.crowd import TOKEN, Crowd, TreeMemory, cpu_seconds, play_crowd
from tests.support.delayed_search import delayed_server

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "recipes/miniature/corpus.jsonl"
TOKENIZER = ROOT / "recipes/miniature/tokenizer"
RECIPE = ROOT / "recipes/quickstart.yaml"
LIMIT_GIB = 8.0
WORKER_MEMORY_GIB = 4.0
DELAY = 0.3  # seconds
GIB = 1 << 30

Settings = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Of one kind. `at_once`: episodes that were under way together."""

    kind: str
    episodes: int
    errors: int
    right: int
    at_once: int
    turns: float
    tokens: float
    processes: int
    peak_gib: float
    cpu_seconds: float

    @property
    def well(self) -> bool:
        return not self.errors and self.right == self.episodes and self.peak_gib < LIMIT_GIB


@dataclass(frozen=True)
class Data:
    """What the published kinds ask and search."""

    questions: Path
    index: Path

    @property
    def settings(self) -> Settings:
        return {"questions": {"train": [{"dataset": "jsonl", "path": str(self.questions)}]}}


def write_data(folder: Path, documents: int, episodes: int) -> Data:
    """Questions of the miniature as published ones, and an index of its pages or of synthetic ones."""
    corpus = folder / "pages.jsonl"
    if documents:
        write_corpus(corpus, documents, words=100, vocabulary=500_000, seed=0)
    else:
        pages = [{"contents": f"{page.title}\n{page.text}"} for page in load_corpus(CORPUS).documents]
        corpus.write_text("".join(json.dumps(page) + "\n" for page in pages), encoding="utf-8")
    data = Data(folder / "questions.jsonl", folder / "index")
    build_index(corpus, data.index, progress=lambda line: print(line, file=sys.stderr))
    corpus.unlink()
    asked = make_task_source("deep_search", corpus=CORPUS).sample("train", episodes, seed=0)
    lines = []
    for task in asked:
        question = {"id": task.id, "question": task.payload["question"], "answers": task.payload["answers"]}
        lines.append(json.dumps(question) + "\n")
    data.questions.write_text("".join(lines), encoding="utf-8")
    return data


@contextmanager
def as_they_are(settings: Settings) -> Iterator[Settings]:
    """Nothing beside this process."""
    yield settings


@contextmanager
def with_service(settings: Settings) -> Iterator[Settings]:
    """The service that the environment names, started as a job starts it."""
    (service,) = DeepSearch.services(DeepSearch.Settings.model_validate(settings))
    port = _free_port()
    command = [sys.executable, *service.arguments, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield settings | {service.setting: url}
    finally:
        process.terminate()
        process.wait()


@contextmanager
def with_slow_server(settings: Settings) -> Iterator[Settings]:
    """A server of the /retrieve protocol that thinks before each answer."""
    with delayed_server(Path(settings["index"]), TOKEN, DELAY) as url:
        asked = {key: value for key, value in settings.items() if key != "index"}
        yield asked | {"search_url": url}


Kind = tuple[str, Callable[[Data], Settings], Callable[[Settings], AbstractContextManager[Settings]]]


def of_facts(_: Data) -> Settings:
    return {"corpus": str(CORPUS)}


def of_files(data: Data) -> Settings:
    return data.settings | {"index": str(data.index)}


KINDS: dict[str, Kind] = {
    "facts": ("deep_search", of_facts, as_they_are),
    "facts-service": ("deep_search", of_facts, with_service),
    "index": ("deep_search", of_files, as_they_are),
    "retrieve-server": ("deep_search", of_files, with_service),
    "slow-server": ("deep_search", of_files, with_slow_server),
    "workers": ("tests.support.isolated_search:IsolatedSearch", of_facts, as_they_are),
}
"""The environment's name, its settings, and what runs beside."""


def measure(kind: str, data: Data, arguments: argparse.Namespace) -> Figures:
    """Play one kind in this process."""
    name, settings_of, beside = KINDS[kind]
    os.environ[TOKEN_VARIABLE] = TOKEN
    with TreeMemory() as memory, beside(settings_of(data)) as settings:
        crowd, spent = asyncio.run(_play(name, settings, arguments))
    for error in dict.fromkeys(crowd.errors):
        print(f"{kind}: {error}", file=sys.stderr)
    count = len(crowd.episodes)
    return Figures(
        kind=kind,
        episodes=count,
        errors=len(crowd.errors),
        right=sum(episode.outcome == "success" for episode in crowd.episodes),
        at_once=crowd.most,
        turns=sum(len(episode.turns) for episode in crowd.episodes) / count,
        tokens=sum(len(episode.tokens) for episode in crowd.episodes) / count,
        processes=memory.processes,
        peak_gib=memory.peak / GIB,
        cpu_seconds=spent,
    )


async def _play(name: str, settings: Settings, arguments: argparse.Namespace) -> tuple[Crowd, float]:
    """The episodes, and CPU seconds from their first to their last."""
    overrides = [
        f"environment.name={name}",
        f"environment.settings={json.dumps(settings)}",
        f"environment.max_turns={2 * arguments.rounds + 1}",
        f"limits.environment_memory={WORKER_MEMORY_GIB}",
    ]
    chat = ChatTokens.from_pretrained(TOKENIZER)
    async with open_episode_source(load_recipe(RECIPE, overrides).service_config()) as source:
        tasks = source.tasks.sample("train", arguments.episodes, seed=0)
        turns_of = partial(_turns, rounds=arguments.rounds, thought=arguments.thought)
        turns = [turns_of(source.tasks.rehearse(task), task) for task in tasks]
        before = cpu_seconds()
        crowd = await play_crowd(source, chat, tasks, turns)
        return crowd, cpu_seconds() - before


def _turns(rehearsal: Sequence[str], task: Task, rounds: int, thought: int) -> list[str]:
    """The rehearsal's search and visit over and over, with longer thoughts, and its answer."""
    *look_ups, answer = rehearsal
    words = (task.payload["question"].replace("?", "").split() * thought)[:thought]
    longer = [turn.replace("a rehearsal", " ".join(words)) for turn in look_ups]
    return [*longer * rounds, answer]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health", headers=headers, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"the service at {url} ended with status {process.returncode}")


def show(figures: Sequence[Figures]) -> None:
    """A row for each kind."""
    table = Table("kind", "right", "errors", "at once", "turns", "tokens", "processes")
    for title in ("peak GiB", f"of {LIMIT_GIB:g} GiB", "CPU s", "episodes per CPU s"):
        table.add_column(title, justify="right")
    for one in figures:
        table.add_row(
            one.kind,
            f"{one.right}/{one.episodes}",
            str(one.errors),
            str(one.at_once),
            f"{one.turns:.0f}",
            f"{one.tokens:.0f}",
            str(one.processes),
            f"{one.peak_gib:.2f}",
            f"{one.peak_gib / LIMIT_GIB:.1%}",
            f"{one.cpu_seconds:.1f}",
            f"{one.episodes / one.cpu_seconds:.0f}",
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1, help="searches and visits before the answer")
    parser.add_argument("--thought", type=int, default=2, help="words of the thought of each of these turns")
    parser.add_argument("--documents", type=int, default=0, help="synthetic ones in the index; 0: the miniature's")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        data = Data(arguments.data / "questions.jsonl", arguments.data / "index")
        print(json.dumps(asdict(measure(arguments.one, data, arguments))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_data(Path(temporary), arguments.documents, arguments.episodes)
        figures = []
        for kind in arguments.kinds.split(","):
            command = [
                sys.executable,
                "-m",
                "bench.environments",
                *sys.argv[1:],
                "--one",
                kind,
                "--data",
                temporary,
            ]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            figures.append(Figures(**json.loads(done.stdout)))
    show(figures)
    if not all(one.well for one in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
