"""The Deep Search tools over HTTP: the same observations as in the process, the token wanted by every route."""

import asyncio
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from megatron_empg.environments.deep_search import serving
from megatron_empg.environments.deep_search.actions import SearchToolCall, format_action
from megatron_empg.environments.deep_search.http_statuses import REFUSED_QUERY
from megatron_empg.environments.deep_search.search_service import LocalTools, RemoteTools, application
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.environments.deep_search.tools import QueryRefused, SearchServiceError
from megatron_empg.environments.registry import make_task_source
from tests.support.acting import begun, step

CLIENT = httpx.AsyncClient
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
        SearchToolCall("search", task.payload["entity"]),
        SearchToolCall("search", "xyzzy"),
        SearchToolCall("search", "half a pair \ud800"),
        SearchToolCall("visit", source.corpus.documents[7].title),
        SearchToolCall("visit", "no such page"),
    ]
    here, there = begun(source.make(task)), begun(remote.make(task))
    for call in calls:
        assert step(here, format_action("so", call)) == step(there, format_action("so", call))
    assert step(there, format_action("so", SearchToolCall("answer", task.payload["answer"]))).reward == 1.0


def test_every_route_wants_the_token(url, source):
    app = application(LocalTools(source.corpus, source.retriever), TOKEN)
    paths = {route.path: next(iter(route.methods - {"HEAD"})) for route in app.routes}
    assert set(paths) == {"/health", "/search", "/visit"}
    right = ("Authorization", f"Bearer {TOKEN}")
    for path, method in paths.items():
        for headers in ([], [("Authorization", "Bearer wrong-token-entirely")], [right, right]):
            answer = httpx.request(method, url + path, headers=headers, json={"argument": "france"})
            assert answer.status_code == 401, path
    assert httpx.get(url + "/health", headers=[right]).json() == {"healthy": True}


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}", b'{"argument": 1}', b"[" * 100_000, b'{"argument": "x"'])
def test_a_request_that_is_none_is_told_what_is_wrong(url, body):
    answer = httpx.post(url + "/search", headers={"Authorization": f"Bearer {TOKEN}"}, content=body)
    assert answer.status_code == 400
    assert "the body is" in answer.json()["error"]


def test_a_request_without_end_is_not_read(url, monkeypatch):
    monkeypatch.setattr(serving, "LONGEST_BODY", 1000)
    asked = {"argument": "x" * 1000}
    answer = httpx.post(url + "/search", headers={"Authorization": f"Bearer {TOKEN}"}, json=asked)
    assert answer.status_code == 413


def test_a_look_up_that_takes_long_holds_up_no_other(source):
    """Each look-up waits for the other, as no two on one event loop could."""
    together = threading.Barrier(2, timeout=30)

    class Meeting:
        def search(self, query):
            together.wait()
            return f"met {query}"

        visit = search

    async def play():
        transport = httpx.ASGITransport(application(Meeting(), TOKEN))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as client:
            asked = [client.post("/search", json={"argument": name}) for name in "ab"]
            return [answer.json()["observation"] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(play()) == ["met a", "met b"]


def test_what_tools_refuse_reaches_the_policy_and_not_the_log(monkeypatch):
    class Refusing:
        def search(self, query):
            raise QueryRefused("too long")

        visit = search

    transport = httpx.ASGITransport(application(Refusing(), TOKEN))
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(httpx, "AsyncClient", lambda **settings: CLIENT(transport=transport, **settings))
    with pytest.raises(QueryRefused, match="the search was refused"):
        asyncio.run(RemoteTools("http://service").search("x"))


def test_failures_name_the_service(url, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "not-the-token-of-the-run")
    with pytest.raises(SearchServiceError, match=f"{url}/search: status 401: {TOKEN_VARIABLE} must hold"):
        asyncio.run(RemoteTools(url).search("france"))
    with pytest.raises(ValueError, match="starts with http"):
        RemoteTools("node7:9000")


class Answering(httpx.AsyncBaseTransport):
    """A service that answers every request with one status and one body."""

    def __init__(self, status, body=b'{"observation": "found"}'):
        self.status, self.body, self.asked, self.closed = status, body, 0, 0

    async def handle_async_request(self, request):
        self.asked += 1
        return httpx.Response(self.status, content=self._parts())

    async def _parts(self):
        yield self.body

    async def aclose(self):
        self.closed += 1


def asked_of(monkeypatch, service):
    """Tools whose requests end at `service`."""
    monkeypatch.setattr(httpx, "AsyncClient", lambda **settings: CLIENT(transport=service, **settings))
    return RemoteTools("http://service", within=0.2)


@pytest.mark.parametrize("status", sorted(REFUSED_QUERY))
def test_what_the_query_itself_broke_is_told_the_policy_at_once(status, monkeypatch):
    service = Answering(status)
    with pytest.raises(QueryRefused, match="the visit was refused"):
        asyncio.run(asked_of(monkeypatch, service).visit("x" * 100_000))
    assert service.asked == 1


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520])
def test_what_is_no_fault_of_the_query_is_tried_again_and_then_an_error(status, monkeypatch):
    service = Answering(status)
    with pytest.raises(SearchServiceError, match=rf"\d+ attempts failed.*{status}"):
        asyncio.run(asked_of(monkeypatch, service).search("x"))
    assert service.asked > 3


def test_an_attempt_that_takes_all_the_time_is_said_to_be_the_only_one(monkeypatch):
    class Slow(Answering):
        async def handle_async_request(self, request):
            time.sleep(0.3)
            return await super().handle_async_request(request)

    service = Slow(503)
    with pytest.raises(SearchServiceError, match="the only attempt that there was time for failed: "):
        asyncio.run(asked_of(monkeypatch, service).search("x"))
    assert service.asked == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501, 302])
def test_what_no_attempt_would_mend_is_an_error_at_once(status, monkeypatch):
    service = Answering(status)
    with pytest.raises(SearchServiceError, match=f"http://service/search: status {status}"):
        asyncio.run(asked_of(monkeypatch, service).search("x"))
    assert service.asked == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"observation": 5}', b"[" * 100_000])
def test_an_answer_that_is_none_is_an_error(body, monkeypatch):
    with pytest.raises(SearchServiceError, match="http://service/search: the answer is"):
        asyncio.run(asked_of(monkeypatch, Answering(200, body)).search("x"))


def test_closing_the_source_closes_the_connections_of_its_search(monkeypatch, miniature):
    service = Answering(200)
    asked_of(monkeypatch, service)
    source = make_task_source("deep_search", corpus=miniature / "corpus.jsonl", search_url="http://service")

    async def play():
        episode = source.make(source.fixed("train", 1)[0])
        await episode.reset()
        shown = await episode.step(format_action("so", SearchToolCall("search", "france")))
        await source.close()
        await source.close()
        return shown.observation

    assert asyncio.run(play()) == "found"
    assert service.closed == 1
