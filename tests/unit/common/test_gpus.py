"""What GPUs can do."""

import pytest

from megatron_empg.common.gpus import GPUS, PEAK_TFLOPS, peak_tflops


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_follows_from_the_words_of_a_devices_name(device: str, peak: float | None) -> None:
    assert peak_tflops(device) == peak


def test_every_gpu_of_the_planner_has_a_peak_and_its_own_name() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.tflops == PEAK_TFLOPS[(name,)] == peak_tflops(f"NVIDIA {name} SXM")
