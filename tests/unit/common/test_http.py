"""Whether a server of a run is healthy, asked with the standard library."""

import ast
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megatron_empg.common import http
from megatron_empg.common.http import NotHealthyError, healthy, wait_until_healthy

TOKEN = "a-token-of-a-run-0123456789"


@dataclass
class Server:
    """Answers 200 to GET /health with the token, from the third request on."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    unhealthy: int = 2


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.path)
            right = self.path == "/health" and self.headers["Authorization"] == f"Bearer {TOKEN}"
            ready = len(told.asked) > told.unhealthy
            self.send_response(401 if not right else 200 if ready else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        told.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield told
        listening.shutdown()


def test_a_server_is_healthy_that_answers_200_to_the_token(server: Server) -> None:
    server.unhealthy = 0
    assert healthy(server.url, TOKEN)
    assert not healthy(server.url, "another-token-entirely")
    assert server.asked == ["/health", "/health"]


def test_another_route_can_be_asked(server: Server) -> None:
    server.unhealthy = 0
    assert not healthy(server.url, TOKEN, path="/weight_info"), "this server has none"
    assert server.asked == ["/weight_info"]


def test_nobody_who_listens_is_not_healthy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not healthy(f"http://127.0.0.1:{taken.getsockname()[1]}", TOKEN, seconds=5.0)


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not healthy(f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN, seconds=0.2)


def test_the_wait_goes_on_until_every_server_is_healthy(server: Server) -> None:
    looked = []
    wait_until_healthy([server.url, server.url], TOKEN, timeout=60.0, check=lambda: looked.append(0))
    assert (len(server.asked), len(looked)) == (4, 2)


def test_the_one_that_is_late_is_named(server: Server) -> None:
    server.unhealthy = 10**9
    with pytest.raises(NotHealthyError, match=f"{server.url} was not healthy after 0 s"):
        wait_until_healthy([server.url], TOKEN, timeout=0.25)


def test_a_check_ends_the_wait(server: Server) -> None:
    def check() -> None:
        raise RuntimeError("its process has ended")

    with pytest.raises(RuntimeError, match="has ended"):
        wait_until_healthy([server.url], TOKEN, timeout=60.0, check=check)
    assert len(server.asked) == 1


def test_python_3_9_reads_it() -> None:
    ast.parse(Path(http.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
