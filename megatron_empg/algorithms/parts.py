"""The modulations, regularizers and corrections that a recipe may name: a line for each."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.entropy_bonus import EntropyBonus
from megatron_empg.algorithms.epo import Epo
from megatron_empg.algorithms.icepop import IcePop
from megatron_empg.algorithms.no_part import NoCorrection, NoModulation, NoRegularizer
from megatron_empg.algorithms.sequence_rejection import SequenceRejection
from megatron_empg.algorithms.truncated_sampling import Mis, Tis


def bare_name(given: Any) -> Any:
    """A name alone means the part of that name with its defaults."""
    return {"name": given} if isinstance(given, str) else given


ModulationKey = Annotated[NoModulation | Empg | Aem, Field(discriminator="name"), BeforeValidator(bare_name)]
RegularizerKey = Annotated[
    NoRegularizer | EntropyBonus | Epo, Field(discriminator="name"), BeforeValidator(bare_name)
]
CorrectionKey = Annotated[
    NoCorrection | Tis | Mis | IcePop | SequenceRejection,
    Field(discriminator="name"),
    BeforeValidator(bare_name),
]
