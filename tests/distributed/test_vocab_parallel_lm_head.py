"""The fused LM head inside megatron-core's own GPTModel, schedule and DistributedDataParallel.

Each layout computes the same loss twice, from the model's logits and by the fused head, and compares values and
the accumulated main_grad of every parameter. Three microbatches show that accumulation adds up.
"""

import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.distributed as dist

from megatron_empg.vocab_parallel import logprob_and_entropy
from tests.distributed.ranks import run_ranks

VOCAB, PADDED, HIDDEN, SEQUENCE, BATCH, MICROBATCHES = 45, 64, 16, 8, 2, 3


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    sequence_parallel: bool = False
    tied: bool = False
    overlap: bool = False
    dtype: torch.dtype = torch.float32
    # What a GPU cluster sets; here only its effect on the tied weight and the hooks is at stake.
    distributed_optimizer: bool = False

    def __str__(self) -> str:
        shape = f"tp{self.tensor}pp{self.pipeline}"
        flags = [name for name in ("sequence_parallel", "tied", "overlap", "distributed_optimizer")
                 if getattr(self, name)]  # fmt: skip
        return "-".join([shape, *flags, *(["bf16"] if self.dtype == torch.bfloat16 else [])])


LAYOUTS = {
    1: [Layout(tied=tied, overlap=overlap) for tied, overlap in itertools.product([False, True], repeat=2)]
    + [Layout(tied=True, dtype=torch.bfloat16)],
    2: [
        Layout(tensor=2, tied=tied, sequence_parallel=sp)
        for tied, sp in itertools.product([False, True], repeat=2)
    ]
    + [Layout(pipeline=2, tied=tied) for tied in (False, True)]
    + [
        Layout(pipeline=2, tied=True, overlap=True),
        Layout(tied=True, overlap=True, distributed_optimizer=True),
        Layout(tensor=2, sequence_parallel=True, dtype=torch.bfloat16),
    ],
    4: [Layout(tensor=2, pipeline=2, sequence_parallel=True, tied=True)],
}


@contextmanager
def parallel_state_of(layout: Layout):
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline)
    model_parallel_cuda_manual_seed(5)
    try:
        yield parallel_state
    finally:
        parallel_state.destroy_model_parallel()


def build(layout: Layout, fused: bool):
    """The model under DistributedDataParallel, the same weights each time, and its configuration."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_empg.actor.layer_spec import block_spec
    from megatron_empg.actor.lm_head import fuse_lm_head
    from megatron_empg.weights.mapping.model_config import ModelConfig

    dense = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 4 * HIDDEN, "vocab_size": VOCAB,
            "max_position_embeddings": SEQUENCE, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        }
    )  # fmt: skip
    model_parallel_cuda_manual_seed(5, force_reset_rng=True)
    torch.manual_seed(5)
    config = TransformerConfig(
        num_layers=2,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence_parallel,
        pipeline_dtype=layout.dtype,
        params_dtype=layout.dtype,
        bf16=layout.dtype == torch.bfloat16,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        init_method_std=0.5,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=block_spec(dense, layout.dtype)(2 // layout.pipeline),
        vocab_size=PADDED,
        max_sequence_length=SEQUENCE,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=layout.tied,
        position_embedding_type="rope",
    )
    if fused:
        fuse_lm_head(model, vocab_size=VOCAB, chunk_tokens=5)
    if layout.dtype == torch.bfloat16:
        model = Float16Module(config, model)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=layout.overlap,
        use_distributed_optimizer=layout.distributed_optimizer,
    )
    model = DistributedDataParallel(config=config, ddp_config=ddp_config, module=model)
    if layout.overlap:
        config.no_sync_func, config.grad_sync_func = model.no_sync, None
    config.finalize_model_grads_func = finalize_model_grads
    return model


def run(layout: Layout, fused: bool) -> dict[str, torch.Tensor]:
    """Outputs of the last stage, and main_grad by parameter name, after one step's microbatches."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model = build(layout, fused)
    seen: dict[str, torch.Tensor] = {}
    temperature = 0.8

    def loss(targets, batch: int, output):
        if fused:
            log_prob, entropy = output.unbind(-1)
        else:
            group = parallel_state.get_tensor_model_parallel_group()
            flat = output.reshape(-1, output.shape[-1])
            both = logprob_and_entropy(flat, targets.reshape(-1), group, vocab_size=VOCAB, temperature=temperature)
            log_prob, entropy = (x.view(targets.shape) for x in both)
        seen[f"log-prob {batch}"], seen[f"entropy {batch}"] = log_prob.detach(), entropy.detach()
        return (log_prob * 2 - 0.3 * entropy).mean(), {}

    def forward_step(batches, model):
        batch = next(batches)
        generator = torch.Generator().manual_seed(batch)
        tokens = torch.randint(0, VOCAB, (BATCH, SEQUENCE), generator=generator)
        targets = torch.randint(0, VOCAB, (BATCH, SEQUENCE), generator=generator)
        targets[:, batch : batch + 3] = -100
        positions = torch.arange(SEQUENCE).expand(BATCH, -1)
        mask = torch.ones(1, 1, SEQUENCE, SEQUENCE).triu(1).bool()
        extra = {"labels": targets, "temperature": temperature} if fused else {}
        return model(tokens, positions, mask, **extra), partial(loss, targets, batch)

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(range(MICROBATCHES)),
        model=[model],
        num_microbatches=MICROBATCHES,
        seq_length=SEQUENCE,
        micro_batch_size=BATCH,
        forward_only=False,
    )
    for name, parameter in model.named_parameters():
        seen[f"main_grad of {name}"] = parameter.main_grad.clone()
        assert parameter.grad is None, f"the hook of {name} did not run"
    return seen


def check(layout: Layout) -> str:
    """Empty if both ways agree, else what differs."""
    with parallel_state_of(layout):
        plain, fused = run(layout, fused=False), run(layout, fused=True)
    if plain.keys() != fused.keys():
        return f"keys differ: {plain.keys() ^ fused.keys()}"
    # In bf16 the plain way rounds the logits, the fused one does not.
    tolerance = 1e-5 if layout.dtype == torch.float32 else 5e-2
    wrong = []
    for name, expected in plain.items():
        if not bool(expected.abs().sum() > 0) and "layernorm" not in name:
            wrong.append(f"{name} is all zero")
        scale = float(expected.abs().max())
        error = float((fused[name] - expected).abs().max())
        if not error <= tolerance * max(scale, 1.0):
            wrong.append(f"{name}: off by {error:.2e} at a scale of {scale:.2e}")
    return "; ".join(wrong)


def check_layouts(layouts: list[Layout]) -> dict[str, str]:
    from megatron_empg.actor import platform

    platform.prepare()
    torch.distributed.init_process_group("gloo")
    answers = {}
    for layout in layouts:
        try:
            answers[str(layout)] = check(layout)
        except Exception as error:
            answers[str(layout)] = repr(error)
            raise
    dist.barrier()
    return answers


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_fused_head_equals_the_models_logits(world_size: int) -> None:
    for rank, answers in enumerate(run_ranks(check_layouts, world_size, LAYOUTS[world_size])):
        assert answers == {str(layout): "" for layout in LAYOUTS[world_size]}, f"rank {rank}"
