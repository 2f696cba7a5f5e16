"""The keys that all algorithms share, and what each adds: its advantages and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from megatron_empg.algorithms.base import Advantages
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.no_part import NoCorrection, NoRegularizer
from megatron_empg.algorithms.parts import CorrectionKey, ModulationKey, RegularizerKey
from megatron_empg.common.section import Mark, NonNegative, Positive, Section

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm, Probe, Scores


class AlgorithmSection(Section):
    """The keys of an algorithm. Its class is chosen by `algorithm.name`, and turns rewards into advantages."""

    asks_reference: ClassVar[bool] = False
    """Whether `probes` asks for scores by the run's initial policy, which the trainer then keeps a copy of."""
    needs_gold: ClassVar[bool] = False
    """Whether every task must name a turn that would answer right."""
    tells_turns_apart: ClassVar[bool] = False
    """Whether it is about how the turns of one episode differ, so that it needs several."""

    name: str
    """How rewards become advantages, and how the loss is clipped."""
    modulation: ModulationKey = Empg()
    """What makes other turn advantages of the turns' entropies. Here as in the next two, a bare name means that
    part with its defaults."""
    regularizer: RegularizerKey = NoRegularizer()
    """A term of the loss over the policy's entropies."""
    correction: CorrectionKey = NoCorrection()
    """What weighs tokens by the gap between the engine's log-probs and the actor's."""
    kl: KlSection = KlSection()
    masks: MasksSection = MasksSection()
    updates_per_batch: Positive = 1
    """Optimizer steps per batch: its episodes are split into this many mini-batches."""
    loss_mean: Literal["token", "sequence"] | None = None
    """The loss is the mean over all own tokens, or over samples of their tokens' means; the algorithm's own unless
    given (sequence for gspo and sampo, else token)."""
    kl_to_initial_every: Annotated[NonNegative, Mark.MAY_CHANGE] = 0
    """Steps between measurements of the KL to the initial policy, a metric only; 0 is never. With a
    `kl.coefficient` it is measured in every step."""
    shuffle_rewards: bool = False
    """The control experiment: permute the rewards inside a batch. Nothing should be learnt."""

    @property
    def mean(self) -> Literal["token", "sequence"]:
        """The mean that the loss takes: `loss_mean` if it is given, else the algorithm's own."""
        return self.loss_mean or self.own_mean()

    def own_mean(self) -> Literal["token", "sequence"]:
        return "token"

    @property
    def generation_rounds(self) -> int:
        """The most rounds of new questions; after them the batch is what was found."""
        return 1

    @property
    def asked_by_wanted(self) -> float:
        """The ratio of questions asked in a round to questions still wanted."""
        return 1.0

    def keeps(self, rewards: Float[Tensor, "group_size"]) -> bool:
        """Whether a question's episodes, with these rewards, are trained on."""
        return True

    def shaped_rewards(self, experience: Experience) -> Float[Tensor, "episodes"]:
        """The rewards that advantages are taken of."""
        return experience.rewards

    def probes(self, experience: Experience) -> list[Probe]:
        """The samples to be scored beside the batch; `advantages` gets their scores in the same order."""
        return []

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        raise NotImplementedError

    def surrogate(self) -> LossTerm:
        """The policy loss of each own token, times its ``loss_weights``."""
        raise NotImplementedError


def on_turns(advantages: Float[Tensor, "episodes"], experience: Experience) -> Advantages:
    """The advantages with each episode's advantage at each of its turns."""
    return Advantages(advantages, advantages[experience.episode_of_turn])
