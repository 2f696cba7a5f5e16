"""Model FLOPs and what share of the peak they are."""

from pathlib import Path

import pytest
import torch
from models import save_random_model

from megatron_empg.actor.throughput import Throughput
from megatron_empg.weights.flops import forward_flops
from megatron_empg.weights.model_config import ModelConfig


def test_forward_flops_equal_torchs_count(tmp_path: Path) -> None:
    """torch counts attention's whole square and so twice the causal half; the rest is equal to the operation."""
    from torch.utils.flop_counter import FlopCounterMode

    model = save_random_model(tmp_path, "qwen2-untied")
    model.set_attn_implementation("eager")
    config = ModelConfig.from_folder(tmp_path)
    length = 48
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long))
    square = 2 * 2 * config.num_layers * config.num_heads * config.head_dim * length**2
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] >= square
    assert forward_flops(config, length) == counter.get_total_flops() - square / 2


def test_mfu_is_the_share_of_the_devices_peak() -> None:
    measured = Throughput(tokens=8192, seconds=2.0, flops_per_rank=989e12)
    assert measured.tokens_per_second == 4096
    assert measured.mfu("NVIDIA H200") == pytest.approx(0.5)
    assert measured.mfu("NVIDIA A100-SXM4-80GB") == pytest.approx(989 / 2 / 312)
    assert measured.mfu("a device nobody knows") is None
    assert "policy_mfu" not in measured.metrics("policy") or torch.cuda.is_available()
