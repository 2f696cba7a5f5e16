"""The algorithms that `algorithm.name` may name."""

from typing import Annotated

from pydantic import Field

from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.igpo import Igpo
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.rloo import Rloo
from megatron_empg.algorithms.sampo import Sampo
from megatron_empg.common.section import named

Algorithms = Grpo | Dapo | Rloo | ReinforcePP | Gspo | Gigpo | Sampo | Igpo
AlgorithmKey = Annotated[Algorithms, Field(discriminator="name"), named("grpo")]
