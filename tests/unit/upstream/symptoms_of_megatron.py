"""Without an entry of `megatron_empg.upstream`: what is seen of torch on CPU and of Megatron-core. See `fresh`."""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist

from megatron_empg.actor import platform
from megatron_empg.upstream import (
    megatron_checkpointing,
    megatron_cpu,
    megatron_optimizer,
    torch_cpu,
    transformer_engine,
)
from tests.unit.upstream import one_rank
from tests.unit.upstream.one_rank import FORMAT, left_out, symptom_of

EARLY = (
    "drop_warnings_of_missing_parts",
    "import_without_compiling",
    "hide_half_installed",
    "fill_tables_of_functions",
)


def prepare() -> None:
    """Import Megatron's modules once; as the actor does it, without compiling."""
    megatron_cpu.drop_warnings_of_missing_parts()
    megatron_cpu.import_without_compiling()
    for name in ("optimizer", "models.gpt", "distributed", "dist_checkpointing", "models.gpt.gpt_layer_specs"):
        importlib.import_module(f"megatron.core.{name}")


# torch on CPU


def case_fill_tables_of_functions() -> str:
    with left_out(torch_cpu.fill_tables_of_functions):
        platform.prepare()
    with torch.device("meta"):
        made = torch.arange(3)
    return "" if made.is_meta else f"a tensor made for meta is on {made.device}"


def case_answer_cuda_calls() -> str:
    with left_out(torch_cpu.answer_cuda_calls):
        return symptom_of(one_rank.whole_training)


def case_make_tensors_on_cpu() -> str:
    with left_out(torch_cpu.make_tensors_on_cpu):
        return symptom_of(one_rank.whole_training)


def case_keep_tensors_on_cpu() -> str:
    with left_out(torch_cpu.keep_tensors_on_cpu):
        one_rank.start()
    gpt = one_rank.gpt_model(one_rank.config())
    # From here as the last of two stages that share the embedding.
    gpt.config.pipeline_model_parallel_size = 2
    gpt.pre_process, gpt.share_embeddings_and_output_weights = False, True
    gpt.pp_group = SimpleNamespace(rank=lambda: 1, size=lambda: 2)
    gpt._is_in_embd_group = lambda: True
    return symptom_of(gpt.setup_embeddings_and_output_layer)


def case_tell_megatron_cuda_types() -> str:
    with left_out(torch_cpu.tell_megatron_cuda_types):
        return symptom_of(one_rank.whole_training)


# Megatron-core on CPU


def case_track_the_cpu_generator() -> str:
    with left_out(megatron_cpu.track_the_cpu_generator):
        one_rank.start()
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    before = torch.get_rng_state()
    with get_cuda_rng_tracker().fork():
        torch.rand(1)
    unmoved = torch.equal(before, torch.get_rng_state())
    return "" if unmoved else "numbers drawn in a fork move everybody's generator"


def case_drop_warning_of_cpu_generator() -> str:
    heard = one_rank.Heard()
    logging.getLogger("megatron.core.tensor_parallel.random").addHandler(heard)
    with left_out(megatron_cpu.drop_warning_of_cpu_generator):
        one_rank.start()
    one_rank.model()
    return ", ".join(heard.said)


def case_drop_warnings_of_missing_parts() -> str:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with left_out(megatron_cpu.drop_warnings_of_missing_parts):
            platform.prepare()
        importlib.import_module("megatron.core.models.gpt")
    found = [str(each.message) for each in given if "/megatron/" in each.filename]
    return "; ".join(found)


def case_import_without_compiling() -> str:
    """To switch the fuser off behind the import comes too late."""
    from megatron.core import jit
    from megatron.core.fusions import fused_bias_dropout

    jit.disable_jit_fuser()
    compiled = fused_bias_dropout.bias_dropout_add_fused_train
    return f"{compiled.__name__} is compiled" if hasattr(compiled, "_torchdynamo_orig_callable") else ""


def case_hide_half_installed() -> str:
    """A package that fails as Transformer Engine does without its extension, in its place."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "transformer_engine")
        package.mkdir()
        package.joinpath("__init__.py").write_text("raise FileNotFoundError('no extension')\n", encoding="utf-8")
        sys.path.insert(0, folder)
        with left_out(transformer_engine.hide_half_installed):
            return symptom_of(lambda: importlib.import_module("megatron.core.models.gpt.gpt_layer_specs"))


# Megatron-core's layers


def case_take_own_norms() -> str:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    platform.prepare()
    norm = get_gpt_layer_local_spec(normalization="RMSNorm").submodules.input_layernorm
    split = one_rank.config(sequence_parallel=True, tensor_model_parallel_size=2)
    return symptom_of(lambda: norm(split, 16, 1e-5))


def case_take_own_attention() -> str:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    one_rank.start()
    attention = DotProductAttention(one_rank.config(), 1, AttnMaskType.causal, "self")
    heads = torch.zeros(4, 2, 8)
    packed = PackedSeqParams(qkv_format="thd")
    return symptom_of(lambda: attention(heads, heads, heads, None, packed_seq_params=packed))


def case_name_norm_before_experts() -> str:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    platform.prepare()
    named = get_gpt_layer_local_spec(num_experts=4).submodules.sharded_state_dict_keys_map
    return str(named.get("pre_mlp_layernorm.", ""))


def case_name_missing_gemm() -> str:
    from megatron.core.transformer.moe import moe_utils

    platform.prepare()
    tokens, weight = torch.ones(2, 4), torch.ones(3, 4)
    return symptom_of(lambda: moe_utils.router_gating_linear(tokens, weight, None, torch.float32))


def case_give_sizes_as_numbers() -> str:
    from megatron.core.transformer.moe import moe_utils

    platform.prepare()
    sizes = moe_utils.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True)
    return "sizes are a tensor" if isinstance(sizes, torch.Tensor) else ""


# Megatron-core's model


def case_replace_output_layer_forward() -> str:
    from megatron.core.models.gpt import GPTModel

    taken = inspect.signature(GPTModel.__init__).parameters
    if "output_layer" in taken or "head" in taken or "loss" in taken:
        return ""
    one_rank.start()
    logits = one_rank.model().module(torch.arange(8)[None], None, torch.zeros(1, 1, 8, 8, dtype=torch.bool))
    return f"logits of shape {list(logits.shape)} are formed"


def case_set_rotary_frequencies() -> str:
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    taken = inspect.signature(RotaryEmbedding.__init__).parameters
    return "" if "high_freq_factor" in taken else f"only {', '.join(taken)} can be set"


def case_one_rotary_table() -> str:
    one_rank.start()
    rotary = one_rank.model().module.rotary_pos_emb
    tables = [rotary(length, packed_seq=True) for length in (9, 10)]
    return "" if tables[0].data_ptr() == tables[1].data_ptr() else "a table for each length"


def case_stand_in_gradient() -> str:
    one_rank.start()
    wrapped = one_rank.model()
    weight = wrapped.module.output_layer.weight
    wrapped.zero_grad_buffer()
    weight.main_grad.fill_(1.0)  # as a head that adds by itself leaves it
    weight.sum().backward()
    return "" if weight.main_grad.mean() == 1.0 else f"main_grad is {weight.main_grad.mean()} times too large"


# Megatron-core's optimizers


def _saved_before_any_update() -> None:
    one_rank.start()
    wrapped = one_rank.model()
    optimizer = one_rank.optimizer_of(wrapped)
    state = optimizer.sharded_state_dict(wrapped.module.sharded_state_dict(), metadata=FORMAT)
    assert any("exp_avg" in each for each in state["state"].values()), "the state lacks Adam's moments"


def case_complete_state() -> str:
    return symptom_of(_saved_before_any_update)


def case_complete_step() -> str:
    one_rank.start()
    wrapped = one_rank.model()
    optimizer = one_rank.optimizer_of(wrapped)
    megatron_optimizer.complete_state(optimizer)
    state = optimizer.sharded_state_dict(wrapped.module.sharded_state_dict(), metadata=FORMAT)
    loaded = _without_sharding(state)

    def go_on() -> None:
        optimizer.load_state_dict(loaded)
        one_rank.train(wrapped, optimizer)

    return symptom_of(go_on)


def _without_sharding(value: Any) -> Any:
    """The same with the tensors that sharded ones describe, as loading gives them back."""
    if isinstance(value, dict):
        return {key: _without_sharding(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_sharding(each) for each in value]
    if hasattr(value, "replica_id"):
        return value.data.clone()
    return value.unwrap() if hasattr(value, "unwrap") else value


def _distributed() -> tuple[Any, Any]:
    one_rank.start()
    wrapped = one_rank.model(distributed=True)
    optimizer = one_rank.optimizer_of(wrapped, distributed=True)
    one_rank.train(wrapped, optimizer)
    return wrapped, optimizer


def _first_part(optimizer: Any) -> Any:
    return megatron_optimizer.parts(optimizer)[0]


def case_own_step_after_loading() -> str:
    with left_out(megatron_optimizer.own_step_after_loading):
        _, optimizer = _distributed()
    part = _first_part(optimizer)
    part.load_state_dict(part.state_dict())
    steps = [state["step"] for state in part.optimizer.state.values()]
    if len({step.data_ptr() for step in steps}) == len(steps):
        return ""
    return f"{len(steps)} parameters share {len({step.data_ptr() for step in steps})} step"


def case_keep_step_in_reshardable_loading() -> str:
    with left_out(megatron_optimizer.keep_step_in_reshardable_loading):
        wrapped, optimizer = _distributed()
    part, weight = _first_part(optimizer), wrapped.module.output_layer.weight
    state = megatron_optimizer.local_state(part, weight)
    del state["step"]
    return symptom_of(lambda: megatron_optimizer.set_local_state(part, weight, state))


def case_share_out_fully_reshardable() -> str:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    with left_out(megatron_optimizer.share_out_fully_reshardable):
        wrapped, optimizer = _distributed()
    asked: list[dict[str, Any]] = []
    gather = DistributedOptimizer.get_parameter_state_dp_zero

    def spy(self: Any, **how: Any) -> Any:
        asked.append(how)
        return gather(self, **how)

    DistributedOptimizer.get_parameter_state_dp_zero = spy
    described = wrapped.module.sharded_state_dict()
    _first_part(optimizer).sharded_param_state_fully_reshardable(described, metadata={})
    return "every rank gathers all" if asked and asked[0]["return_on_all_ranks"] else ""


def case_local_state() -> str:
    wrapped, optimizer = _distributed()
    if hasattr(_first_part(optimizer), "get_main_param_and_optimizer_states"):
        return ""
    state = megatron_optimizer.local_state(_first_part(optimizer), wrapped.module.output_layer.weight)
    assert {"param", "exp_avg", "exp_avg_sq"} <= state.keys()
    return "no public method"


def case_set_local_state() -> str:
    wrapped, optimizer = _distributed()
    if hasattr(_first_part(optimizer), "set_main_param_and_optimizer_states"):
        return ""
    part, weight = _first_part(optimizer), wrapped.module.output_layer.weight
    state = {
        name: torch.zeros_like(tensor) for name, tensor in megatron_optimizer.local_state(part, weight).items()
    }
    megatron_optimizer.set_local_state(part, weight, state)
    assert not megatron_optimizer.local_state(part, weight)["param"].any()
    return "no public method"


def case_parameters_by_bucket() -> str:
    wrapped, optimizer = _distributed()
    places = [
        place for bucket in megatron_optimizer.parameters_by_bucket(_first_part(optimizer)) for place in bucket
    ]
    assert {id(place.parameter) for place in places} == {id(each) for each in wrapped.module.parameters()}
    assert all(place.size == place.parameter.numel() for place in places)
    assert all(place.start + place.size <= place.bucket_size for place in places)
    return _only_in_the_optimizer()


def _only_in_the_optimizer() -> str:
    """The cuts are asked for by nothing else."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    source = inspect.getsource(DistributedOptimizer.get_parameter_state_dp_zero)
    return "no public method" if "gbuf" in source or "world_tensors" in source else ""


def case_parts() -> str:
    from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer

    chained = inspect.signature(ChainedOptimizer.__init__).parameters
    assert "chained_optimizers" in chained
    return "" if hasattr(MegatronOptimizer, "chained_optimizers") else "a single optimizer lists no parts"


# Megatron-core's checkpoints


def case_queue_of_this_process() -> str:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    platform.prepare()
    names = ("get_write_results_queue", "_get_write_results_queue")
    make = next(getattr(filesystem_async, name) for name in names if hasattr(filesystem_async, name))
    multiprocessing.set_start_method("fork", force=True)
    make()
    started = multiprocessing.active_children()
    for each in started:
        each.kill()
    return ", ".join(type(each).__name__ for each in started)


def case_planned_save() -> str:
    from megatron.core import dist_checkpointing

    known = inspect.signature(dist_checkpointing.save).parameters
    if "async_strategy" not in known or known["async_strategy"].default == "mcore":
        return ""
    return f"the default is {known['async_strategy'].default!r}"


def _planned(folder: Path) -> tuple[Any, torch.Tensor]:
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy

    one_rank.start()
    megatron_checkpointing.queue_of_this_process()
    tensor = torch.randn(3, 4)
    state = {"tensor": ShardedTensor.from_rank_offsets("tensor", tensor)}
    return megatron_checkpointing.planned_save(state, folder, get_default_save_sharded_strategy()), tensor


def _own_writers() -> str:
    """Megatron's ways to run a planned save; a thread is not among them."""
    from megatron.core.dist_checkpointing.strategies import async_utils

    ways = {
        name for name, value in vars(async_utils).items() if name.endswith("AsyncCaller") and name != "AsyncCaller"
    }
    return ", ".join(sorted(ways)) if ways == {"PersistentAsyncCaller", "TemporalAsyncCaller"} else ""


def case_buckets_of() -> str:
    with tempfile.TemporaryDirectory() as folder:
        request, tensor = _planned(Path(folder))
        ((path, _, (_, tensors)), *_) = megatron_checkpointing.buckets_of(request)
        assert Path(path).parent == Path(folder)
        assert torch.equal(tensors[0][1], tensor)
    return _own_writers()


def case_write_bucket() -> str:
    with tempfile.TemporaryDirectory() as folder:
        request, _ = _planned(Path(folder))
        (bucket, *_) = megatron_checkpointing.buckets_of(request)
        results = megatron_checkpointing.write_bucket(request, bucket)
        assert "tensor" in [result.index.fqn for result in results]
        assert Path(bucket[0]).exists()
    return _own_writers()


def case_finish() -> str:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    with tempfile.TemporaryDirectory() as folder:
        request, tensor = _planned(Path(folder))
        buckets = megatron_checkpointing.buckets_of(request)
        written = {
            number: megatron_checkpointing.write_bucket(request, each) for number, each in enumerate(buckets)
        }
        megatron_checkpointing.finish(request, written)
        wanted = {"tensor": ShardedTensor.from_rank_offsets("tensor", torch.empty(3, 4))}
        assert torch.equal(dist_checkpointing.load(wanted, folder)["tensor"], tensor)
        dist.destroy_process_group()
    return _own_writers()
