"""One rollout engine: vLLM's own API server behind the run's token.

    EMPG_TOKEN=… python -m megatron_empg.rollout.server --model DIR --port 8000

Runs what `vllm serve` runs (AsyncLLM, its FastAPI application, its launcher), token in and token out at
/inference/v1/generate, with the weight-transfer routes. Arguments after `--` go to vLLM unchanged.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_empg.common.options import Port, parse_command_line
from megatron_empg.common.processes import die_with_parent, forked_children_die_with_parent
from megatron_empg.rollout.access import TokenMiddleware, token_from_environment
from megatron_empg.upstream import vllm_server

WORKER_EXTENSION = "megatron_empg.weights.sync.vllm_extension.WeightTransferExtension"


Model = Annotated[str, typer.Option(help="Folder of a Hugging Face checkpoint with its tokenizer.")]
MaxModelLen = Annotated[int, typer.Option(min=2, help="Tokens of prompt and answer together.")]
Host = Annotated[str, typer.Option(help="Interface to listen on; loopback if not given.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Sequences generated at once.")]
KvCacheBytes = Annotated[
    int | None, typer.Option(min=1, help="Size of the KV cache; what vLLM finds free if not given.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of the engine (CPU builds).")]
Backend = Annotated[Literal["broadcast"], typer.Option(help="Weight transfer.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the engine; every request brings its own.")]


@dataclass(frozen=True)
class ServerOptions:
    """One rollout engine. Arguments after `--` go to vLLM unchanged."""

    model: Model
    port: Port
    max_model_len: MaxModelLen
    host: Host = "127.0.0.1"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "float32"
    max_num_seqs: MaxNumSeqs = 256
    kv_cache_bytes: KvCacheBytes = None
    tensor_parallel: Annotated[int, typer.Option(min=1)] = 1
    threads: Threads = 1
    backend: Backend = "broadcast"
    seed: Seed = 0


def parse_arguments(argv: list[str]) -> tuple[ServerOptions, list[str]]:
    """Our arguments, and those after `--` for vLLM."""
    own, extra = argv, []
    if "--" in argv:
        dashes = argv.index("--")
        own, extra = argv[:dashes], argv[dashes + 1 :]
    return parse_command_line(ServerOptions, own), extra


def check_model(folder: str) -> None:
    """Raises SystemExit, before anything slow, for a folder vLLM could not load."""
    if not Path(folder, "config.json").is_file():
        raise SystemExit(f"--model {folder}: no config.json there. Give the folder of a Hugging Face checkpoint.")


def set_environment(args: ServerOptions, *, cuda: bool) -> None:
    """What vLLM reads from the environment. Must run before vllm is imported."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # weight transfer, pause and checksum routes
    # Clients drop an idle connection after 15 s; the server must not do so first, as a request may be on its way.
    os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "120"
    # Its counters are read from /metrics; in the log they would come every ten seconds.
    os.environ.setdefault("VLLM_LOG_STATS_INTERVAL", "86400")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if cuda:
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        return
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling costs more than it brings on small CPU models
    if args.tensor_parallel == 1:
        # The CPU platform would put the one worker into a third process; this keeps it in the engine core.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        cores = sorted(os.sched_getaffinity(0))
        binds = [cores[rank % len(cores)] for rank in range(args.tensor_parallel)]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(core) for core in binds))


def vllm_arguments(args: ServerOptions, extra: list[str], *, cuda: bool) -> list[str]:
    """The command line of `vllm serve` for our arguments."""
    command = ["--model", args.model, "--host", args.host, "--port", str(args.port)]
    command += ["--dtype", args.dtype, "--max-model-len", str(args.max_model_len)]
    command += ["--max-num-seqs", str(args.max_num_seqs), "--seed", str(args.seed)]
    command += ["--tensor-parallel-size", str(args.tensor_parallel)]
    # Sampling is what each request says, never what the checkpoint's generation_config.json says.
    command += ["--generation-config", "vllm"]
    # Log-probs of the distribution really sampled from (after the temperature).
    command += ["--logprobs-mode", "processed_logprobs"]
    command += ["--weight-transfer-config", f'{{"backend": "empg_{args.backend}"}}']
    command += ["--worker-extension-cls", WORKER_EXTENSION]
    command += ["--enable-scale-out", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
    if args.dtype != "float32":
        # Logits rounded to 16 bits would be off by up to 0.06 at a logit of 16; the actor's are float32.
        command += ["--hf-overrides", '{"head_dtype": "float32"}']
    if args.kv_cache_bytes is not None:
        command += ["--kv-cache-memory-bytes", str(args.kv_cache_bytes)]
    if not cuda:
        # Blocks of 32 tokens (the CPU default is 128) let short prompts share their prefix.
        command += ["--enforce-eager", "--block-size", "32"]
        # A prompt computed in parts draws a token that is discarded, and vLLM then winds the request's random
        # generator back: CPU generators cannot be, and the engine would die.
        budget = max(8192, args.max_model_len)
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]
    return command + extra


def main(argv: list[str] | None = None) -> None:
    args, extra = parse_arguments(sys.argv[1:] if argv is None else argv)
    token = token_from_environment()
    check_model(args.model)
    die_with_parent()
    # A start is mostly imports; a sixth of their time is the collector looking at what nobody will free.
    gc.disable()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read once, when torch is loaded
    import torch

    cuda = torch.cuda.is_available()
    set_environment(args, cuda=cuda)

    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    serve_args = make_arg_parser(FlexibleArgumentParser()).parse_args(vllm_arguments(args, extra, cuda=cuda))
    validate_parsed_serve_args(serve_args)
    # Statistics are for /metrics, which the rollout service reads once per step; the log says nothing of them.
    logging.getLogger("vllm.v1.metrics.loggers").setLevel(logging.WARNING)
    vllm_server.put_outermost(TokenMiddleware, token=token)
    if not cuda and args.threads == 1 and args.tensor_parallel == 1:
        vllm_server.fork_engine_core()
        forked_children_die_with_parent()
    gc.freeze()
    gc.enable()
    uvloop.run(run_server(serve_args))


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    # A process that vLLM spawned (engine core, tensor-parallel worker) imports this module under that name.
    die_with_parent(os.getppid())
