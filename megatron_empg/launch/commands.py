"""How each process of a run is started: its command, from the plan of the run and the place. Pure functions.

`python` is the interpreter in the image. Secrets travel in the environment, never in a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.launch.run_plan import RunPlan, ServicePlan
from megatron_empg.run.names import RunPaths


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with, wherever it runs; None leaves the choice to its server.

    Example: EngineSettings("models/qwen", max_model_len=4096, dtype="bfloat16", tensor_parallel=2)
    """

    model: str
    max_model_len: int
    dtype: str = "float32"
    max_num_seqs: int = 256
    tensor_parallel: int = 1
    threads: int | None = None
    kv_cache_bytes: int | None = None
    backend: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """Those of `megatron_empg.rollout.server`, but for host and port."""
        words = [
            *("--model", self.model, "--dtype", self.dtype),
            *("--max-model-len", str(self.max_model_len), "--max-num-seqs", str(self.max_num_seqs)),
            *("--tensor-parallel", str(self.tensor_parallel)),
        ]
        chosen = {"--threads": self.threads, "--kv-cache-bytes": self.kv_cache_bytes, "--backend": self.backend}
        for name, value in chosen.items():
            if value is not None:
                words += [name, str(value)]
        return tuple(words)


@dataclass(frozen=True)
class TrainerPlace:
    """A node's part of the trainer: which of how many it is, its ranks, and where all ranks meet."""

    ranks: int
    """On this node."""
    address: str
    """Of the first node, where all ranks meet."""
    port: int
    nodes: int = 1
    number: int = 0
    """Of this node among them."""


def engine(
    python: str, arguments: Sequence[str], host: str, port: int, extra: Sequence[str] = ()
) -> tuple[str, ...]:
    """One engine. `arguments` as EngineSettings has them; `extra` go to vLLM unchanged."""
    command = (python, "-m", "megatron_empg.rollout.server", *arguments, "--host", host, "--port", str(port))
    return (*command, "--", *extra) if extra else command


def driver(python: str, plan: RunPlan, host: str, port: int, engines: Sequence[str]) -> tuple[str, ...]:
    """The rollout service. `engines` are their URLs."""
    module = "megatron_empg.launch.rollout_service"
    return (python, "-m", module, recipe_of(plan), "--host", host, "--port", str(port), *engine_words(engines))


def service(python: str, plan: ServicePlan, host: str, port: int) -> tuple[str, ...]:
    """A server that the environment asks for."""
    return (python, *plan.arguments, "--host", host, "--port", str(port))


def trainer(
    python: str, plan: RunPlan, place: TrainerPlace, driver_url: str = "", engines: Sequence[str] = ()
) -> tuple[str, ...]:
    """One node's torchrun with its ranks. The rendezvous is static: node 0 is the first one by any name."""
    worker = ["-m", "megatron_empg.trainer.worker", plan.kind, recipe_of(plan)]
    if driver_url:
        worker += ["--driver", driver_url]
    return (
        *(python, "-m", "megatron_empg.launch.torchrun"),
        *("--nnodes", str(place.nodes), "--node-rank", str(place.number)),
        *("--nproc-per-node", str(place.ranks)),
        *("--master-addr", place.address, "--master-port", str(place.port)),
        *worker,
        *engine_words(engines),
    )


def watchdog(python: str, plan: RunPlan, stall: str = "", silence: str = "") -> tuple[str, ...]:
    """The watchdog; `stall` and `silence` in seconds, its own choice where they are empty."""
    command = [python, "-m", "megatron_empg.cluster.watchdog", plan.run_folder]
    if stall:
        command += ["--stall", stall]
    if silence:
        command += ["--silence", silence]
    return tuple(command)


def preflight(
    python: str, plan: RunPlan, gpus: int, ports: str, json_path: str, extra: Sequence[str] = ()
) -> tuple[str, ...]:
    """The checks of every node, one task on each. `gpus` of a node, 0 for a run without; `ports` as "1-2,5"."""
    device = ("--gpu", "--gpus", str(gpus)) if gpus else ("--no-gpu",)
    words = (python, "tools/preflight.py", recipe_of(plan), *device, "--ports", ports, "--json", json_path)
    return (*words, *extra)


def conversion(python: str, source: str, target: str, like: str = "") -> tuple[str, ...]:
    """A Megatron checkpoint becomes a Hugging Face folder; config and tokenizer of `like` where it is given."""
    command = [python, "tools/convert_checkpoint.py", "to-hf", source, target]
    if like:
        command += ["--like", like]
    return tuple(command)


def recipe_of(plan: RunPlan) -> str:
    """The resolved recipe, which every process of the run reads."""
    return str(RunPaths(plan.run_folder).recipe)


def heartbeat_of(plan: RunPlan) -> str:
    """The file in which the trainer's rank 0 says what it does."""
    return str(RunPaths(plan.run_folder).heartbeat(0))


def engine_words(urls: Sequence[str]) -> list[str]:
    """The options by which driver and trainer learn of the engines."""
    words = []
    for url in urls:
        words += ["--engine", url]
    return words


def url_of(host: str, port: int) -> str:
    """An IPv6 address stands in brackets there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
