"""The nodes of a job, chosen and addressed: `slurm` asks Slurm, `nodes` says what follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from megatron_empg.launch import nodes
from megatron_empg.launch.job_error import misconfigured
from megatron_empg.launch.placement import NodeShares, Placement, place
from megatron_empg.launch.slurm import Slurm, ipv4_addresses


@dataclass(frozen=True)
class JobNodes:
    """`interface`: whose address is taken on each node (EMPG_INTERFACE), "" for Slurm's own."""

    slurm: Slurm
    interface: str = ""
    resolve: Callable[[str], Sequence[str]] = ipv4_addresses

    def choose(self, shares: NodeShares, without: Collection[str] = ()) -> Placement | None:
        """Choose nodes in Slurm's order from those that are up and not excluded; None when they are too few."""
        left_out = self.slurm.down() | set(without)
        return place(shares, nodes.usable(self.slurm.node_names(), left_out))

    def addresses(self, placement: Placement) -> dict[str, str]:
        """An address of each node that the others can reach. Raises JobError with node and fix."""
        known = [self.slurm.known(name) for name in placement.nodes]
        found = {}
        for node in known:
            if self.interface:
                found[node.name] = self._on_interface(node.name)
            else:
                found[node.name] = nodes.address_of(node, self.resolve)
        nodes.refuse_unreachable(found, [node.machine for node in known])
        return found

    def _on_interface(self, node: str) -> str:
        answer = self.slurm.output_on(node, "ip", "-4", "-oneline", "address", "show", "dev", self.interface)
        address = nodes.interface_address(answer.text)
        if address is None:
            raise misconfigured(f"EMPG_INTERFACE is {self.interface}, which has no IPv4 address on {node}")
        return address
