"""Three machines made of network namespaces on a switch: a node or a cable that is shaped is named."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.suite_runs import SuiteRun, run_suite

RATE = "100mbit"
_NODES = 3


def _ip(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Names of the namespaces; each has eth0 with 10.231.0.1, .2, .3, on a bridge in a namespace of its own."""
    missing = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    if os.geteuid() or missing:
        reason = f"network namespaces need root and iproute2 (missing: {', '.join(missing) or 'root'})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    names = [f"empg{os.getpid()}-{number}" for number in range(_NODES)]
    switch = f"empg{os.getpid()}-switch"
    with contextlib.ExitStack() as stack:
        for name in (*names, switch):
            _ip("ip", "netns", "add", name)
            stack.callback(_ip, "ip", "netns", "delete", name)
            _ip("ip", "-n", name, "link", "set", "lo", "up")
        _ip("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("ip", "-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _ip("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("ip", "-n", name, "address", "add", f"10.231.0.{number + 1}/24", "dev", "eth0")
            _ip("ip", "-n", name, "link", "set", "eth0", "up")
        yield names


def _shape(name: str, device: str) -> None:
    shape = ["tbf", "rate", RATE, "burst", "128kb", "latency", "400ms"]
    _ip("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", device, "root", *shape)


def _run(namespaces: list[str], folder: Path) -> SuiteRun:
    return run_suite(
        folder,
        _NODES,
        *("--only", "pairs"),
        prefixes=[("ip", "netns", "exec", name) for name in namespaces],
        environment=[{"GLOO_SOCKET_IFNAME": "eth0", "MASTER_ADDR": "10.231.0.1"}] * _NODES,
        limit=120,
    )


def test_even_links_pass(namespaces: list[str], tmp_path: Path) -> None:
    run = _run(namespaces, tmp_path)
    assert run.codes == [0] * _NODES, run.printed


def test_the_node_behind_a_slow_link_is_named(namespaces: list[str], tmp_path: Path) -> None:
    _shape(namespaces[1], "eth0")
    run = _run(namespaces, tmp_path)
    assert run.codes == [1] * _NODES, run.printed
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("slow", [1])
    assert "node node1: sends slowly on every link" in fault["what"]
    assert run.seconds < 120


def test_a_slow_cable_between_two_good_nodes_is_named(namespaces: list[str], tmp_path: Path) -> None:
    """A cable of their own between nodes 1 and 2, shaped one way."""
    one, two = namespaces[1:]
    _ip("ip", "-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
    for name, peer in ((one, 3), (two, 2)):
        _ip("ip", "-n", name, "link", "set", "cable", "up")
        _ip("ip", "-n", name, "route", "add", f"10.231.0.{peer}/32", "dev", "cable")
    _shape(one, "cable")
    run = _run(namespaces, tmp_path)
    assert run.codes == [1] * _NODES, run.printed
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("slow", [1, 2])
    assert "link node node1 -> node node2: slow" in fault["what"]
    assert run.seconds < 120
