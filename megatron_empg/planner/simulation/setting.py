"""What is simulated: everything that the time of a step is made of."""

from dataclasses import dataclass

from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.workload import Workload


@dataclass(frozen=True)
class SimulationSetting:
    """A run of training with rollouts. At lag 0 rounds of whole batches and then an update; above, a stream."""

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
    """Of questions at lag 0, at most. At a lag so many batches of dropped groups end the looking for a batch."""
    asked_by_wanted: float = 1.0
    """Questions asked in a round by questions wanted, at lag 0; surplus groups are discarded."""
    max_lag: int = 0
    """Versions that a group may be older than the weights that are trained on it (`rollout.max_lag`)."""

    @property
    def slots_of_groups(self) -> int:
        """Groups that have entered and are neither trained on nor dropped, at most."""
        return (self.max_lag + 1) * self.groups
