"""The algorithms that `algorithm.name` may name: a line for each."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.igpo import Igpo
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.rloo import Rloo
from megatron_empg.algorithms.sampo import Sampo

DEFAULT = "grpo"


def named(given: Any) -> Any:
    """A bare name means that algorithm with its defaults; keys without a name are those of the default one."""
    if isinstance(given, str):
        return {"name": given}
    return {"name": DEFAULT, **given} if isinstance(given, dict) else given


AlgorithmKey = Annotated[
    Grpo | Dapo | Rloo | ReinforcePP | Gspo | Gigpo | Sampo | Igpo,
    Field(discriminator="name"),
    BeforeValidator(named),
]
