"""Without an entry of `megatron_empg.upstream`: what is seen of vLLM. See `fresh`."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import nn

from megatron_empg.upstream import vllm_reload, vllm_server
from tests.unit.upstream.one_rank import symptom_of

EARLY = ()


def prepare() -> None:
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    for name in (
        "entrypoints.launchers.api_server.entry",
        "entrypoints.launchers.cli_args",
        "v1.engine.utils",
        "distributed.weight_transfer.factory",
        "model_executor.model_loader.reload.layerwise",
    ):
        importlib.import_module(f"vllm.{name}")


# Reloading weights


def case_register_once() -> str:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    vllm_reload.register_once("here", WeightTransferEngine)
    vllm_reload.register_once("here", WeightTransferEngine)
    return symptom_of(lambda: WeightTransferEngineFactory.register_engine("here", WeightTransferEngine))


def _reloading(model: nn.Module) -> None:
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload, record_metadata_for_reloading

    record_metadata_for_reloading(model)
    initialize_layerwise_reload(model)


def _send(parameter: Any, weight: torch.Tensor) -> None:
    parameter.weight_loader(parameter, weight)


def case_untouched_layers() -> str:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    _reloading(model)
    _send(model[0].weight, torch.ones(2, 2))
    assert [name for name, _ in vllm_reload.untouched_layers(model)] == ["1"]
    raised = symptom_of(lambda: finalize_layerwise_reload(model, None))
    return "" if raised else "vLLM keeps the old weights"


def case_pack_lm_head_again() -> str:
    """A head whose weight is the embedding's, as ParallelLMHead's when tied."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    class Copying(QuantizeMethodBase):
        def create_weights(self, *_: Any, **__: Any) -> None: ...

        def apply(self, *_: Any, **__: Any) -> Any: ...

        def process_weights_after_loading(self, layer: Any) -> None:
            layer.copied = layer.weight.detach().clone()

    model: Any = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embedding"].weight
    for layer in model.values():
        layer.quant_method = Copying()
        layer.quant_method.process_weights_after_loading(layer)
    _reloading(model)
    _send(model["embedding"].weight, torch.ones(3, 2))
    finalize_layerwise_reload(model, None)
    assert torch.equal(model["embedding"].weight, torch.ones(3, 2))
    stale = not torch.equal(model["head"].copied, torch.ones(3, 2))
    return "the head's copy is the old weight's" if stale else ""


# The server


class _Refusing:
    """A middleware that lets nothing in."""

    def __init__(self, app: Any, answer: int) -> None:
        self.answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.answer, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def _arguments(*given: str) -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "none", *given])


def case_put_outermost() -> str:
    """vLLM's key leaves open what is not under /v1, and its application takes no further middleware."""
    from starlette.testclient import TestClient
    from vllm.entrypoints.launchers.api_server import entry

    def answer(app: Any, path: str) -> int:
        return TestClient(app, raise_server_exceptions=False).get(path).status_code

    app = entry.build_app(_arguments("--api-key", "secret"), ("generate",))
    opened = [path for path in ("/ping", "/version", "/v1/models") if answer(app, path) != 401]
    refused = symptom_of(lambda: app.add_middleware(_Refusing, answer=418))
    vllm_server.put_outermost(_Refusing, answer=418)
    guarded = entry.build_app(_arguments(), ("generate",))
    assert {answer(guarded, path) for path in ("/ping", "/v1/models", "/none")} == {418}
    return f"{', '.join(opened)} are open; {refused}" if opened and refused else ""


def case_fork_engine_core() -> str:
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.engine import utils

    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    symptom_of(lambda: CpuPlatform.check_and_update_config(_config()))
    method = utils.get_mp_context().get_start_method()
    vllm_server.fork_engine_core()
    assert utils.get_mp_context().get_start_method() == "fork"
    return "" if method == "fork" else f"the engine core is started by {method}"


def _config() -> Any:
    from vllm.config import VllmConfig

    return VllmConfig()
