"""What the launcher must know of a recipe, as JSON: it is made inside the image and read on the batch host."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ServicePlan:
    """A server that the environment asks for. `arguments` go behind python; host and port are added.

    Example: ServicePlan("search", "search_url", "EMPG_SEARCH_TOKEN", ("-m", "…search_service", "corpus.jsonl"))
    """

    name: str
    setting: str
    """The environment's setting that holds its address."""
    token_variable: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class RunPlan:
    """One run. Sizes are in GPUs, or in processes where there is none."""

    kind: str
    """"train" or "sft"."""
    run_folder: str
    steps: int
    checkpoint: int
    """The step of the newest checkpoint; 0 without one."""
    finished: bool
    environment: str
    trainer_ranks: int
    engines: int
    engine_size: int
    """Of one engine: its tensor-parallel ranks."""
    engine_arguments: Sequence[str]
    """Of an engine's server, without host and port: model, dtype, lengths, cache."""
    engine_start_seconds: float = math.inf
    """Until an engine must be healthy."""
    silence_seconds: float = math.inf
    """How long engines and services may leave questions unanswered."""
    core_silence_seconds: float = math.inf
    """How long an engine's core may, which is not asked in a weight transfer."""
    services: Sequence[ServicePlan] = ()
    model_parallel: int = 1
    """Ranks of one replica of the actor; `trainer_ranks` is a multiple of it."""
    layout: str = ""
    """How the trainer's ranks come about, for messages: "tensor 2 x pipeline 1 x context 1 x data 1"."""
    sizes_above_one: Sequence[str] = ()
    """The keys of those of its sizes that can be lowered: ("actor.tensor_parallel",)."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Raises ValueError for anything else."""
        try:
            values = json.loads(text)
            services = [ServicePlan(**{**one, "arguments": tuple(one["arguments"])}) for one in values["services"]]
            arguments = tuple(values["engine_arguments"])
            sizes = tuple(values.get("sizes_above_one", ()))
            read = {"services": tuple(services), "engine_arguments": arguments, "sizes_above_one": sizes}
            return cls(**{**values, **read})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"this is not a plan of a run: {error}") from None
