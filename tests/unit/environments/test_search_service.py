"""The Deep Search tools over HTTP: the same observations as in the process, the token wanted by every route."""

import socket
import threading
import time

import httpx
import pytest
import uvicorn

from megatron_empg.environments.deep_search.actions import Call, format_action
from megatron_empg.environments.deep_search.search_service import (
    TOKEN_VARIABLE,
    LocalTools,
    RemoteTools,
    SearchServiceError,
    application,
)
from megatron_empg.environments.deep_search.source import DeepSearchTaskSource

TOKEN = "token-for-the-search-tests"


@pytest.fixture(scope="module")
def url(source):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = application(LocalTools(source.corpus, source.retriever), TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_a_remote_episode_reads_what_a_local_one_reads(url, source, miniature, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    remote = DeepSearchTaskSource(miniature / "corpus.jsonl", search_url=url, prompt="none")
    task = source.fixed("train", 1)[0]
    calls = [
        Call("search", task.payload["entity"]),
        Call("search", "xyzzy"),
        Call("visit", source.corpus.documents[7].title),
        Call("visit", "no such page"),
    ]
    here, there = source.make(task), remote.make(task)
    for call in calls:
        assert here.step(format_action("so", call)) == there.step(format_action("so", call))
    assert there.step(format_action("so", Call("answer", task.payload["answer"]))).reward == 1.0


def test_every_route_wants_the_token(url, source):
    app = application(LocalTools(source.corpus, source.retriever), TOKEN)
    paths = {route.path: next(iter(route.methods - {"HEAD"})) for route in app.routes}
    assert set(paths) == {"/health", "/search", "/visit"}
    for path, method in paths.items():
        for headers in ({}, {"Authorization": "Bearer wrong-token-entirely"}):
            answer = httpx.request(method, url + path, headers=headers, json={"argument": "france"})
            assert answer.status_code == 401, path


def test_failures_name_the_service(url, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "not-the-token-of-the-run")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SearchServiceError, match=f"{url}/search failed 3 times.*401"):
        RemoteTools(url).search("france")
    with pytest.raises(ValueError, match="starts with http"):
        RemoteTools("node7:9000")
