"""What the predicted times rest on: published figures with their source, and assumptions said to be such."""

from dataclasses import dataclass

SENT_AT_ONCE_BYTES = 512 << 20
"""Of weights, by a sender's GPU (WINDOW_BYTES of `megatron_empg/weights/sync/broadcast.py`)."""


@dataclass(frozen=True)
class Assumptions:
    """Each may be another: the simulation varies them to say what a prediction rests on."""

    mfu: float = 0.41
    """Of the actor's arithmetic before the communication and idle stages counted here. Megatron-LM's README
    reports 41% (its smallest model) to 47% end to end on H100; verl's docs/perf/dpsk.md 31% to 40% in RL
    training."""
    prefill_mfu: float = 0.4
    """Assumption: of the engines when they read prompts and observations."""
    decode_bandwidth: float = 0.6
    """Assumption: share of the memory's bandwidth that decoding reaches."""
    all_reduce_latency: float = 15e-6
    """Assumption: seconds of one small all-reduce among an engine's ranks; two per layer and token."""
    turn_seconds: float = 0.5
    """Assumption: seconds the environment takes to answer a turn."""
    episode_share: float = 0.5
    """Assumption: an episode's mean length as a share of `rollout.max_episode_tokens`; its own tokens'
    likewise."""
    sync_seconds: float = 2.2
    sync_seconds_per_gb: float = 0.18
    """A line through verl's full NCCL broadcasts without offload on H100 nodes
    (docs/advance/delta_weight_sync.md): 14.2 s for Qwen2.5-32B, 28.8 s for 72B."""
    engine_utilisation: float = 0.92
    """vLLM's default share of a GPU's memory (gpu_memory_utilization)."""
    engine_workspace: float = 4 * 2**30
    """Assumption: bytes of an engine's GPU for a prefill chunk's activations, the sampler's logits, CUDA
    graphs."""


PLANNED = Assumptions()
"""What a plan rests on."""
