"""What befalls ScienceWorld's Java: it is named, and the next episode has another."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_empg.environments.scienceworld import java_installation as java_module
from megatron_empg.environments.scienceworld.engine import Engine
from megatron_empg.environments.scienceworld.errors import EngineUnavailable, ScienceWorldFailed
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation, installed, major_version
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.variations import Variation
from megatron_empg.environments.scienceworld.world import ScienceWorldWorld

PATIENCE = 300.0


@pytest.fixture(scope="module")
def engine(scienceworld):
    engine = Engine(scienceworld, PATIENCE)
    yield engine
    engine.close()


def begun(engine):
    world = ScienceWorldWorld(engine, Variation("find-plant", 0), ScienceWorldSettings(choices="none"))
    world.begin()
    return world


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid):
    until = time.monotonic() + 120
    while is_there(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(pid)


def fails(engine, do):
    """The text of the error of a step, after `do` was done to the process. The next episode has another."""
    world, pid = begun(engine), engine.pid
    do(engine)
    with pytest.raises(ScienceWorldFailed) as caught:
        world.act("look around")
    wait_until_gone(pid)
    begun(engine).act("look around")
    assert engine.pid not in (None, pid)
    return str(caught.value)


def test_a_process_that_is_killed_is_named(engine):
    said = fails(engine, lambda engine: os.kill(engine.pid, signal.SIGKILL))
    assert "ScienceWorld's Java process" in said
    assert "was killed by SIGKILL" in said


def test_a_process_that_crashes_shows_what_it_wrote(engine):
    def crash(engine):
        os.kill(engine.pid, signal.SIGSEGV)
        wait_until_gone(engine.pid)

    said = fails(engine, crash)
    assert "A fatal error has been detected by the Java Runtime Environment: # # SIGSEGV" in said
    assert not list(Path.cwd().glob("hs_err_pid*"))


def test_a_process_that_runs_out_of_memory_says_so(engine):
    def exhaust(engine):
        process = engine._process
        with pytest.raises(ScienceWorldFailed, match="ran out of memory"):
            process.call(process._gateway.new_array, process.java.long, 1 << 30)

    said = fails(engine, exhaust)
    assert "ran out of memory (it may take 384 MiB of heap)" in said


def test_a_process_that_hangs_is_killed_after_its_time(scienceworld):
    engine = Engine(scienceworld, PATIENCE)
    try:
        world, pid = begun(engine), engine.pid
        process = engine._process  # its start is no part of that time
        process._timeout = process._gateway.gateway_parameters.read_timeout = 1.0
        for connection in process._gateway._gateway_client.deque:
            connection.socket.settimeout(1.0)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ScienceWorldFailed, match="did not answer within 1 s"):
            world.act("look around")
        wait_until_gone(pid)
    finally:
        engine.close()


def test_the_process_ends_with_its_parent_even_a_killed_one(scienceworld):
    program = """
import sys, time
from megatron_empg.environments.scienceworld.java_installation import installed
from megatron_empg.environments.scienceworld.java_process import JavaProcess
process = JavaProcess(installed(), 300)
print(process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert is_there(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_damaged_engine_is_named_before_an_episode_begins(scienceworld, tmp_path, kept):
    jar = tmp_path / "scienceworld.jar"
    whole = scienceworld.jar.read_bytes()
    jar.write_bytes(whole[: int(len(whole) * kept)])
    engine = Engine(JavaInstallation(scienceworld.java, jar), PATIENCE)
    with pytest.raises(
        ScienceWorldFailed, match=r"cannot be loaded from .* may be damaged: `pip install --force-reinstall"
    ):
        begun(engine)
    assert engine.pid is None


def test_a_java_that_does_not_start_says_why(scienceworld, monkeypatch):
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xms9999t")
    with pytest.raises(ScienceWorldFailed, match=r"did not start: it ended with exit status 1.*Initial heap size"):
        begun(Engine(scienceworld, PATIENCE))


def test_options_that_the_user_set_for_every_java_are_no_harm(scienceworld, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx2g -Dwhat=ever")
    engine = Engine(scienceworld, PATIENCE)
    try:
        begun(engine)
        most = engine._process.java.java.lang.Runtime.getRuntime().maxMemory()
        assert most < 400 << 20
    finally:
        engine.close()


def test_java_is_missing(scienceworld, monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        EngineUnavailable, match=r"needs Java 8 or newer .* no `java` in JAVA_HOME or PATH: install one"
    ):
        installed()


def test_java_is_too_old_or_none_at_all(scienceworld, monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for text, message in (
        ("echo 'java version \"1.7.0_80\"' >&2", rf"{java} is of version 1.7.0_80: install one"),
        ("exit 1", "-version failed"),
        ("echo hello", "names no version"),
    ):
        java.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        java.chmod(0o755)
        with pytest.raises(EngineUnavailable, match=message):
            installed()


@pytest.mark.parametrize(
    ("name", "major"), [("17.0.15", 17), ("1.8.0_402", 8), ("1.7.0_80", 7), ("21", 21), ("9-ea", 9), ("?", 0)]
)
def test_versions_of_java_are_read(name, major):
    assert major_version(name) == major


def test_another_version_of_the_package_is_refused(scienceworld, monkeypatch):
    monkeypatch.setattr(java_module, "version", lambda package: "1.1.0")
    with pytest.raises(EngineUnavailable, match=r"is of version 1.1.0.*pip install scienceworld==1.2.3"):
        installed()


def test_a_missing_package_is_named(scienceworld, monkeypatch):
    monkeypatch.setattr(java_module, "find_spec", lambda package: None)
    with pytest.raises(EngineUnavailable, match=r"needs the Python package scienceworld: install it with `pip"):
        installed()
