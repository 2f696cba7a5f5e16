"""Megatron-core's GPTModel from a model configuration, wrapped for data parallelism."""

from typing import Any

import torch

from megatron_empg.actor.layout import Layout
from megatron_empg.weights.model_config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def transformer_config(config: ModelConfig, layout: Layout, *, dtype: str, recompute: str = "none") -> Any:
    """Megatron's TransformerConfig for this model and layout."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch_dtype = DTYPES[dtype]
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_heads,
        num_query_groups=config.num_kv_heads,
        kv_channels=config.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=config.initializer_range,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence_parallel,
        pipeline_dtype=torch_dtype,
        params_dtype=torch_dtype,
        bf16=dtype == "bfloat16",
        # Packed microbatches differ in length, so pipeline stages tell each other the shape.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # The schedule then sums gradients over tokens and divides once by the global number of them.
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        attention_softmax_in_fp32=True,
        **_recompute_settings(recompute),
    )


def _recompute_settings(recompute: str) -> dict[str, Any]:
    if recompute == "none":
        return {}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def build_model(
    config: ModelConfig, layout: Layout, *, dtype: str, distributed_optimizer: bool, recompute: str
) -> tuple[list[Any], Any]:
    """(model chunks under Megatron's DistributedDataParallel, their TransformerConfig)."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel

    from megatron_empg.actor.layer_spec import block_spec
    from megatron_empg.actor.lm_head import fuse_lm_head
    from megatron_empg.actor.platform import device

    mcore = transformer_config(config, layout, dtype=dtype, recompute=recompute)
    spec = block_spec()
    model: Any = GPTModel(
        config=mcore,
        transformer_layer_spec=spec(config.num_layers // layout.pipeline) if callable(spec) else spec,
        vocab_size=config.padded_vocab_size(layout.tensor),
        max_sequence_length=config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=config.rope_theta,  # type: ignore[arg-type]
    )
    fuse_lm_head(model, vocab_size=config.vocab_size)
    model = model.to(device())
    if dtype == "bfloat16":
        model = model.bfloat16()
    ddp = DistributedDataParallel(
        config=mcore,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=False,
            use_distributed_optimizer=distributed_optimizer,
        ),
        module=model,
    )
    mcore.finalize_model_grads_func = finalize_model_grads
    mcore.grad_scale_func = None  # set by the optimizer in fp16 only
    return [ddp], mcore
