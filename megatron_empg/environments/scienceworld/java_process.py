"""A Java process with ScienceWorld's engine in it. It ends with this process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from megatron_empg.environments.scienceworld.errors import EngineRaised, ScienceWorldFailed
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation

R = TypeVar("R")

HEAP_MIB = 384
"""Of a process that plays episodes."""
OPTIONS = (
    "-XX:+UseSerialGC",
    # The engine lists some things in the order of sets of objects, which goes by the hash of their identity. By
    # default that is random: two episodes of a variation then read otherwise.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    # One that ran out of memory is in no known state.
    "-XX:+ExitOnOutOfMemoryError",
    # What a crash says in short is enough; its report would lie in somebody's folder.
    f"-XX:ErrorFile={os.devnull}",
    "-XX:-CreateCoredumpOnCrash",
    "-XX:+IgnoreUnrecognizedVMOptions",
)
START_TIMEOUT = 180.0
OUT_OF_MEMORY = 3
"""Exit status of a process that ExitOnOutOfMemoryError ended."""
_SECONDS_TO_END = 5.0
_SAID_CHARACTERS = 1000


class JavaProcess:
    """Started by the constructor, which waits for it. Raises ScienceWorldFailed where it does not start.

    `timeout`: seconds that one call may take. Only the process that started it can use it: what it listens on asks
    for a token. It ends when its standard input does, and so with this process, even a killed one.
    """

    def __init__(self, needed: JavaInstallation, timeout: float, heap_mib: int = HEAP_MIB) -> None:
        self._timeout = timeout
        self._heap_mib = heap_mib
        # Not pipes: nobody would read them. What the engine itself prints goes nowhere.
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - they live as long as the process
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = _spawn(needed, heap_mib, self._out, self._errors)
        self._gateway: Any = None
        try:
            from megatron_empg.environments.scienceworld.gateway import connected

            port, token = self._announced()
            self._gateway = connected(port, token, timeout)
            self.java = self._gateway.jvm
            self._be_silent()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, method: Callable[..., R], *arguments: object) -> R:
        """What a method of an object in the process returns.

        Raises EngineRaised where it raises, and ScienceWorldFailed where the process ends or takes too long over
        it, for which it is killed.
        """
        from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError

        started = time.monotonic()
        try:
            return method(*arguments)
        except Py4JJavaError as error:
            raise EngineRaised(f"ScienceWorld's engine raised {self._text_of(error)}") from None
        except (Py4JNetworkError, OSError):
            raise self._cause_of_death(time.monotonic() - started) from None
        except Py4JError as error:
            raise ScienceWorldFailed(f"ScienceWorld's engine refused a call: {error!s:.300}") from None

    def lines(self, method: Callable[..., Any], *arguments: object) -> list[str]:
        """What a method returns that returns a list of texts."""
        found = self.call(method, *arguments)
        # Read at once: a list of py4j's costs a call for each of its items.
        text = self.call(self._join, "\n", found)
        self.forget(found)
        if not text:
            return []
        return text.split("\n")

    def forget(self, found: Any) -> None:
        """Let go of an object that a call has returned, which the process keeps until then."""
        self.call(self._gateway.detach, found)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        if self._gateway is not None:
            self._gateway.close(keep_callback_server=True, close_callback_server_connections=False)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _announced(self) -> tuple[int, str]:
        """The port that it listens on, and the token that it asks for, which are its first two lines."""
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until:
            lines = written_so_far(self._out).split("\n")
            if len(lines) > 2 and lines[0].isdigit():
                return int(lines[0]), lines[1]
            if not self.alive():
                raise ScienceWorldFailed(self._explained(f"did not start: it {self._status()}"))
            time.sleep(0.01)
        raise ScienceWorldFailed(self._explained(f"did not start within {START_TIMEOUT:g} s"))

    def _be_silent(self) -> None:
        """The engine prints hundreds of lines for each step, which nobody reads."""
        lang, io = self.java.java.lang, self.java.java.io
        self.call(lang.System.setOut, self.call(io.PrintStream, os.devnull))
        self._join = lang.String.join

    def _text_of(self, error: Any) -> str:
        try:
            return str(error.java_exception.toString())
        except Exception:  # it may have ended over it
            return type(error).__name__

    def _cause_of_death(self, seconds: float) -> ScienceWorldFailed:
        try:
            self._process.wait(_SECONDS_TO_END if seconds < self._timeout else 0)
        except subprocess.TimeoutExpired:
            what = f"was killed: it did not answer within {self._timeout:g} s"
        else:
            what = self._status()
        self.kill()
        return ScienceWorldFailed(self._explained(what))

    def _status(self) -> str:
        status = self._process.poll()
        if status is None:
            return "closed its connection"
        if status == OUT_OF_MEMORY:
            return f"ran out of memory (it may take {self._heap_mib} MiB of heap)"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"

    def _explained(self, what: str) -> str:
        message = f"ScienceWorld's Java process {self.pid} {what}"
        # The first two lines are the port and the token.
        announced = self._gateway is not None
        if announced:
            out = written_so_far(self._out).split("\n", 2)[2]
        else:
            out = written_so_far(self._out)
        said = " ".join((written_so_far(self._errors)[-_SAID_CHARACTERS:] + out[-_SAID_CHARACTERS:]).split())
        if said:
            return f"{message}; it wrote last: {said}"
        return message


def _spawn(needed: JavaInstallation, heap_mib: int, out: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    from py4j.java_gateway import find_jar_path

    # The engine's jar has an older gateway in it too, so the installed one's comes first.
    classpath = [path for path in (find_jar_path(), str(needed.jar)) if path]
    server = ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
    options = [f"-Xmx{heap_mib}m", *OPTIONS]
    command = [needed.java, *options, "-classpath", os.pathsep.join(classpath), *server]
    # The engine looks for its table of types where it runs, and writes a new one where there is none.
    folder = needed.jar.parent
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=errors, cwd=folder)


def written_so_far(file: IO[bytes]) -> str:
    """What the process has written so far. No seek: it would move the place that the process writes at."""
    descriptor = file.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace")
