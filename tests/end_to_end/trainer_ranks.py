"""Trainer ranks that push weights to engines, for `run_ranks`."""

from pathlib import Path
from typing import Any


def push(layout: dict[str, int], pushes: list[tuple[str, int, list[str]]], token: str) -> list[Any]:
    """On every trainer rank: load each (folder, version, engines) and push it; what was reported."""
    from megatron_empg.actor.actor import Actor
    from megatron_empg.weights.mapping.model_config import ModelConfig
    from megatron_empg.weights.sync.together import TrainerRanks
    from megatron_empg.weights.sync.transfer import WeightPublisher
    from tests.distributed.actor_cases import actor_config

    actor = Actor(ModelConfig.from_folder(Path(pushes[0][0])), actor_config(layout), dtype="float32")
    reports = []
    for folder, version, urls in pushes:
        actor.load_weights(Path(folder))
        publisher = WeightPublisher(urls, token, device="cpu", timeout=120.0, ranks=TrainerRanks())
        try:
            reports.append(publisher.publish(actor.weights(), version))
        finally:
            publisher.close()
    return reports
