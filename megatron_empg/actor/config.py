"""What the actor is told: its model, how that lies over ranks, how it is computed, and how it learns.

Each key stands here alone: its range, its default and its meaning. A recipe holds an `ActorConfig` as its section
`actor`; `megatron_empg.actor.layout_rules` says which sizes can be. Neither imports torch or Megatron.
"""

from typing import Annotated, Literal

from pydantic import Field

from megatron_empg.common.section import Mark, NonNegative, Positive, Section
from megatron_empg.common.values import PathText

# At 1 a moving average would never move. YAML knows no tuples.
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
# A checkpoint is read in any layout, whatever recomputes its activations.
Count = Annotated[Positive, Mark.PLANNED, Mark.MAY_CHANGE]


class PolicyConfig(Section):
    """The policy's model: a recipe's section `model`, of which the engines are told too."""

    path: PathText
    """A Hugging Face model folder: config.json, tokenizer, and safetensors unless `initialise` is random."""
    initialise: Literal["checkpoint", "random"] = "checkpoint"
    """Where the initial weights come from; `random` is for supervised warm-up from nothing."""
    dtype: Annotated[Literal["float32", "bfloat16"], Mark.DECIDES_EPISODES] = "bfloat16"
    """What the actor computes in and the engines hold; optimizer state and gradients are float32."""


class OptimizerConfig(Section):
    """Constants of Adam and of the learning rate's schedule, which counts updates from 1.

    Update k of `warmup_steps` has k/`warmup_steps` of `lr`; a cosine is at a tenth of it in the run's last update.
    """

    lr: Annotated[float, Field(gt=0, le=10)] = 1e-6
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or cosine down to a tenth at the last step."""
    warmup_steps: NonNegative = 0
    betas: Betas = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    clip_grad: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Largest norm of the whole gradient, over all ranks."""


class ActorConfig(Section):
    """The actor's layout, how it computes, and its optimizer.

    Example: ``ActorConfig(tensor_parallel=8, sequence_parallel=True, data_parallel=4)`` takes 32 ranks.
    """

    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    virtual_pipeline: Count = 1
    """Model chunks a pipeline stage; above 1 the schedule is interleaved, which shortens the pipeline's bubble."""
    context_parallel: Count = 1
    """Ranks among which the tokens of each sequence are split, for episodes too long for one."""
    context_exchange: Annotated[Literal["p2p", "all_gather", "a2a"] | None, Mark.MAY_CHANGE] = None
    """How attention reaches the other context ranks' tokens, in Megatron's words. p2p (ring) and a2a (all-to-all;
    heads must divide) with Transformer Engine; all_gather and a2a without. Empty: the first of them."""
    expert_parallel: Count = 1
    """Ranks, of a stage's tensor x context x data ranks, among which a layer's experts are split."""
    data_parallel: Count = 1
    sequence_parallel: Annotated[bool, Mark.PLANNED, Mark.MAY_CHANGE] = False
    """Split the activations between tensor-parallel layers over the tensor-parallel ranks."""
    distributed_optimizer: Annotated[bool, Mark.PLANNED] = False
    """Shard optimizer state over data-parallel (and context-parallel) ranks."""
    overlap: Annotated[bool, Mark.MAY_CHANGE] = False
    """Reduce gradients, and gather the distributed optimizer's parameters, while computing."""
    recompute: Annotated[Literal["none", "selective", "block", "full"], Mark.PLANNED, Mark.MAY_CHANGE] = "none"
    """Activations computed again in backward instead of kept: attention's (selective), those of some layers
    (block: `recompute_layers`), those of all."""
    recompute_layers: Count = 1
    """Layers of each model chunk that `recompute: block` recomputes."""
    max_tokens_per_microbatch: Count = 16384
    """Tokens that a rank holds at once. Sequences are packed up to this times `context_parallel`, none longer."""
    optimizer: Annotated[OptimizerConfig, Mark.MAY_CHANGE] = OptimizerConfig()
    """A value that a continuation changes holds from its first step on."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stage_ranks * self.pipeline_parallel

    @property
    def stage_ranks(self) -> int:
        """Number of ranks of one pipeline stage."""
        return self.tensor_parallel * self.context_parallel * self.data_parallel

    @property
    def chunks(self) -> int:
        """Number of pieces that the pipeline cuts the model's layers into."""
        return self.pipeline_parallel * self.virtual_pipeline

    @property
    def microbatch_tokens(self) -> int:
        """Tokens of a microbatch over all of its context-parallel ranks."""
        return self.max_tokens_per_microbatch * self.context_parallel

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that a microbatch holds. Under context parallelism every sequence is
        padded to a multiple of twice the ranks, and the padding must find room too."""
        room = self.microbatch_tokens
        if self.context_parallel > 1:
            return room - room % (2 * self.context_parallel)
        return room

    @property
    def sizes(self) -> dict[str, int | bool]:
        """The parallel sizes under the names by which checkpoints record them."""
        return {
            "tensor": self.tensor_parallel,
            "pipeline": self.pipeline_parallel,
            "data": self.data_parallel,
            "sequence_parallel": self.sequence_parallel,
            "context": self.context_parallel,
            "virtual_pipeline": self.virtual_pipeline,
            "expert": self.expert_parallel,
        }

    @property
    def recomputation(self) -> str:
        """The kind of recomputation in words: "none", or "block 3" with its layers."""
        if self.recompute == "block":
            return f"block {self.recompute_layers}"
        return self.recompute

    def recomputed_layers(self, layers: int) -> int:
        """How many of the ``layers`` of a model chunk are recomputed whole."""
        if self.recompute == "full":
            return layers
        if self.recompute != "block":
            return 0
        return min(self.recompute_layers, layers)
