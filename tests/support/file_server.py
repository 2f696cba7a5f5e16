"""A server of files for tests, on loopback, that misbehaves when told to; it speaks the hub's interface too."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FileServer:
    """`files` by path. What is to go wrong is set by path too, and goes wrong as often as it is said there."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """Bytes of each answer, in turn, after which the connection is cut."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    slow: float = 0.0
    """Seconds to wait after each kilobyte."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Of the hub, by kind and name ("models/Qwen/X"); files over 100 bytes count as large."""
    said_of: dict[str, str] = field(default_factory=dict)
    """Checksums that the hub is to tell instead of true ones, by file."""

    def asked(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a path, in order."""
        return [headers for asked, headers in self.requests if asked == path]

    def put(self, kind: str, repository: str, files: dict[str, bytes]) -> None:
        """A repository of the hub."""
        self.repositories[f"{kind}s/{repository}"] = files
        before = "datasets/" if kind == "dataset" else ""
        for name, content in files.items():
            self.files[f"/{before}{repository}/resolve/{COMMIT}/{name}"] = content

    def hub_answer(self, path: str) -> object | None:
        """What the hub's interface says at a path; None where it has nothing."""
        _, _, rest = path.partition("/api/")
        for repository, files in self.repositories.items():
            if rest.startswith(f"{repository}/revision/"):
                return {"sha": COMMIT}
            if rest == f"{repository}/tree/{COMMIT}":
                return [self._entry(name, content) for name, content in files.items()]
        return None

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git}
        if len(content) > 100:
            sha256 = self.said_of.get(name, hashlib.sha256(content).hexdigest())
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        state = self.server.state
        path = unquote(urlsplit(self.path).path)
        state.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        told = state.statuses.get(path, [])
        if told:
            self._answer(told.pop(0), b"no")
        elif path in state.redirects:
            self._answer(302, b"", Location=state.redirects[path])
        elif (found := state.hub_answer(path)) is not None:
            self._answer(200, json.dumps(found).encode())
        elif path in state.files:
            self._file(path, state.files[path])
        else:
            self._answer(404, b"no such file")

    def _file(self, path: str, content: bytes) -> None:
        state = self.server.state
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag}
        if path in state.types:
            headers["Content-Type"] = state.types[path]
        start = 0
        wanted = self.headers.get("Range", "")
        current = self.headers.get("If-Range", tag) == tag
        if wanted and state.ranges and current:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self._answer(416, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if start else 200, content[start:], path, **headers)

    def _answer(self, status: int, body: bytes, path: str = "", **headers: str) -> None:
        state = self.server.state
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = state.cut_after.get(path, [])
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
            return
        pause = threading.Event()
        for start in range(0, len(body), 1024):
            self.wfile.write(body[start : start + 1024])
            if state.slow and path:
                pause.wait(state.slow)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: FileServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed breaks its connection."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    """A running one."""
    state = FileServer()
    server = _Server(state)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
