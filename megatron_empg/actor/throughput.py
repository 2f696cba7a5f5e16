"""How fast the actor worked, and what share of the device's peak that is."""

from dataclasses import dataclass

import torch

from megatron_empg.common.gpus import peak_tflops


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
        peak = peak_tflops(device_name)
        if peak is None:
            return None
        return self.tflops_per_rank / peak

    def metrics(self, prefix: str) -> dict[str, float]:
        """``PREFIX_tokens_per_second``, ``PREFIX_tflops_per_rank`` and, on a known device, ``PREFIX_mfu``."""
        mfu = self.mfu()
        metrics = {
            f"{prefix}_tokens_per_second": self.tokens_per_second,
            f"{prefix}_tflops_per_rank": self.tflops_per_rank,
        }
        if mfu is not None:
            metrics[f"{prefix}_mfu"] = mfu
        return metrics
