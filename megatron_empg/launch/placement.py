"""Which node does what with which GPUs: pure functions of the plan of a run and of what the job has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.common.errors import EmpgError
from megatron_empg.launch.run_plan import RunPlan


class PlacementError(EmpgError, ValueError):
    """The recipe does not fit the nodes; the message has every fault and its fix."""


@dataclass(frozen=True)
class JobShape:
    """The nodes of a job, spares among them, and what its user says of their roles (EMPG_TRAINER_NODES …).

    Where `cpu` is set there is no GPU: `gpus_per_node` counts trainer ranks, and engines are not bounded by it
    when their number is given.
    """

    nodes: int
    gpus_per_node: int
    trainer_nodes: int | None = None
    rollout_nodes: int | None = None
    engines_per_node: int | None = None
    cpu: bool = False


@dataclass(frozen=True)
class NodeShares:
    """How the nodes are shared out. `shared`: engines run beside trainer ranks, on the GPUs after theirs.

    Example: NodeShares(trainer_nodes=1, ranks_per_node=4, rollout_nodes=1, engines_per_node=2, shared=True) is one
    node whose first four GPUs train.
    """

    trainer_nodes: int
    ranks_per_node: int
    rollout_nodes: int
    engines_per_node: int
    shared: bool = False

    @property
    def nodes(self) -> int:
        """How many are needed; further ones are spares."""
        return self.trainer_nodes if self.shared else self.trainer_nodes + self.rollout_nodes

    @property
    def engines(self) -> int:
        """Number of engines on all rollout nodes."""
        return self.rollout_nodes * self.engines_per_node

    @property
    def first_engine_gpu(self) -> int:
        """The first GPU for engines on a rollout node, after those of the trainer."""
        return self.ranks_per_node if self.shared else 0


@dataclass(frozen=True)
class Placement:
    """The nodes by role, in Slurm's order. In a shared run both are the same nodes."""

    trainers: tuple[str, ...]
    rollouts: tuple[str, ...]
    shares: NodeShares

    @property
    def nodes(self) -> tuple[str, ...]:
        """Each once, trainers first."""
        return tuple(dict.fromkeys((*self.trainers, *self.rollouts)))

    @property
    def rollout_words(self) -> str:
        """Where engines run, for people."""
        words = " ".join(self.rollouts) or "no node"
        if self.shares.shared:
            words += f" beside it, from GPU {self.shares.first_engine_gpu} on"
        return words


def place(shares: NodeShares, nodes: Sequence[str]) -> Placement | None:
    """The first of the usable `nodes` train, the next roll out; None where they are too few."""
    if len(nodes) < shares.nodes:
        return None
    trainers = tuple(nodes[: shares.trainer_nodes])
    if shares.shared:
        return Placement(trainers, trainers, shares)
    return Placement(trainers, tuple(nodes[shares.trainer_nodes : shares.nodes]), shares)


def share_out(plan: RunPlan, shape: JobShape) -> NodeShares:
    """Trainer nodes and rollout nodes as given, else by the recipe. Raises PlacementError.

    Trainer nodes are those that the actor's layout fills. Of the others as many roll out as the recipe's engines
    need, each filled with engines. Where none is left, engines share the trainer's nodes: as many as its GPUs
    leave room for, at most what the recipe asks.
    """
    faults: list[str] = []
    trainer_nodes = shape.trainer_nodes or _filled_nodes(plan.trainer_ranks, shape.gpus_per_node)
    others = shape.nodes - trainer_nodes
    shared = others == 0 and shape.rollout_nodes is None and plan.engines > 0
    if shape.trainer_nodes is not None and (not shared or plan.trainer_ranks % trainer_nodes):
        faults += _wrong_trainer_nodes(plan, shape, trainer_nodes)
    if plan.engines == 0:
        shares = NodeShares(trainer_nodes, plan.trainer_ranks // trainer_nodes, 0, 0)
    elif shared:
        shares = _beside_the_trainer(plan, shape, trainer_nodes)
        faults += _no_room_beside(plan, shape, shares)
    else:
        shares = _on_nodes_of_their_own(plan, shape, trainer_nodes, others)
        faults += _no_room(plan, shape, shares)
    if shares.nodes > shape.nodes:
        faults.append(_too_few_nodes(plan, shape, shares))
    if faults:
        raise PlacementError("the recipe does not fit the nodes:\n" + "\n".join(f"  - {one}" for one in faults))
    return shares


def _filled_nodes(ranks: int, gpus_per_node: int) -> int:
    """The fewest nodes that hold the ranks, as many on each."""
    nodes = -(-ranks // gpus_per_node)
    while ranks % nodes:
        nodes += 1
    return nodes


def _beside_the_trainer(plan: RunPlan, shape: JobShape, nodes: int) -> NodeShares:
    ranks = plan.trainer_ranks // nodes
    holds = (shape.gpus_per_node - ranks) // plan.engine_size
    asked = max(1, plan.engines // nodes)
    return NodeShares(nodes, ranks, nodes, shape.engines_per_node or min(asked, holds), shared=True)


def _on_nodes_of_their_own(plan: RunPlan, shape: JobShape, trainer_nodes: int, others: int) -> NodeShares:
    on_each = shape.engines_per_node or shape.gpus_per_node // plan.engine_size
    wanted = -(-plan.engines // max(1, on_each))
    rollout_nodes = shape.rollout_nodes or max(1, min(others, wanted))
    return NodeShares(trainer_nodes, plan.trainer_ranks // trainer_nodes, rollout_nodes, on_each)


def _wrong_trainer_nodes(plan: RunPlan, shape: JobShape, nodes: int) -> list[str]:
    """The ranks must fill the nodes that the user gives them."""
    given = nodes * shape.gpus_per_node
    if plan.trainer_ranks == given:
        return []
    fix = f"EMPG_TRAINER_NODES={-(-plan.trainer_ranks // shape.gpus_per_node)}"
    if given % plan.model_parallel == 0:
        fix = f"actor.data_parallel={given // plan.model_parallel}"
    return [
        f"EMPG_TRAINER_NODES is {nodes} with {shape.gpus_per_node} GPUs each, {given} in all; the actor's layout "
        f"takes {plan.trainer_ranks} ({plan.layout}): set {fix}"
    ]


def _no_room(plan: RunPlan, shape: JobShape, shares: NodeShares) -> list[str]:
    on_node, size = shares.engines_per_node, plan.engine_size
    if on_node >= 1 and (shape.cpu or on_node * size <= shape.gpus_per_node):
        return []
    return [
        f"engines.tensor_parallel is {size}, EMPG_ENGINES_PER_NODE {shape.engines_per_node or 'not given'}: a "
        f"rollout node's {shape.gpus_per_node} GPUs do not hold {max(1, on_node)} such engines; lower either"
    ]


def _no_room_beside(plan: RunPlan, shape: JobShape, shares: NodeShares) -> list[str]:
    on_node, size = shares.engines_per_node, plan.engine_size
    left = shape.gpus_per_node - shares.ranks_per_node
    if on_node >= 1 and (shape.cpu or on_node * size <= left):
        return []
    gpus = shape.nodes * shape.gpus_per_node
    return [
        f"--nodes is {shape.nodes}, all for the trainer: its {shares.ranks_per_node} ranks on each ({plan.layout})"
        f" leave {left} of {shape.gpus_per_node} GPUs, where {max(1, on_node)} engines of {size} "
        f"(engines.tensor_parallel) do not fit: give one node more (sbatch --nodes={shape.nodes + 1})"
        f"{_or_lower(plan, shape)}. `empg plan RECIPE --gpus {gpus} engines.count=N` names layouts that leave N "
        "engines room"
    ]


def _or_lower(plan: RunPlan, shape: JobShape) -> str:
    """What else makes room: of the sizes those that can be lowered. "" where all are 1."""
    names = list(plan.sizes_above_one)
    if plan.engine_size > 1:
        names.append("engines.tensor_parallel")
    if (shape.engines_per_node or 0) > 1:
        names.append("EMPG_ENGINES_PER_NODE")
    return f", or lower {' or '.join(names)}" if names else ""


def _too_few_nodes(plan: RunPlan, shape: JobShape, shares: NodeShares) -> str:
    if shape.trainer_nodes is not None and shape.rollout_nodes is not None:
        return f"--nodes is {shape.nodes}; EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES are {shares.nodes}"
    return (
        f"--nodes is {shape.nodes}; the trainer takes {shares.trainer_nodes} of {shape.gpus_per_node} GPUs "
        f"({plan.layout}), the engines {shares.rollout_nodes} more: sbatch --nodes={shares.nodes}"
        f"{_or_lower(plan, shape)}"
    )
