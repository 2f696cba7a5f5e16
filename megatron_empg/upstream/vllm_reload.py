"""vLLM's layer-wise reload of weights: what it received, what it misses, and who carries the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_empg.upstream.record import patch, private_api

_TESTED = ("0.32.0",)


@private_api(
    "vllm",
    symptom="ValueError: Weight transfer engine 'empg_broadcast' is already registered",
    trigger="a worker that vLLM forked from a process which has loaded the extension",
    why="register_engine refuses a second time, and only `_registry` says whether there was a first",
    versions=_TESTED,
    can_go_when="registering the same class again is not an error, or the registry can be asked",
)
def register_once(name: str, engine: type) -> None:
    """Make a weight-transfer engine known to vLLM under a name, unless one is."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(name, engine)


@private_api(
    "vllm",
    symptom="a layer the trainer sent nothing for keeps its old weights; vLLM says so in a warning",
    trigger="a transfer that leaves a layer out, before finalize_layerwise_reload",
    why="the count of what each layer received is kept in the reload's own bookkeeping alone",
    versions=_TESTED,
    can_go_when="finalize_layerwise_reload raises for a layer without weights, or lists such layers",
)
def untouched_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, module) of the layers with parameters that the reload under way has received nothing for."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for name, module in model.named_modules():
        info = get_layerwise_info(module)
        if any(True for _ in module.parameters(recurse=False)) and info.can_load() and not info.load_numel:
            yield name, module


@patch(
    "vllm",
    symptom="an engine on CPU samples from old logits after new weights came: its LM head is stale",
    trigger="weights are reloaded into a model whose LM head is tied to its embedding, on CPU",
    why="the reload processes the embedding alone, and on CPU the head works on a packed copy",
    versions=_TESTED,
    can_go_when="the reload's limitation 2 (tied parameters) is gone from vllm/…/reload/__init__.py",
)
def pack_lm_head_again(model: Any) -> None:
    """Make the LM head's packed copy anew; on CPU, after a reload."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            head: Any = module
            head.quant_method.process_weights_after_loading(head)
