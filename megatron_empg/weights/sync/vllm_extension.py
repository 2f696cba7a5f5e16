"""The engine's side of weight transfer, over gloo on a CPU and over NCCL on a GPU.

vLLM imports this module in every worker (`worker_extension_cls`), which registers it. The lifecycle (layer-wise
reload, start / update / finish) and NCCL's communicators are vLLM's own; rendezvous and data movement are ours,
since vLLM's engines have one sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_empg.upstream import vllm_reload
from megatron_empg.weights.sync.checksums import Arrival
from megatron_empg.weights.sync.receiver import AnnouncedTensors, Receiver, SenderAddresses


@dataclass
class BroadcastInitInfo(SenderAddresses, WeightTransferInitInfo):
    """Where the trainer's senders wait, as vLLM wants to be told."""


@dataclass
class BroadcastUpdateInfo(AnnouncedTensors, WeightTransferUpdateInfo):
    """What they are about to broadcast, as vLLM wants to be told."""


class CheckedReload(WeightTransferEngine[Any, Any]):
    """vLLM's layer-wise reload, made whole: a broken session can be followed by a new one, a tensor that arrived
    changed and a layer that received nothing are errors, and a tied LM head takes part."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            if not update_info:
                raise RuntimeError("the trainer abandoned this weight update")
            super().update_weights(update_info)
        except BaseException:
            # Puts every unfinished layer back together, so that a new session starts from a sound model.
            # (A mix of old and new weights: the trainer keeps this engine paused until it has sent all again.)
            self.break_off()
            self._finalize()
            raise

    def finish_weight_update(self) -> None:
        """Raises RuntimeError naming the layers that received nothing (vLLM would keep their old weights)."""
        untouched = self._untouched_layers()
        self._finalize()
        if untouched:
            raise RuntimeError(f"the trainer sent no weights for {', '.join(untouched[:8])}")

    def break_off(self) -> None:
        """Let go of senders that still wait for this worker."""

    @property
    def worker_rank(self) -> int:
        """The rank of this worker among those of its engine."""
        parallel = self.parallel_config
        return int(parallel.data_parallel_index * parallel.world_size + parallel.rank)

    def arrival(self) -> Arrival:
        """A new `Arrival` for the transfer that begins; for engines that take tensors otherwise than by groups."""
        return Arrival(f"worker {self.worker_rank}")

    def _untouched_layers(self) -> list[str]:
        tied = getattr(self.model_config.hf_text_config, "tie_word_embeddings", False)
        found = []
        for name, module in vllm_reload.untouched_layers(self.model):
            if not (tied and isinstance(module, ParallelLMHead)):
                found.append(name)
        return found

    def _finalize(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            vllm_reload.pack_lm_head_again(self.model)


class BroadcastWeightEngine(CheckedReload):
    """Receives whole tensors by broadcast from the trainer's senders and loads each as it comes."""

    init_info_cls = BroadcastInitInfo
    update_info_cls = BroadcastUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        serves: Any = self.model_config.dtype  # a name before vLLM has read the config, a dtype after it
        self._receiver = Receiver(self.worker_rank, serves, self.device)

    def init_transfer_engine(self, init_info: BroadcastInitInfo) -> None:
        self._receiver.join(init_info)

    def receive_weights(self, update_info: BroadcastUpdateInfo) -> None:
        model: Any = self.model
        arriving = self._receiver.weights(update_info)
        # One call for all: each walks over the whole model once.
        model.load_weights(arriving)
        for name, _ in arriving:
            raise RuntimeError(f"the model has not taken {name}, and none behind it")

    def break_off(self) -> None:
        self._receiver.close()

    def shutdown(self) -> None:
        self._receiver.close()


ENGINES: dict[str, type[WeightTransferEngine]] = {"empg_broadcast": BroadcastWeightEngine}
for _name, _engine in ENGINES.items():
    vllm_reload.register_once(_name, _engine)


class WeightTransferExtension:
    """Mixed into vLLM's worker; importing this module is what counts."""
