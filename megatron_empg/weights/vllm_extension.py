"""The engine's side of weight transfer over torch.distributed ("torch_pg"), for devices without NCCL.

vLLM imports this module in every worker (`worker_extension_cls`), which registers the backend. The lifecycle
(layer-wise reload, start / update / finish) is vLLM's own; only rendezvous and data movement are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_empg.weights.broadcast import BroadcastGroup, check_dtype_name

BACKEND = "torch_pg"


@dataclass
class TorchInitInfo(WeightTransferInitInfo):
    """Where the trainer waits. `rank_offset`: rank of this engine's first worker; `timeout`: seconds."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout: float


@dataclass
class TorchUpdateInfo(WeightTransferUpdateInfo):
    """What the trainer is about to broadcast, tensor by tensor, in this order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class TorchWeightTransferEngine(WeightTransferEngine[TorchInitInfo, TorchUpdateInfo]):
    """Receives whole tensors by broadcast from rank 0 and loads each as it comes."""

    init_info_cls = TorchInitInfo
    update_info_cls = TorchUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._group: BroadcastGroup | None = None

    def init_transfer_engine(self, init_info: TorchInitInfo) -> None:
        self.shutdown()  # a trainer that lost its group comes back with a new one
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        self._group = BroadcastGroup.join(
            init_info.master_address,
            init_info.master_port,
            rank=rank,
            world_size=init_info.world_size,
            timeout=init_info.timeout,
            device=self.device,
        )

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: TorchUpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("no weight transfer group: /init_weight_transfer_engine comes first")
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype_name, shape in described:
            tensor = torch.empty(shape, dtype=check_dtype_name(dtype_name), device=self.device)
            self._group.broadcast(tensor)
            self.model.load_weights([(name, tensor)])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, TorchWeightTransferEngine)


class WeightTransferExtension:
    """Mixed into vLLM's worker; importing this module is what counts."""
