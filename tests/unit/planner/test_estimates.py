"""The formulas by themselves, against numbers worked out by hand or published."""

import json
import math
from pathlib import Path

import pytest

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.gpus import GPUS
from megatron_empg.planner.activations import MicrobatchShape, layer_activations
from megatron_empg.planner.assumptions import SENT_AT_ONCE_BYTES
from megatron_empg.planner.engines import engine_memory, mean_sequences
from megatron_empg.planner.host_memory import checkpoint_host_memory
from megatron_empg.planner.memory import chunks_in_flight, optimizer_bytes, rank_memory
from megatron_empg.planner.shards import ParameterCounts, model_parameters, stage_parameters
from megatron_empg.planner.timing import bubble_share, step_time
from megatron_empg.planner.transfer import transfer_bytes
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table
from megatron_empg.weights.sync.broadcast import WINDOW_BYTES

ROOT = Path(__file__).parents[3]
GIB = 2**30


def config(name: str) -> ModelConfig:
    return ModelConfig.from_dict(json.loads((ROOT / f"tests/unit/weights/configs/{name}.json").read_text()))


def recipe(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/deepsearch_32b.yaml", overrides)


@pytest.mark.parametrize(
    ("name", "billions"),  # as the models' pages on Hugging Face say
    [
        ("qwen2.5-7b", 7.62),
        ("qwen2.5-32b", 32.8),
        ("qwen3-32b", 32.8),
        ("llama-3-8b", 8.03),
        ("qwen3-30b-a3b", 30.5),
    ],
)
def test_published_sizes(name: str, billions: float) -> None:
    assert model_parameters(config(name)) / 1e9 == pytest.approx(billions, abs=0.05)


def test_pipeline_stages_and_expert_ranks_share_out_the_model() -> None:
    moe = config("qwen3-30b-a3b")
    actor = ActorConfig(pipeline_parallel=4, expert_parallel=8, data_parallel=8)
    stages = [stage_parameters(moe, actor, stage) for stage in range(4)]
    padding = 2 * (moe.padded_vocab_size(1) - moe.vocab_size) * moe.hidden_size
    assert sum(s.dense + 8 * s.experts for s in stages) == model_parameters(moe) + padding


@pytest.mark.parametrize(
    ("actor", "in_flight"),
    [
        ({"pipeline_parallel": 4}, [4, 3, 2, 1]),
        ({"pipeline_parallel": 1}, [1]),
        # Megatron's warm-up: (p - s - 1)·2 + (v - 1)·p forward passes, then one more before the first backward.
        ({"pipeline_parallel": 4, "virtual_pipeline": 2}, [11, 9, 7, 5]),
    ],
)
def test_forward_passes_in_flight(actor: dict[str, int], in_flight: list[int]) -> None:
    section = ActorConfig(**actor)
    assert [chunks_in_flight(section, stage, 16) for stage in range(len(in_flight))] == in_flight
    assert chunks_in_flight(section, 0, 1) <= section.virtual_pipeline


def test_bubble_of_the_paper() -> None:
    """Narayanan et al.: (p - 1) / m of the ideal time, divided by the number of chunks."""
    plain, interleaved = ActorConfig(pipeline_parallel=8), ActorConfig(pipeline_parallel=8, virtual_pipeline=2)
    assert bubble_share(plain, 64) / (1 - bubble_share(plain, 64)) == pytest.approx(7 / 64)
    assert bubble_share(interleaved, 64) / (1 - bubble_share(interleaved, 64)) == pytest.approx(7 / 128)
    assert bubble_share(ActorConfig(), 5) == 0


def test_adam_in_mixed_precision_takes_18_bytes_a_parameter() -> None:
    """Weight 2, float32 gradient 4, main weight 4, moments 8; 6 + 12/n with the distributed optimizer."""
    held = ParameterCounts(dense=10**6)
    sharded = ActorConfig(data_parallel=4, context_parallel=2, distributed_optimizer=True)
    assert optimizer_bytes(held, ActorConfig(data_parallel=8), 2) == 12e6
    assert optimizer_bytes(held, sharded, 2) == 12e6 / 8
    assert optimizer_bytes(held, sharded, 4) == 8e6 / 8
    experts = ParameterCounts(experts=10**6)
    of_experts = ActorConfig(
        tensor_parallel=2, sequence_parallel=True, data_parallel=4, expert_parallel=4, distributed_optimizer=True
    )
    assert optimizer_bytes(experts, of_experts, 2) == 12e6 / 2


MODELS = ["smollm2-135m", "qwen2.5-7b", "qwen2.5-32b", "qwen3-30b-a3b"]


@pytest.mark.parametrize("name", MODELS)
def test_a_sender_holds_what_is_under_way_and_its_largest_parameter_twice(name: str) -> None:
    model = config(name)
    largest = max(math.prod(parameter.full_shape) * 2 for parameter in parameter_table(model))
    held = transfer_bytes(model, 2, 8, 1, 0)
    assert WINDOW_BYTES["cuda"] == SENT_AT_ONCE_BYTES
    assert SENT_AT_ONCE_BYTES + 3 * largest <= held <= SENT_AT_ONCE_BYTES + 3 * 1.02 * largest, "padded vocabulary"


def test_a_stage_sends_what_it_has() -> None:
    """Of four stages those in the middle have neither embeddings nor the head, which are the largest."""
    first, second, third, last = (transfer_bytes(config("qwen2.5-32b"), 2, 8, 4, stage) for stage in range(4))
    assert first == last > second == third
    gate_and_up = 2 * 27648 * 5120 * 2
    assert second == SENT_AT_ONCE_BYTES + 3 * gate_and_up


def test_sending_takes_the_memory_of_activations_first() -> None:
    model, whole = config("qwen2.5-32b"), recipe()
    kept = rank_memory(whole, model, 0)
    held = transfer_bytes(model, 2, whole.actor.tensor_parallel, 1, 0)
    assert kept.activations + kept.logits > held
    assert kept.transfer == 0
    spare = recipe(
        "rollout.max_turn_tokens=32", "rollout.max_episode_tokens=64", "actor.max_tokens_per_microbatch=64"
    )
    small = rank_memory(spare, model, 0)
    assert small.transfer == pytest.approx(held - small.activations - small.logits)
    assert rank_memory(spare, model, 0, device="cpu").transfer == 0


def test_main_memory_of_a_checkpoint_of_32b() -> None:
    """Each of eight ranks writes a third of 4.1e9 parameters, 14 bytes of each, and holds no more."""
    shard = stage_parameters(config("qwen2.5-32b"), recipe().actor, 0).total
    assert shard == pytest.approx(4.1e9, rel=0.01)
    assert checkpoint_host_memory(recipe(), config("qwen2.5-32b")) == 8 * 14 * shard / 3
    alone = recipe("actor.context_parallel=1", "actor.distributed_optimizer=false", "actor.overlap=false",
                   "actor.max_tokens_per_microbatch=32768")  # fmt: skip
    assert checkpoint_host_memory(alone, config("qwen2.5-32b")) == 8 * 14 * shard, "nobody to share it with"


def test_main_memory_of_a_checkpoint_is_never_less_than_the_largest_parameter() -> None:
    many = recipe("actor.context_parallel=1", "actor.data_parallel=4096", "rollout.groups=4096",
                  "actor.max_tokens_per_microbatch=32768")  # fmt: skip
    largest = stage_parameters(config("qwen2.5-32b"), many.actor, 0).largest
    assert checkpoint_host_memory(many, config("qwen2.5-32b")) == 8 * 14 * largest


@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen3-32b", "qwen3-30b-a3b"])
def test_fused_layers_keep_less(name: str) -> None:
    actor, batch = ActorConfig(tensor_parallel=4, sequence_parallel=True), MicrobatchShape((8192,))
    fused = layer_activations(config(name), actor, batch, "transformer_engine", 2)
    local = layer_activations(config(name), actor, batch, "local", 2)
    assert fused.input == local.input == 8192 * config(name).hidden_size * 2 / 4
    assert 0.4 < fused.whole / local.whole < 0.75


def test_recomputation_trades_memory_for_time() -> None:
    model, gpu = config("qwen2.5-32b"), GPUS["H100"]
    kinds = ("none", "block", "full")
    chosen = [recipe(f"actor.recompute={kind}", "actor.recompute_layers=32") for kind in kinds]
    engine = engine_memory(chosen[0], model, 80 * GIB)
    kept = [rank_memory(one, model, 0).activations for one in chosen]
    seconds = [step_time(one, model, engine, gpu).update for one in chosen]
    assert kept[0] > kept[1] > kept[2]
    assert seconds[0] < seconds[1] < seconds[2]
    assert seconds[2] / seconds[0] == pytest.approx(4 / 3, abs=0.03)  # one forward pass more, the head's aside


def test_score_is_a_third_of_an_update_and_rollout_does_not_depend_on_the_layout() -> None:
    model, gpu = config("qwen2.5-32b"), GPUS["H100"]
    alone = recipe("actor.tensor_parallel=1", "actor.sequence_parallel=false", "actor.context_parallel=1",
                   "actor.distributed_optimizer=false", "actor.max_tokens_per_microbatch=32768")  # fmt: skip
    engine = engine_memory(alone, model, 80 * GIB)
    time, shipped = step_time(alone, model, engine, gpu), step_time(recipe(), model, engine, gpu)
    assert time.update == pytest.approx(3 * time.score)
    assert shipped.rollout == time.rollout
    assert 15 < time.score / shipped.score < 24, "24 GPUs, some of it communication"


@pytest.mark.parametrize(
    ("name", "ranks", "bytes_per_token"),
    [("qwen2.5-7b", 1, 57344), ("qwen2.5-32b", 4, 262144 / 4), ("qwen2.5-32b", 16, 262144 / 8)],
)
def test_key_value_cache(name: str, ranks: int, bytes_per_token: float) -> None:
    """2 · layers · heads · head_dim · 2 bytes; beyond a head a rank they are copied."""
    memory: Any = engine_memory(recipe(f"engines.tensor_parallel={ranks}"), config(name), 80 * GIB)
    assert memory.kv_bytes_per_token == bytes_per_token
    assert memory.weights == model_parameters(config(name)) * 2 / ranks
    assert memory.episodes == pytest.approx(memory.kv_cache / bytes_per_token / 32768)
    assert memory.weights + memory.kv_cache + memory.workspace == pytest.approx(memory.available)
    asked: Any = engine_memory(
        recipe(f"engines.tensor_parallel={ranks}", "engines.kv_cache_gib=8"), config(name), 80 * GIB
    )
    assert asked.kv_cache == 8 * GIB  # on each GPU, as vLLM takes it


@pytest.mark.parametrize(
    ("overrides", "sequences"),
    [
        (["environment.name=sokoban", "environment.settings={}"], 20),
        (["environment.name=sokoban", "environment.settings={history_length: all}"], 1),
        (["rollout.history=strip"], 20),
        ([], 1),
    ],
)
def test_where_turns_are_samples_a_batch_has_a_sequence_for_each(overrides: list[str], sequences: int) -> None:
    acting = recipe(*overrides, "environment.max_turns=20")
    assert acting.most_sequences == sequences
    episodes = acting.rollout.groups * acting.rollout.group_size
    assert mean_sequences(acting) == episodes * max(1, sequences / 2)
