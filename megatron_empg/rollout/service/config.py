"""What the rollout service knows of a run: the configs of what it plays, filters and writes."""

from dataclasses import dataclass
from pathlib import Path

from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.limits import LimitsConfig
from megatron_empg.common.waits import Waits
from megatron_empg.environments.config import EnvironmentConfig
from megatron_empg.rollout.config import EvaluationConfig, RolloutConfig


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Components' own configs, and single values of a run. `Recipe.service_config` makes it."""

    model: Path
    """The folder of the policy's tokenizer and chat template."""
    environment: EnvironmentConfig
    rollout: RolloutConfig
    evaluation: EvaluationConfig
    limits: LimitsConfig
    waits: Waits
    """In force, as `limits` and the algorithm's rounds make them."""
    algorithm: AlgorithmSection
    """Which groups are trained on, and how many rounds may look for them."""
    seed: int
    steps: int
    """Batches that the run trains on, from its beginning."""
    folder: Path
    """The run's. Episodes that no step trains on are written there, if it is one."""
    episodes_per_step: int
    """How many episodes of a batch are kept for people to read."""
    timeline_episodes: int
    """Of how many slow episodes of a batch the times of the turns are kept."""
