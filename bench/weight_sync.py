"""Seconds to bring a model's weights into running engines, beside a raw broadcast of the same bytes in one run.

    python bench/weight_sync.py
    python bench/weight_sync.py --layers 24 --tensor-parallel 2
    python bench/weight_sync.py --pipeline-parallel 2

Real engines (CPU, gloo) and a trainer of one rank or several. Three take turns, each to one receiver and to two;
of each the least over all turns is reported, with the median:

- raw: a gloo broadcast of one flat tensor of as many bytes to processes that do nothing but receive;
- transfer: the actor's tensors with their checksums, gathered and split under their Hugging Face names by every
  rank that sends, to such processes, which sum them up too;
- push: `WeightPublisher.publish` to engines, from pausing them to resuming them; beside the transfer, vLLM loads
  every tensor and packs it anew for its CPU kernels.

Targets: 0.7 of the raw broadcast's bytes per second; two engines cost at most 1.3 times one.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_empg.launch.engine_process import EngineProcess, start_engine
from megatron_empg.launch.ports import free_port
from megatron_empg.weights.sync.broadcast import BroadcastGroup, open_store
from megatron_empg.weights.sync.broadcast_sender import BroadcastSender, announced
from megatron_empg.weights.sync.receiver import AnnouncedTensors, Receiver, SenderAddresses
from megatron_empg.weights.sync.source import CheckedStream
from megatron_empg.weights.sync.together import TrainerRanks

TOKENIZER = Path(__file__).parent.parent / "recipes" / "miniature" / "tokenizer"
HOST = "127.0.0.1"
LIMIT = 600.0
"""Seconds that a broadcast may wait."""
CPU = torch.device("cpu")


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


def receive_raw(rank: int, port: int, world_size: int, size: int, turns: int) -> None:
    """A process that does nothing but receive one float32 tensor, turn after turn."""
    torch.set_num_threads(1)
    group = BroadcastGroup.join(HOST, port, rank, world_size, LIMIT)
    for _ in range(turns):
        group.broadcast(torch.empty(size))


class Raw:
    """A plain broadcast from rank 0 to so many processes."""

    def __init__(self, count: int, flat: torch.Tensor, turns: int) -> None:
        store = open_store(HOST, 0, count + 1, LIMIT)
        for rank in range(1, count + 1):
            start(receive_raw, rank, store.port, count + 1, flat.numel(), turns)
        self.flat, self.group = flat, BroadcastGroup(HOST, store, 0, count + 1, LIMIT)

    def send(self) -> float:
        """Seconds until all is sent."""
        started = time.perf_counter()
        self.group.broadcast(self.flat)
        return time.perf_counter() - started


def receive(worker: int, meeting: SenderAddresses, update: AnnouncedTensors, turns: int) -> None:
    """A process that receives what an engine's worker does, checks it, and loads nothing."""
    torch.set_num_threads(1)
    receiver = Receiver(worker, torch.float32)
    receiver.join(meeting)
    for _ in range(turns):
        for _tensor in receiver.weights(update, CPU):
            pass


class Transfer:
    """Of every trainer rank: what it sends, to so many processes."""

    def __init__(self, count: int, weights: Any, turns: int) -> None:
        self.weights, ranks = weights, TrainerRanks()
        self.sender = None if weights.sender is None else BroadcastSender(HOST, 0, count + 1, LIMIT)
        own = None if self.sender is None else (weights.sender, self.sender.address)
        listening = [found for found in ranks.gathered(own) if found is not None]
        addresses: list[list[str | int]] = [[host, port] for _sender, (host, port) in sorted(listening)]
        if ranks.rank == 0:
            for worker in range(count):
                start(
                    receive,
                    worker,
                    SenderAddresses(addresses, 1, count + 1, LIMIT),
                    announced(weights.stages()),
                    turns,
                )
        if self.sender:
            self.sender.join()

    def send(self) -> float:
        """Seconds until all ranks have sent theirs."""
        declared = []
        for stage in self.weights.stages():
            own = [sent for sent in stage if sent.sender == self.weights.sender]
            declared += [(sent.name, sent.dtype, sent.shape) for sent in own]
        stream = CheckedStream(declared, self.weights.own_part(), device=CPU)
        dist.barrier()
        started = time.perf_counter()
        if self.sender:
            self.sender.send(stream, LIMIT)
        else:
            stream.drain()
        dist.barrier()
        return time.perf_counter() - started


def start(target: Callable[..., None], *arguments: Any) -> None:
    mp.get_context("spawn").Process(target=target, args=arguments, daemon=True).start()


def trainer(rank: int, world_size: int, port: int, arguments: argparse.Namespace, job: dict[str, Any]) -> None:
    """One trainer rank; rank 0 measures and writes the seconds of each turn."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR=HOST)
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    from megatron_empg.actor.actor import Actor
    from megatron_empg.actor.config import ActorConfig
    from megatron_empg.weights.mapping.model_config import ModelConfig
    from megatron_empg.weights.sync.transfer import WeightPublisher

    settings = ActorConfig(
        tensor_parallel=arguments.tensor_parallel, pipeline_parallel=arguments.pipeline_parallel
    )
    actor = Actor(ModelConfig.from_folder(Path(job["model"])), settings, dtype="float32")
    actor.load_weights(Path(job["model"]))
    seconds: dict[str, list[float]] = {}
    weights = actor.weights()
    flat = torch.randn(job["bytes"] // 4)
    for engines in (1, 2):
        publisher = WeightPublisher(
            job["urls"][:engines], job["token"], device="cpu", timeout=600.0, ranks=TrainerRanks()
        )
        publisher.connect(weights)
        raw = Raw(engines, flat, arguments.turns) if rank == 0 else None
        transfer = Transfer(engines, weights, arguments.turns)
        for turn in range(arguments.turns):
            dist.barrier()
            if raw:
                seconds.setdefault(f"raw {engines}", []).append(raw.send())
            seconds.setdefault(f"transfer {engines}", []).append(transfer.send())
            seconds.setdefault(f"push {engines}", []).append(publisher.publish(weights, turn).seconds)
        publisher.close()
    if rank == 0:
        Path(job["results"]).write_text(json.dumps(seconds), encoding="utf-8")


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
            report(size, json.loads((folder / "results.json").read_text(encoding="utf-8")))
        finally:
            for engine in engines:
                engine.stop()


def report(size: int, seconds: dict[str, list[float]]) -> None:
    """Ratios of the least, those of the medians in brackets."""
    print(f"{size / 1e6:.0f} MB, {len(seconds['raw 1'])} turns; seconds: least (median)")
    for name, values in seconds.items():
        print(f"  {name} receiver(s): {min(values):.3f} ({statistics.median(values):.3f})")

    def ratio(above: str, below: str) -> str:
        values = (of(seconds[above]) / of(seconds[below]) for of in (min, statistics.median))
        return "{:.2f} ({:.2f})".format(*values)

    for count, words in (("1", "one receiver"), ("2", "two receivers")):
        for what in ("transfer", "push"):
            print(f"{what} to {words}: {ratio(f'raw {count}', f'{what} {count}')} of the raw broadcast's speed")
    for what in ("transfer", "push"):
        print(f"{what} to two receivers against one: {ratio(f'{what} 2', f'{what} 1')} times the seconds")


if __name__ == "__main__":
    sys.exit(main())
