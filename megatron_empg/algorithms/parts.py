"""The modulations, regularizers and corrections that a recipe may name."""

from typing import Annotated

from pydantic import Field

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.entropy_bonus import EntropyBonus
from megatron_empg.algorithms.epo import Epo
from megatron_empg.algorithms.icepop import IcePop
from megatron_empg.algorithms.no_part import NoCorrection, NoModulation, NoRegularizer
from megatron_empg.algorithms.sequence_rejection import SequenceRejection
from megatron_empg.algorithms.truncated_sampling import Mis, Tis
from megatron_empg.common.section import named

ModulationKey = Annotated[NoModulation | Empg | Aem, Field(discriminator="name"), named("empg")]
RegularizerKey = Annotated[NoRegularizer | EntropyBonus | Epo, Field(discriminator="name"), named("none")]
CorrectionKey = Annotated[
    NoCorrection | Tis | Mis | IcePop | SequenceRejection, Field(discriminator="name"), named("none")
]
