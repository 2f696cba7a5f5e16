"""vLLM's API server: who may talk to it, and how its engine is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_empg.upstream.record import patch

if TYPE_CHECKING:
    from fastapi import FastAPI

_TESTED = ("0.32.0",)


@patch(
    "vllm",
    symptom="whoever reaches the port can pause the engine and change its weights without the token",
    trigger="an engine that listens beyond its own machine",
    why=(
        "--api-key guards /v1 alone, and vLLM's last step has built the stack of middlewares, so that "
        "add_middleware refuses"
    ),
    versions=_TESTED,
    can_go_when="--api-key guards every route, or --middleware can be put outermost",
)
def put_outermost(middleware: Any, **settings: Any) -> None:
    """Put a middleware (its class) around the application vLLM builds, outside all of vLLM's own."""
    from starlette.middleware import Middleware
    from vllm.entrypoints.launchers.api_server import entry

    build_app = entry.build_app

    def build_guarded_app(*args: Any, **kwargs: Any) -> FastAPI:
        app = build_app(*args, **kwargs)
        # add_middleware() refuses here: vLLM's last step has built the stack already.
        app.user_middleware.insert(0, Middleware(middleware, **settings))
        app.middleware_stack = app.build_middleware_stack()
        return app

    entry.build_app = build_guarded_app


@patch(
    "vllm",
    symptom="an engine on CPU starts in twice the time: its core imports all over again",
    trigger="an engine of one thread on CPU",
    why=(
        "vLLM's CPU platform insists on spawn, whatever VLLM_WORKER_MULTIPROC_METHOD says, for the sake of OpenMP "
        "threads; with one thread there are none to lose"
    ),
    versions=_TESTED,
    can_go_when="the CPU platform leaves VLLM_WORKER_MULTIPROC_METHOD=fork as it is",
)
def fork_engine_core() -> None:
    """Start the engine core by fork: it inherits our imports, which are most of a start on CPU."""
    import multiprocessing

    import vllm.v1.engine.utils as engine_utils

    engine_utils.get_mp_context = lambda: multiprocessing.get_context("fork")
