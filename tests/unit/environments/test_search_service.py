"""The Deep Search tools over HTTP: the same observations as in the process, the token wanted by every route."""

import socket
import threading
import time

import httpx
import pytest
import uvicorn
from acting import begun, step

from megatron_empg.environments.deep_search.actions import Call, format_action
from megatron_empg.environments.deep_search.search_service import (
    REFUSALS,
    TOKEN_VARIABLE,
    LocalTools,
    QueryRefused,
    RemoteTools,
    SearchServiceError,
    application,
)
from megatron_empg.environments.registry import make_task_source

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
    remote = make_task_source("deep_search", corpus=miniature / "corpus.jsonl", search_url=url, prompt="none")
    task = source.fixed("train", 1)[0]
    calls = [
        Call("search", task.payload["entity"]),
        Call("search", "xyzzy"),
        Call("visit", source.corpus.documents[7].title),
        Call("visit", "no such page"),
    ]
    here, there = begun(source.make(task)), begun(remote.make(task))
    for call in calls:
        assert step(here, format_action("so", call)) == step(there, format_action("so", call))
    assert step(there, format_action("so", Call("answer", task.payload["answer"]))).reward == 1.0


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


class Answering(httpx.BaseTransport):
    """A service that answers every request with one status."""

    def __init__(self, status):
        self.status, self.asked = status, 0

    def handle_request(self, request):
        self.asked += 1
        return httpx.Response(self.status, json={"observation": "found"})


@pytest.mark.parametrize("status", REFUSALS)
def test_what_the_query_itself_broke_is_told_the_policy_at_once(status):
    tools = RemoteTools("http://service")
    service = Answering(status)
    tools._client = httpx.Client(transport=service)
    with pytest.raises(QueryRefused, match="the visit was refused"):
        tools.visit("x" * 100_000)
    assert service.asked == 1


@pytest.mark.parametrize("status", [401, 404, 408, 429, 500, 502, 503])
def test_what_is_no_fault_of_the_query_is_tried_again_and_then_an_error(status):
    tools = RemoteTools("http://service", within=0.2)
    service = Answering(status)
    tools._client = httpx.Client(transport=service)
    with pytest.raises(SearchServiceError, match=f"failed 3 times.*{status}"):
        tools.search("x")
    assert service.asked == 3


@pytest.mark.parametrize("within", [0.5, 10.0, 400.0])
def test_all_attempts_lie_within_the_limit_of_a_step(within):
    tools = RemoteTools("http://service", within=within)
    assert 3 * tools._timeout + (1 + 2) * tools._pause <= within
    assert tools._timeout <= 60
