"""Seconds to bring a model's weights into running engines, beside a raw broadcast of the same bytes in one run.

    python bench/weight_sync.py
    python bench/weight_sync.py --layers 24 --tensor-parallel 2

Real engines (CPU, gloo) and a trainer of one rank or several. The push of `WeightPublisher`, from pausing the
engines to resuming them, takes turns with a raw gloo broadcast of one flat tensor of as many bytes to as many
receiving processes; of each the least over all turns is reported, with the median. Targets: a push moves at
least 0.7 of the raw broadcast's bytes a second; two engines cost at most 1.3 times one.
"""

import argparse
import json
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_empg.rollout.launch import EngineProcess, free_port, start_engine
from megatron_empg.weights.broadcast import BroadcastGroup, open_store

TOKENIZER = Path(__file__).parent.parent / "recipes" / "miniature" / "tokenizer"
HOST = "127.0.0.1"


def save_model(folder: Path, layers: int) -> int:
    """A random Qwen2 in float32; returns its bytes. 12 layers are about 200 MB."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=16_384, hidden_size=512, intermediate_size=1_792, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).float()
    model.save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy2(file, folder)
    return sum(4 * parameter.numel() for parameter in model.parameters())


def receive_raw(rank: int, port: int, world_size: int, elements: int, turns: int) -> None:
    """A process that does nothing but receive."""
    torch.set_num_threads(1)
    group = BroadcastGroup.join(HOST, port, rank, world_size, 600.0)
    buffer = torch.empty(elements)
    for _ in range(turns):
        group.broadcast(buffer)


class RawBroadcast:
    """One flat float32 tensor to a number of processes; each `send` waits until all have it."""

    def __init__(self, receivers: int, elements: int, turns: int) -> None:
        self.buffer = torch.randn(elements)
        store = open_store(HOST, receivers + 1, 600.0)
        context = mp.get_context("spawn")
        for rank in range(1, receivers + 1):
            arguments = (rank, store.port, receivers + 1, elements, turns)
            context.Process(target=receive_raw, args=arguments, daemon=True).start()
        self.group = BroadcastGroup(HOST, store, 0, receivers + 1, 600.0)

    def send(self) -> float:
        started = time.perf_counter()
        self.group.broadcast(self.buffer)
        return time.perf_counter() - started


def trainer(rank: int, world_size: int, port: int, arguments: argparse.Namespace, job: dict[str, Any]) -> None:
    """One trainer rank; rank 0 measures and writes the seconds of each turn."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR=HOST)
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    from megatron_empg.actor.actor import Actor
    from megatron_empg.actor.layout import Layout
    from megatron_empg.actor.optimizer import OptimizerSettings
    from megatron_empg.weights.model_config import ModelConfig
    from megatron_empg.weights.transfer import WeightPublisher

    layout = Layout(tensor=arguments.tensor_parallel, pipeline=arguments.pipeline_parallel)
    actor = Actor(ModelConfig.from_folder(Path(job["model"])), layout, OptimizerSettings(lr=1e-3))
    actor.load_weights(Path(job["model"]))
    seconds: dict[str, list[float]] = {}
    for engines in (1, 2):
        weights = actor.weights()
        if rank == 0:
            publisher = WeightPublisher(job["urls"][:engines], job["token"], device="cpu", timeout=600.0)
            publisher.connect(weights)
            raw = RawBroadcast(engines, job["bytes"] // 4, arguments.turns)
        for turn in range(arguments.turns):
            dist.barrier()
            if rank == 0:
                seconds.setdefault(f"raw {engines}", []).append(raw.send())
                seconds.setdefault(f"push {engines}", []).append(publisher.publish(weights, turn).seconds)
            else:
                for _ in weights:
                    pass
        if rank == 0:
            publisher.close()
    if rank == 0:
        Path(job["results"]).write_text(json.dumps(seconds))


def start_engines(model: Path, token: str, folder: Path) -> list[EngineProcess]:
    engines = [
        start_engine(
            model, port=free_port(), token=token, log_path=folder / f"engine{index}.log",
            max_model_len=512, max_num_seqs=4, kv_cache_bytes=32 << 20,
        )
        for index in range(2)
    ]  # fmt: skip
    for engine in engines:
        engine.wait_healthy(600.0)
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    token = secrets.token_hex(16)
    engines: list[EngineProcess] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = save_model(folder / "model", arguments.layers)
        try:
            engines = start_engines(folder / "model", token, folder)
            world_size = arguments.tensor_parallel * arguments.pipeline_parallel
            job = {
                "model": str(folder / "model"), "urls": [engine.url for engine in engines], "token": token,
                "bytes": size, "results": str(folder / "results.json"),
            }  # fmt: skip
            # Not daemons: rank 0 starts the raw broadcast's receivers.
            mp.start_processes(
                trainer, (world_size, free_port(), arguments, job), world_size, daemon=False, start_method="spawn"
            )
            report(size, json.loads((folder / "results.json").read_text()))
        finally:
            for engine in engines:
                engine.stop()


def report(size: int, seconds: dict[str, list[float]]) -> None:
    """Ratios of the least, those of the medians in brackets."""
    print(f"{size / 1e6:.0f} MB, {len(seconds['raw 1'])} turns; seconds: least (median)")
    for name, values in seconds.items():
        print(f"  {name} engine(s): {min(values):.3f} ({statistics.median(values):.3f})")

    def ratio(above: str, below: str) -> str:
        values = (of(seconds[above]) / of(seconds[below]) for of in (min, statistics.median))
        return "{:.2f} ({:.2f})".format(*values)

    print(f"push against raw broadcast, one engine: {ratio('raw 1', 'push 1')} of its speed")
    print(f"push against raw broadcast, two engines: {ratio('raw 2', 'push 2')} of its speed")
    print(f"two engines against one: {ratio('push 2', 'push 1')} times the seconds")


if __name__ == "__main__":
    sys.exit(main())
