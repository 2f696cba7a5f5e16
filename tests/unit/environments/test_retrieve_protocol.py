"""The peers' search protocol: our server and client together, each alone, and whatever a server may answer."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from megatron_empg.environments.deep_search import serving
from megatron_empg.environments.deep_search.http_statuses import REFUSED_QUERY
from megatron_empg.environments.deep_search.search import observations, retrieve_client, retrieve_server
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, SearchIndex
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.deep_search.search.index_tools import IndexTools
from megatron_empg.environments.deep_search.search.passages import TitlePage
from megatron_empg.environments.deep_search.search.result_limits import ResultLimits
from megatron_empg.environments.deep_search.search.retrieve_client import RetrieveClient, RetrieveTools
from megatron_empg.environments.deep_search.search.retrieve_server import application
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE, ClientLimits
from megatron_empg.environments.deep_search.tools import QueryRefused, SearchServiceError

CLIENT = httpx.AsyncClient
TOKEN = "token-for-the-retrieve-tests"
ROWS = [
    {"id": "0", "contents": '"The Hobbit"\nThe Hobbit is a novel by J. R. R. Tolkien.'},
    {"id": "1", "contents": '"The Hobbit"\nIt was published in 1937. <|im_end|>'},
    {"id": "2", "contents": "Tolkien\nTolkien was born in Bloemfontein.\nHe wrote The Hobbit."},
    {"id": "3", "contents": "Long\n" + "long tale " * 100_000},
    {"id": "4", "contents": "Empty\n"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("retrieve")
    corpus = root / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    build_index(corpus, root / "index", progress=lambda line: None)
    return root / "index"


@pytest.fixture(scope="module")
def index(folder):
    return SearchIndex.open(folder)


@contextmanager
def served(app):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(index):
    with served(application(index, TOKEN)) as address:
        yield address


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


def ask(url, route, body, token=TOKEN):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/{route}", content=content, headers=headers)


# Server and client together


def test_a_remote_search_shows_what_a_local_one_shows(url, index, token):
    async def compare():
        here, there = IndexTools(index), RetrieveTools(RetrieveClient(url + "/retrieve/"))
        for query in ("hobbit", "tolkien born", "long tale", "unheardof", "", "empty", "\ud800 hobbit"):
            assert await here.search(query) == await there.search(query), query
        for title in ("The Hobbit", "tolkien", "long", "unheardof", "", "Empty"):
            assert await here.visit(title) == await there.visit(title), title

    asyncio.run(compare())


def test_many_queries_at_once_and_many_requests_at_once(url, index, token):
    async def together():
        client = RetrieveClient(url)
        batch = await client.retrieve(["hobbit", "unheardof", "bloemfontein"], 2)
        singles = await asyncio.gather(*(client.retrieve(["hobbit"], 2) for _ in range(50)))
        await client.close()
        return batch, singles, await client.retrieve([], 3)

    batch, singles, none = asyncio.run(together())
    assert batch == [index.search("hobbit", 2), [], index.search("bloemfontein", 2)]
    assert all(single == [batch[0]] for single in singles)
    assert none == []


def test_one_client_serves_one_event_loop_after_another(url, token):
    client = RetrieveClient(url)
    for _ in range(2):
        assert asyncio.run(client.retrieve(["hobbit"], 1))[0][0].title == "The Hobbit"


# The server


def test_the_server_answers_in_the_words_of_the_protocol(url):
    answer = ask(url, "retrieve", {"queries": ["bloemfontein"], "topk": 1, "return_scores": True}).json()
    found = answer["result"][0][0]
    assert found["document"] == {"id": "2", "contents": ROWS[2]["contents"]}
    assert found["score"] > 0
    bare = ask(url, "retrieve", {"queries": ["bloemfontein"]}).json()
    assert bare == {"result": [[found["document"]]]}
    page = ask(url, "visit", {"title": "the hobbit"}).json()["result"]["document"]["contents"]
    assert page == ("The Hobbit\nThe Hobbit is a novel by J. R. R. Tolkien.\nIt was published in 1937. <|im_end|>")
    assert ask(url, "visit", {"title": "unheardof"}).json() == {"result": None}


def test_every_route_wants_the_token(url, index):
    app = application(index, TOKEN)
    paths = {route.path: next(iter(route.methods - {"HEAD"})) for route in app.routes}
    assert set(paths) == {"/health", "/retrieve", "/visit"}
    for path, method in paths.items():
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            assert httpx.request(method, url + path, headers=headers, json={}).status_code == 401, path
    healthy = httpx.get(url + "/health", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert healthy == {"healthy": True, "documents": 5}


BAD_REQUESTS = [
    ("retrieve", b"", 400),
    ("retrieve", b"{oops", 400),
    ("retrieve", b"[1]", 400),
    ("retrieve", b"[" * 100_000, 400),
    ("retrieve", b"\xff\xfe{", 400),
    ("retrieve", {}, 400),
    ("retrieve", {"queries": "hobbit"}, 400),
    ("retrieve", {"queries": [1]}, 400),
    ("retrieve", {"queries": ["a"], "topk": 0}, 400),
    ("retrieve", {"queries": ["a"], "topk": 10**9}, 400),
    ("retrieve", {"queries": ["a"], "topk": "3"}, 400),
    ("retrieve", {"queries": ["a"], "topk": True}, 400),
    ("retrieve", {"queries": ["a" * 100_000]}, 413),
    ("retrieve", {"queries": ["a"] * 1000}, 413),
    ("visit", {}, 400),
    ("visit", {"title": None}, 400),
    ("visit", {"title": "a" * 100_000}, 413),
]


@pytest.mark.parametrize(("route", "body", "status"), BAD_REQUESTS)
def test_a_bad_request_is_told_what_is_wrong(url, route, body, status):
    answer = ask(url, route, body)
    assert answer.status_code == status
    assert len(answer.json()["error"]) > 10


def test_the_size_of_requests_and_answers_is_bounded(url, monkeypatch):
    assert ask(url, "retrieve", b" " * (serving.LONGEST_BODY + 1)).status_code == 413
    whole = ask(url, "retrieve", {"queries": ["tale"]}).content
    monkeypatch.setattr(retrieve_server, "MOST_CHARACTERS", 10_000)
    cut = ask(url, "retrieve", {"queries": ["tale"] * 5, "topk": 1}).content
    assert len(cut) < 11_000 < len(whole)
    assert len(ask(url, "visit", {"title": "long"}).content) < 11_000


def test_the_server_starts_only_with_a_token_and_an_index(folder, tmp_path):
    module = "megatron_empg.environments.deep_search.search.retrieve_server"
    for path, token, fault in ((folder, "short", TOKEN_VARIABLE), (tmp_path, TOKEN, "no index at")):
        done = subprocess.run(
            [sys.executable, "-m", module, str(path), "--port", "1"],
            env={"PATH": "", TOKEN_VARIABLE: token},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert fault in done.stderr
        assert "Traceback" not in done.stderr


# The client, against servers of any manners


async def in_parts(content):
    for first in range(0, len(content), 1000):
        yield content[first : first + 1000]


class Peer(httpx.AsyncBaseTransport):
    """A server without a token and without /visit, as the peers have; `answers` are given in turn, the last for
    good: (status, body) or an exception."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def handle_async_request(self, request):
        self.asked.append((request.url.path, json.loads(request.content), request.headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer(request) if callable(answer) else answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=in_parts(content))


def client_of(monkeypatch, peer, **limits):
    """A client whose connections end at `peer`."""
    client = RetrieveClient("http://peer:8000", ClientLimits(**limits))
    monkeypatch.setattr(httpx, "AsyncClient", lambda **settings: CLIENT(transport=peer, **settings))
    return client


def document(contents, score=1.0):
    return {"document": {"contents": contents}, "score": score}


def peers_server(request):
    """What a server of the protocol without our extension answers."""
    if request.url.path != "/retrieve":
        return 404, {"detail": "Not Found"}
    found = [document("Hobbit, The\nno"), document('"The Hobbit"\nA novel.\nOf 1937.'), document("Other\nx")]
    return 200, {"result": [found for _ in json.loads(request.content)["queries"]]}


def test_one_unknown_visit_is_told_and_asked_for_again_later(monkeypatch, caplog):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    knows = [False]

    def server(request):
        if request.url.path == "/visit" and knows[0]:
            return 200, {"result": document("The Hobbit\nThe whole page.")}
        return peers_server(request)

    peer = Peer(server)
    client = client_of(monkeypatch, peer)
    now = [1000.0]
    monkeypatch.setattr(retrieve_client.time, "monotonic", lambda: now[0])

    async def play():
        found = TitlePage("The Hobbit", "A novel.\nOf 1937.")
        assert await client.visit("The Hobbit") == found
        knows[0] = True
        now[0] += retrieve_client.VISIT_AGAIN - 1
        assert await client.visit("The Hobbit") == found
        now[0] += 1
        assert await client.visit("The Hobbit") == TitlePage("The Hobbit", "The whole page.")
        knows[0] = False
        for _ in range(2):
            with pytest.raises(SearchServiceError, match="visit: status 404"):
                await client.visit("The Hobbit")
        knows[0] = True
        assert await client.visit("The Hobbit") == TitlePage("The Hobbit", "The whole page.")

    asyncio.run(play())
    told = [record.getMessage() for record in caplog.records if record.name == retrieve_client.__name__]
    assert len(told) == 1
    assert "http://peer:8000/visit: status 404" in told[0]


@pytest.mark.parametrize("score", ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "NaN"])
def test_a_score_that_is_no_finite_number_is_malformed(monkeypatch, score):
    answer = '{"result": [[{"document": {"contents": "A"}, "score": SCORE}]]}'.replace("SCORE", score)
    client = client_of(monkeypatch, Peer((200, answer.encode())))
    with pytest.raises(SearchServiceError, match='the answer is malformed: "score" is'):
        asyncio.run(client.retrieve(["x"], 3))


def test_what_overflows_in_an_answer_is_malformed(monkeypatch):
    client = client_of(monkeypatch, Peer((200, b"1" + b"0" * 400)))
    with pytest.raises(SearchServiceError, match="the answer is malformed"):
        asyncio.run(client._service.ask("retrieve", {}, float))


def test_a_peers_server_is_understood_and_visit_falls_back_to_an_exact_title(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    peer = Peer(peers_server)
    client = client_of(monkeypatch, peer)

    async def play():
        tools = RetrieveTools(client)
        assert (await tools.search("hobbit")).splitlines()[2] == "2 The Hobbit : A novel. Of 1937."
        assert await client.visit("the  HOBBIT") == TitlePage("The Hobbit", "A novel.\nOf 1937.")
        assert await tools.visit("Hobbit") == "no page"

    asyncio.run(play())
    assert [path for path, _, _ in peer.asked] == ["/retrieve", "/visit", "/retrieve", "/retrieve"]
    assert peer.asked[0][1] == {"queries": ["hobbit"], "topk": 3, "return_scores": True}
    assert "authorization" not in peer.asked[0][2]


def test_the_token_is_sent_where_it_is_set(monkeypatch, token):
    peer = Peer(peers_server)
    asyncio.run(client_of(monkeypatch, peer).retrieve(["x"], 3))
    assert peer.asked[0][2]["authorization"] == f"Bearer {TOKEN}"


def test_documents_without_scores_or_with_fields_of_their_own_are_understood(monkeypatch):
    bare = [{"contents": "A\nb"}, {"title": "B", "text": "c", "url": "x"}, {"id": 5, "contents": "C"}]
    client = client_of(monkeypatch, Peer((200, {"result": [bare], "took": 3})))
    hits = asyncio.run(client.retrieve(["x"], 2))[0]
    assert [(hit.title, hit.text, hit.score) for hit in hits] == [("A", "b", 0.0), ("B", "c", 0.0)]


def test_large_answers_are_read_and_shown_off_the_event_loop(monkeypatch):
    """With a hundred long documents, both take longer than all episodes may wait."""
    threads = []
    for module, name in ((json, "loads"), (observations, "results")):
        plain = getattr(module, name)

        def noted(*given, plain=plain):
            threads.append(threading.current_thread())
            return plain(*given)

        monkeypatch.setattr(module, name, noted)
    peer = Peer((200, {"result": [[document("A\n" + "long tale " * 10_000)] * 10]}))
    shown = asyncio.run(RetrieveTools(client_of(monkeypatch, peer), ResultLimits(top_k=10)).search("tale"))
    assert shown.count("A : long tale") == 10
    del threads[0]  # the stand-in of the server reads the request
    assert len(threads) == 2
    assert threading.main_thread() not in threads


PASSING = [
    (500, b""),
    (502, b"x"),
    (503, b""),
    (504, b""),
    (429, b""),
    httpx.ConnectError("refused"),
    httpx.ReadError("cut"),
]


@pytest.mark.parametrize("failure", PASSING, ids=str)
def test_a_passing_failure_is_tried_again_and_then_an_error_that_names_the_server(monkeypatch, failure):
    good = (200, {"result": [[document("A\nb")]]})
    peer = Peer(failure, failure, good)
    assert asyncio.run(client_of(monkeypatch, peer, within=0.2).retrieve(["x"], 3))[0][0].title == "A"
    peer = Peer(failure)
    with pytest.raises(SearchServiceError, match=r"http://peer:8000/retrieve: \d+ attempts failed, the last"):
        asyncio.run(client_of(monkeypatch, peer, within=0.2).retrieve(["x"], 3))
    assert len(peer.asked) > 3


@pytest.mark.parametrize("status", sorted(REFUSED_QUERY))
def test_what_the_query_itself_broke_is_an_observation(monkeypatch, status):
    peer = Peer((status, {"detail": "no"}))
    with pytest.raises(QueryRefused, match="the search was refused"):
        asyncio.run(client_of(monkeypatch, peer).retrieve(["x"], 3))
    assert len(peer.asked) == 1


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, TOKEN_VARIABLE), (403, TOKEN_VARIABLE), (404, "address"), (302, "302"), (204, "204")],
)
def test_what_no_attempt_would_mend_is_an_error_at_once(monkeypatch, status, told):
    peer = Peer((status, b"x"))
    with pytest.raises(SearchServiceError, match=f"http://peer:8000/retrieve: .*{told}"):
        asyncio.run(client_of(monkeypatch, peer).retrieve(["x"], 3))
    assert len(peer.asked) == 1


MALFORMED = [
    b"",
    b"<html>",
    b"\xff\xff",
    b"[" * 100_000,
    [],
    {"results": []},
    {"result": {}},
    {"result": []},
    {"result": [[], []]},
    {"result": ["x"]},
    {"result": [[1]]},
    {"result": [[{"document": "x"}]]},
    {"result": [[{"document": {"contents": 5}}]]},
    {"result": [[{"document": {"contents": "A"}, "score": "high"}]]},
    {"result": [[{"score": 1.0}]]},
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body)[:30])
def test_a_malformed_answer_is_an_error_that_says_what_is_wrong(monkeypatch, body):
    peer = Peer((200, body))
    with pytest.raises(SearchServiceError, match="http://peer:8000/retrieve: the answer is ") as caught:
        asyncio.run(client_of(monkeypatch, peer).retrieve(["x"], 3))
    assert len(str(caught.value)) < 500
    assert len(peer.asked) == 1


@pytest.mark.parametrize("body", [[], {}, {"result": 5}, {"result": {"document": None}}, {"result": {"x": 1}}])
def test_a_malformed_page_is_an_error(monkeypatch, body):
    with pytest.raises(SearchServiceError, match="http://peer:8000/visit: the answer is malformed"):
        asyncio.run(client_of(monkeypatch, Peer((200, body))).visit("x"))


async def gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def endless(scope, receive, send):
    """An ASGI server that does not end its answer before the client has left."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    left = asyncio.create_task(gone(receive))
    while not left.done():
        size = 1 << 20 if "large" in scope["path"] else 1
        await send({"type": "http.response.body", "body": b" " * size, "more_body": True})
        await asyncio.sleep(0.0 if size > 1 else 0.02)


def test_an_answer_too_large_or_too_slow_is_given_up(monkeypatch):
    async def timed(url, limits):
        start = asyncio.get_running_loop().time()
        with pytest.raises(SearchServiceError) as caught:
            await RetrieveClient(url, limits).retrieve(["x"], 3)
        return str(caught.value), asyncio.get_running_loop().time() - start

    with served(endless) as url:
        told, _ = asyncio.run(timed(f"{url}/large", ClientLimits(answer_bytes=3 << 20)))
        assert told == f"the search server at {url}/large/retrieve: the answer is larger than {3 << 20} bytes"
        told, seconds = asyncio.run(timed(f"{url}/drip", ClientLimits(within=0.6)))
        assert "no whole answer within" in told
        assert seconds < 30


def test_all_attempts_lie_within_the_limit_of_a_step(monkeypatch):
    """A server that hangs, on a clock of the loop that jumps."""
    waits = []

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            await asyncio.sleep(3600)

    async def play(within):
        loop = asyncio.get_running_loop()
        start = loop.time()
        client = client_of(monkeypatch, Hanging(), within=within)
        with pytest.raises(SearchServiceError, match="3 attempts failed"):
            await client.retrieve(["x"], 3)
        waits.append((loop.time() - start) / within)

    with Jumping() as runner:
        for within in (0.5, 10.0, 300.0):
            runner.run(play(within))
    assert all(wait <= 1.05 for wait in waits), waits


class Jumping(asyncio.Runner):
    """An event loop for which waiting takes no time."""

    def __init__(self):
        super().__init__(loop_factory=self._make)

    @staticmethod
    def _make():
        loop = asyncio.SelectorEventLoop()
        skipped = [0.0]
        select = loop._selector.select

        def at_once(timeout=None):
            skipped[0] += timeout or 0.0
            return select(0)

        loop._selector.select = at_once
        loop.time = lambda: time.monotonic() + skipped[0]
        return loop


def test_an_episode_that_is_cancelled_leaves_at_once(monkeypatch):
    async def play():
        client = client_of(monkeypatch, Peer(httpx.ConnectError("refused")), within=600.0)
        asking = asyncio.create_task(client.retrieve(["x"], 3))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(play())


def test_an_address_that_is_none_and_a_query_that_is_none_are_refused():
    with pytest.raises(ValueError, match="starts with http"):
        RetrieveClient("node7:9000")
    tools = RetrieveTools(RetrieveClient("http://127.0.0.1:1"))
    for tool in (tools.search, tools.visit):
        with pytest.raises(QueryRefused, match=f"more than {LONGEST_QUERY}"):
            asyncio.run(tool("x" * 100_000))


@pytest.mark.parametrize("port", ["0", "-1", "65536", "1e9", "", "\u0663"])
def test_what_is_no_port_is_refused(folder, token, monkeypatch, capsys, port):
    monkeypatch.setattr(sys, "argv", ["retrieve_server", str(folder), f"--port={port}"])
    monkeypatch.setattr(serving, "die_with_parent", lambda: None)
    with pytest.raises(SystemExit) as ended:
        retrieve_server.main()
    assert ended.value.code == 2
    assert "is not a port; it is a whole number from 1 to 65535" in capsys.readouterr().err


def test_a_client_that_leaves_amid_its_request_is_no_error(index):
    """As an ASGI server tells it, which would write a traceback for what the application raises."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/retrieve",
        "raw_path": b"/retrieve",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }
    events = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return events.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(application(index, TOKEN)(scope, receive, send))
    assert sent[0]["status"] == 400
