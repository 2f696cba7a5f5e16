"""Which of a job's nodes can be used, and by which addresses they reach each other: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from megatron_empg.launch.job_error import misconfigured

_UNREACHABLE = ("127.", "169.254.", "0.")
"""Loopback and link-local addresses: each machine, or each cable, has its own."""
_FIX = "set EMPG_INTERFACE to an interface that has an IPv4 address on every node"


@dataclass(frozen=True)
class KnownNode:
    """What Slurm knows of a node: `address` is an IPv4 or IPv6 address or a name, `machine` its host's name."""

    name: str
    address: str
    machine: str


def usable(nodes: Sequence[str], without: Collection[str]) -> list[str]:
    """The job's nodes in Slurm's order, less those that are down, silent or unfit."""
    return [node for node in nodes if node not in without]


def unfit_nodes(bad_nodes: str, job: str) -> list[str]:
    """Those that a job is to go on without, by RUN/bad_nodes: a line "job node what" for each error of a GPU."""
    found = set()
    for line in bad_nodes.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == job:
            found.add(words[1])
    return sorted(found)


def address_of(node: KnownNode, resolve: Callable[[str], Sequence[str]]) -> str:
    """The IPv4 address of a node; `resolve` gives those of a name. Raises JobError."""
    if ":" in node.address:
        raise misconfigured(
            f"node {node.name} has the IPv6 address {node.address} in Slurm; the run's processes meet over IPv4: "
            f"{_FIX}"
        )
    if node.address and set(node.address) <= set("0123456789."):
        return node.address
    for address in resolve(node.address):
        if not address.startswith(_UNREACHABLE):
            return address
    raise misconfigured(
        f"node {node.name}, {node.address} in Slurm, resolves to no IPv4 address that others reach: {_FIX}"
    )


def interface_address(ip: str) -> str | None:
    """The address in the first line of `ip -4 -oneline address show dev NAME`; None where there is none.

    Example: "2: ib0    inet 10.0.0.1/24 brd … scope global ib0" gives "10.0.0.1".
    """
    words = ip.split("\n", 1)[0].split()
    return words[3].partition("/")[0] if len(words) > 3 else None


def interface_name(ip: str) -> str | None:
    """The interface in the first line of `ip -oneline address show to ADDRESS/32`; None where there is none."""
    words = ip.split("\n", 1)[0].split()
    return words[1] if len(words) > 1 else None


def refuse_unreachable(addresses: Mapping[str, str], machines: Collection[str]) -> None:
    """`addresses` by node, `machines`: the host's name of each. Raises JobError for what means another machine
    on each node. Simulated nodes are one machine, and may meet over loopback."""
    if len(set(machines)) <= 1:
        return
    for node, address in addresses.items():
        if address.startswith(_UNREACHABLE):
            raise misconfigured(
                f"node {node} has the address {address}, which other nodes cannot reach (loopback and link-local "
                "ones belong to one machine or cable): fix NodeAddr in slurm.conf, or set EMPG_INTERFACE"
            )
