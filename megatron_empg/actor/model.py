"""Megatron-core's GPTModel from a model configuration, wrapped for data parallelism."""

import importlib.util
import logging
from functools import partial
from typing import Any

import torch

from megatron_empg.actor.config import ActorConfig
from megatron_empg.actor.layout_rules import exchange_faults
from megatron_empg.common.dtypes import name_of
from megatron_empg.weights.mapping.model_config import ModelConfig

logger = logging.getLogger(__name__)


def context_exchanges(dtype: torch.dtype) -> tuple[str, ...]:
    """Attention's exchanges between context-parallel ranks that work here on packed sequences, best first.

    The names are megatron-core's ``cp_comm_type``: p2p (ring), all_gather (of keys and values), a2a (Ulysses).
    """
    from megatron_empg.actor.layer_spec import uses_transformer_engine

    if uses_transformer_engine(dtype):
        return ("p2p", "a2a")
    return ("all_gather", "a2a")


def transformer_config(config: ModelConfig, settings: ActorConfig, dtype: torch.dtype) -> Any:
    """Megatron's TransformerConfig for this model, laid out and computed as the settings say."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    exchanges = context_exchanges(dtype)
    faults = exchange_faults(settings, exchanges, name_of(dtype))
    if faults:
        raise ValueError(faults[0])
    return TransformerConfig(
        **_layers(config),
        **_parallelism(settings, settings.context_exchange or exchanges[0]),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Packed microbatches differ in length, so pipeline stages tell each other the shape.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        **_expert_settings(config, settings, dtype),
        # The schedule then sums gradients over tokens and divides once by the global number of them.
        calculate_per_token_loss=True,
        attention_softmax_in_fp32=True,
        **_fusions(dtype),
        **_recompute_settings(settings, dtype),
    )


def _layers(config: ModelConfig) -> dict[str, Any]:
    """What a layer computes, and how many of them there are."""
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_query_groups": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": config.qkv_bias,
        "qk_layernorm": config.qk_norm,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": config.initializer_range,
    }


def _parallelism(settings: ActorConfig, exchange: str) -> dict[str, Any]:
    """Over how many ranks the model lies, and how they talk; `exchange` is of context-parallel attention."""
    interleaved = settings.virtual_pipeline > 1
    split_context = settings.context_parallel > 1
    return {
        "tensor_model_parallel_size": settings.tensor_parallel,
        "pipeline_model_parallel_size": settings.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": settings.virtual_pipeline if interleaved else None,
        "context_parallel_size": settings.context_parallel,
        "cp_comm_type": exchange if split_context else None,
        # Sending in batches gives wrong gradients under interleaving.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "sequence_parallel": settings.sequence_parallel,
    }


def _fusions(dtype: torch.dtype) -> dict[str, bool]:
    """Megatron's fused kernels, each where it is installed; none on CPU."""
    from megatron_empg.actor.layer_spec import uses_transformer_engine

    cuda = torch.cuda.is_available()
    apex = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    return {
        "bias_activation_fusion": cuda,
        "bias_dropout_fusion": cuda,
        "apply_rope_fusion": uses_transformer_engine(dtype),
        "gradient_accumulation_fusion": cuda and apex,  # the fused LM head adds to main_grad by itself
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }


def _expert_settings(config: ModelConfig, settings: ActorConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Routing as Hugging Face's: softmax, then the best experts, no load balancing, no token dropped."""
    if config.experts is None:
        return {}
    from megatron_empg.actor.layer_spec import uses_transformer_engine

    return {
        "num_moe_experts": config.experts.number,
        "moe_ffn_hidden_size": config.experts.intermediate_size,
        "moe_router_topk": config.experts.per_token,
        # A softmax over the chosen ones alone is the one over all, normalised.
        "moe_router_pre_softmax": not config.experts.normalise,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": uses_transformer_engine(dtype),
        "expert_model_parallel_size": settings.expert_parallel,
        "expert_tensor_parallel_size": 1,
    }


def _recompute_settings(settings: ActorConfig, dtype: torch.dtype) -> dict[str, Any]:
    if settings.recompute == "none":
        return {}
    if settings.recompute == "selective":
        from megatron_empg.actor.layer_spec import uses_transformer_engine

        if uses_transformer_engine(dtype):
            logger.warning(
                "actor.recompute=selective computes attention again, of which Transformer Engine keeps no more "
                "than the statistics: it costs a forward pass and saves next to nothing; use none or block"
            )
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    whole: dict[str, Any] = {"recompute_granularity": "full"}
    if settings.recompute == "full":
        return {**whole, "recompute_method": "uniform", "recompute_num_layers": 1}
    return {**whole, "recompute_method": "block", "recompute_num_layers": settings.recompute_layers}


def build_model(config: ModelConfig, settings: ActorConfig, dtype: torch.dtype) -> tuple[list[Any], Any]:
    """(this stage's model chunks under Megatron's DistributedDataParallel, their TransformerConfig)."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    mcore = transformer_config(config, settings, dtype)
    replication = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=settings.overlap,
        overlap_param_gather=settings.overlap and settings.distributed_optimizer,
        use_distributed_optimizer=settings.distributed_optimizer,
    )
    chunks = []
    for number in range(settings.virtual_pipeline):
        module = _chunk(config, settings, mcore, number)
        replicated = DistributedDataParallel(
            config=mcore,
            ddp_config=replication,
            module=module,
            # Only the first chunk's communication is on the critical path.
            disable_bucketing=number > 0,
        )
        chunks.append(replicated)
    mcore.finalize_model_grads_func = finalize_model_grads
    mcore.grad_scale_func = None  # set by the optimizer in fp16 only
    if settings.overlap:
        no_sync = [chunk.no_sync for chunk in chunks]
        mcore.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return chunks, mcore


def _chunk(config: ModelConfig, settings: ActorConfig, mcore: Any, number: int) -> Any:
    """One of the stage's model chunks, its LM head fused."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel

    from megatron_empg.actor.layer_spec import block_spec
    from megatron_empg.actor.lm_head import fuse_lm_head
    from megatron_empg.actor.platform import device
    from megatron_empg.actor.rope import scaled_frequencies
    from megatron_empg.upstream.megatron_model import one_rotary_table, set_rotary_frequencies

    spec = block_spec(config, mcore.params_dtype)
    if callable(spec):
        spec = spec(config.num_layers // settings.chunks)
    stage = {"ignore_virtual": False, "vp_stage": number if settings.virtual_pipeline > 1 else None}
    model: Any = GPTModel(
        config=mcore,
        transformer_layer_spec=spec,
        vocab_size=config.padded_vocab_size(settings.tensor_parallel),
        max_sequence_length=config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**stage),
        post_process=parallel_state.is_pipeline_last_stage(**stage),
        parallel_output=True,
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=config.rope_theta,  # type: ignore[arg-type]
        vp_stage=stage["vp_stage"],
    )
    if config.rope_scaling is not None:
        set_rotary_frequencies(model, partial(scaled_frequencies, scaling=config.rope_scaling))
    one_rotary_table(model, config.max_position_embeddings)
    fuse_lm_head(model, vocab_size=config.vocab_size)
    model = model.to(device())
    if mcore.bf16:
        return model.bfloat16()
    return model
