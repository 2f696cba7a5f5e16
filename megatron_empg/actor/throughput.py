"""How fast the actor worked, and what share of the device's peak that is."""

from dataclasses import dataclass

import torch

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
"""Dense bfloat16 peaks by words of the device's name, the first that fit; source: NVIDIA's data sheets."""


@dataclass(frozen=True)
class Throughput:
    """Tokens of all ranks, and one rank's share of the model's floating-point operations, in so many seconds."""

    tokens: int
    seconds: float
    flops_per_rank: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tflops_per_rank(self) -> float:
        return self.flops_per_rank / self.seconds / 1e12

    def mfu(self, device_name: str | None = None) -> float | None:
        """Model FLOPs utilisation, recomputation not counted; None where the device's peak is not known."""
        if device_name is None:
            if torch.version.cuda is None or not torch.cuda.is_available():
                return None
            device_name = torch.cuda.get_device_name()
        words = set(device_name.upper().replace("-", " ").split())
        peak = next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name)), None)
        return None if peak is None else self.tflops_per_rank / peak

    def metrics(self, prefix: str) -> dict[str, float]:
        """``PREFIX_tokens_per_second``, ``PREFIX_tflops_per_rank`` and, on a known device, ``PREFIX_mfu``."""
        mfu = self.mfu()
        return {
            f"{prefix}_tokens_per_second": self.tokens_per_second,
            f"{prefix}_tflops_per_rank": self.tflops_per_rank,
            **({} if mfu is None else {f"{prefix}_mfu": mfu}),
        }
