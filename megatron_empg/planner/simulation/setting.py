"""What is simulated: everything that the time of a step is made of."""

from dataclasses import dataclass
from typing import Literal

from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.workload import Workload

Late = Literal["wait", "end"]
"""What becomes of a group that the next weights would make older than the lag allows: its batch waits for it, or
it is given up."""


@dataclass(frozen=True)
class Setting:
    """A run of training with rollouts. Lag 0 is the loop of today: rounds of whole batches, then an update."""

    workload: Workload
    rates: EngineRates
    engines: int
    slots: int
    """Sequences that an engine runs at once."""
    cache_tokens: float
    """Context that the running sequences of an engine may have in all."""
    concurrency: int
    """Episodes under way at once, over all engines."""
    groups: int
    group_size: int
    train_token_seconds: float
    """Score and update, by token of the batch."""
    train_fixed_seconds: float
    """Of a step's score and update, whatever the batch."""
    sync_seconds: float
    """From the pause of the engines to their resumption; the trainer waits too."""
    service_seconds: float = 0.0
    """Work of the rollout service on one turn; it does one at a time."""
    kept_share: float = 1.0
    """Share of groups that the algorithm trains on."""
    rounds: int = 1
    """Of questions at lag 0, at most."""
    asked_by_wanted: float = 1.0
    """Questions asked in a round by questions wanted, at lag 0; surplus groups are thrown away."""
    max_lag: int = 0
    late: Late = "wait"

    @property
    def slots_of_groups(self) -> int:
        """Groups that have entered and are not covered by published weights, at most."""
        return (self.max_lag + 1) * self.groups
