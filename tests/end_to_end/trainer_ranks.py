"""Trainer ranks that push weights to engines, for `run_ranks`."""

from pathlib import Path
from typing import Any


def push(layout: dict[str, int], pushes: list[tuple[str, int, list[str]]], token: str) -> list[Any]:
    """On every trainer rank: load each (folder, version, engines) and push it; rank 0 tells what was sent."""
    import torch.distributed as dist
    from actor_cases import actor_config

    from megatron_empg.actor.actor import Actor
    from megatron_empg.weights.mapping.model_config import ModelConfig
    from megatron_empg.weights.sync.transfer import WeightPublisher

    actor = Actor(ModelConfig.from_folder(Path(pushes[0][0])), actor_config(layout), dtype="float32")
    reports = []
    for folder, version, urls in pushes:
        actor.load_weights(Path(folder))
        weights = actor.weights()
        if dist.get_rank() == 0:
            publisher = WeightPublisher(urls, token, device="cpu", timeout=120.0)
            publisher.connect(weights)
            reports.append(publisher.publish(weights, version))
            publisher.close()
        else:
            weights.take_part()
        dist.barrier()
    return reports
