"""Model FLOPs and what share of the peak they are."""

from pathlib import Path

import pytest
import torch

from megatron_empg.actor.throughput import Throughput
from megatron_empg.weights.mapping.flops import flops_by_part, forward_flops
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.support.models import save_random_model


@pytest.mark.parametrize("shape", ["qwen2", "qwen3_moe"])
def test_forward_flops_equal_torchs_count(tmp_path: Path, shape: str) -> None:
    """torch counts attention's whole square and so twice the causal half; the rest is equal to the operation."""
    from torch.utils.flop_counter import FlopCounterMode

    model = save_random_model(tmp_path, shape)
    model.set_attn_implementation("eager")
    config = ModelConfig.from_folder(tmp_path)
    if config.experts:
        model.set_experts_implementation("eager")  # torch does not count grouped products
    length, predicted = 48, 10
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long), logits_to_keep=predicted)
    parts = flops_by_part(config, length, predicted)
    assert sum(parts.values()) + parts["attention"] == counter.get_total_flops()
    head_everywhere = forward_flops(config, length) - forward_flops(config, length, predicted)
    assert head_everywhere == 2 * (length - predicted) * config.hidden_size * config.vocab_size


def test_mfu_is_the_share_of_the_devices_peak() -> None:
    measured = Throughput(tokens=8192, seconds=2.0, flops_per_rank=989e12)
    assert measured.tokens_per_second == 4096
    assert measured.mfu("NVIDIA H200") == pytest.approx(0.5)
    assert measured.mfu("NVIDIA A100-SXM4-80GB") == pytest.approx(989 / 2 / 312)
    assert measured.mfu("NVIDIA H100 80GB HBM3") == pytest.approx(0.5)
    assert measured.mfu("NVIDIA H100 PCIe") == pytest.approx(989 / 2 / 756)
    assert measured.mfu("NVIDIA H100 NVL") == pytest.approx(989 / 2 / 835)
    assert measured.mfu("a device nobody knows") is None
    assert "policy_mfu" not in measured.metrics("policy") or torch.cuda.is_available()
