"""What GPUs can do, from NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GPUS_PER_NODE = 8
"""Of an HGX or DGX node."""

PEAK_TFLOPS = {
    ("H100", "PCIE"): 756.0,
    ("H100", "NVL"): 835.0,
    ("H200", "NVL"): 835.0,
    ("A100",): 312.0,
    ("H100",): 989.0,
    ("H200",): 989.0,
    ("GH200",): 989.0,
    ("B200",): 2250.0,
}
"""Dense bfloat16 peaks by words of the device's name, the first that fit."""


@dataclass(frozen=True)
class Gpu:
    """The SXM part of a name, its links each counted in one direction."""

    name: str
    memory_gib: float
    """That CUDA offers, which is less than the name says."""
    bandwidth: float
    """Of the memory, bytes per second."""
    nvlink: float
    """To the other GPUs of a node, bytes per second."""
    network: float = 50e9
    """To other nodes, bytes per second: one 400 Gb/s adapter per GPU, as in DGX H100."""

    @property
    def tflops(self) -> float:
        """The dense bfloat16 peak."""
        return PEAK_TFLOPS[(self.name,)]


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 79, 2.0e12, 300e9, network=25e9),
        Gpu("H100", 79, 3.35e12, 450e9),
        Gpu("H200", 139, 4.8e12, 450e9),
        Gpu("B200", 178, 8.0e12, 900e9),
    )
}


def peak_tflops(device_name: str) -> float | None:
    """The dense bfloat16 peak of the device that CUDA calls so; None where it is not known."""
    words = set(device_name.upper().replace("-", " ").split())
    for name, peak in PEAK_TFLOPS.items():
        if words.issuperset(name):
            return peak
    return None
