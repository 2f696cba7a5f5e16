"""Which nodes a job uses, and by which addresses they meet. What Slurm says is recorded; nothing is called."""

import re
from collections.abc import Sequence

import pytest

from megatron_empg.launch.job_error import JobError
from megatron_empg.launch.job_nodes import JobNodes
from megatron_empg.launch.nodes import interface_address, interface_name, unfit_nodes, usable
from megatron_empg.launch.placement import NodeShares, Placement
from megatron_empg.launch.slurm import ProgramOutput, Slurm

SHARES = NodeShares(trainer_nodes=1, ranks_per_node=8, rollout_nodes=1, engines_per_node=8)


class Cluster:
    """Nodes by (NodeAddr, NodeHostName); `down` those that sinfo calls so, `on` the address of an interface."""

    def __init__(self, nodes: dict[str, tuple[str, str]], down: Sequence[str] = (), on: str = "") -> None:
        self.nodes, self.down, self.on = nodes, down, on
        self.commands: list[Sequence[str]] = []

    def run(self, command: Sequence[str], seconds: float) -> ProgramOutput:
        self.commands.append(command)
        if command[:3] == ("scontrol", "show", "hostnames"):
            return ProgramOutput(0, "\n".join(self.nodes))
        if command[0] == "sinfo":
            return ProgramOutput(
                0, "".join(f"{node} {'down*' if node in self.down else 'idle'}\n" for node in self.nodes)
            )
        if command[:3] == ("scontrol", "show", "node"):
            address, machine = self.nodes[command[3]]
            return ProgramOutput(
                0, f"NodeName={command[3]} NodeAddr={address} NodeHostName={machine} Version=22.05"
            )
        assert command[0] == "srun"
        return ProgramOutput(0, f"2: ib0    inet {self.on}/24 scope global ib0\n" if self.on else "")


def resolve(name: str) -> list[str]:
    return {"gpu-a": ["127.0.1.1", "10.1.1.1"], "gpu-c": ["127.0.1.1"]}.get(name, [])


def addresses(cluster: Cluster, interface: str = "") -> dict[str, str]:
    nodes = JobNodes(Slurm("7", "n[1-2]", cluster.run), interface, resolve)
    names = tuple(cluster.nodes)
    return nodes.addresses(Placement(names[:1], names[1:], SHARES))


def test_addresses_are_slurms_own_or_what_its_names_resolve_to() -> None:
    found = addresses(Cluster({"n1": ("10.1.1.7", "n1"), "n2": ("gpu-a", "n2")}))
    assert found == {"n1": "10.1.1.7", "n2": "10.1.1.1"}


def test_simulated_nodes_of_one_machine_may_meet_over_loopback() -> None:
    found = addresses(Cluster({"n1": ("127.0.0.1", "box"), "n2": ("127.0.0.1", "box")}))
    assert found == {"n1": "127.0.0.1", "n2": "127.0.0.1"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.1.1", "node n2 has the address 127.0.1.1, which other nodes cannot reach"),
        ("169.254.3.4", "node n2 has the address 169.254.3.4, which other nodes cannot reach"),
        ("fd00::12", "node n2 has the IPv6 address fd00::12 in Slurm; .*IPv4: set EMPG_INTERFACE"),
        ("gpu-b", "node n2, gpu-b in Slurm, resolves to no IPv4 address that others reach: set EMPG_INTERFACE"),
        ("gpu-c", "node n2, gpu-c in Slurm, resolves to no IPv4 address that others reach: set EMPG_INTERFACE"),
    ],
)
def test_an_address_that_others_cannot_use_is_refused_by_node(address: str, said: str) -> None:
    with pytest.raises(JobError) as refused:
        addresses(Cluster({"n1": ("10.1.1.7", "n1"), "n2": (address, "n2")}))
    assert refused.value.exit_code == 10
    assert re.search(said, str(refused.value))


def test_an_interface_without_a_usable_address_is_named() -> None:
    nodes = {"n1": ("fd00::1", "n1"), "n2": ("fd00::2", "n2")}
    assert addresses(Cluster(nodes, on="10.2.2.2"), "ib0") == {"n1": "10.2.2.2", "n2": "10.2.2.2"}
    with pytest.raises(JobError, match="EMPG_INTERFACE is ib0, which has no IPv4 address on n1"):
        addresses(Cluster(nodes), "ib0")
    with pytest.raises(JobError, match="cannot reach"):
        addresses(Cluster(nodes, on="127.0.0.1"), "lo")


def test_what_ip_says_is_read_from_its_first_line() -> None:
    said = (
        "3: eth1    inet 10.0.0.7/16 brd 10.0.255.255 scope global eth1\\       valid_lft forever\n4: x inet 1.2\n"
    )
    assert interface_address(said) == "10.0.0.7"
    assert interface_name(said) == "eth1"
    assert interface_address("") is None
    assert interface_name("") is None


def test_nodes_that_are_down_or_left_out_have_no_role() -> None:
    four = Cluster({f"n{number}": ("10.0.0.1", "x") for number in range(1, 5)}, down=["n1"])
    nodes = JobNodes(Slurm("7", "n[1-4]", four.run))
    chosen = nodes.choose(SHARES, without=["n3"])
    assert chosen is not None
    assert (chosen.trainers, chosen.rollouts) == (("n2",), ("n4",))
    assert nodes.choose(SHARES, without=["n3", "n4"]) is None


def test_nodes_keep_slurms_order() -> None:
    assert usable(["n10", "n2", "n1"], {"n2"}) == ["n10", "n1"]


def test_only_this_jobs_lines_make_a_node_unfit() -> None:
    noted = "7 n2 GPU 0: Xid 79\n6 n3 GPU 1: Xid 48\n7 n2 again\n7 n1 x\n7\n"
    assert unfit_nodes(noted, "7") == ["n1", "n2"]
    assert unfit_nodes("", "7") == []
