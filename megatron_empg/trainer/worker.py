"""One trainer rank, started by torchrun: ``python -m megatron_empg.trainer.worker train|sft RECIPE …``."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.options import parse_command_line
from megatron_empg.common.processes import die_with_parent

if TYPE_CHECKING:
    from megatron_empg.recipe import Recipe

SECONDS_TO_TELL = 10.0
"""For an engine to say which weights it holds."""


@dataclass(frozen=True)
class WorkerArguments:
    """One trainer rank; torchrun starts it."""

    kind: Literal["train", "sft"]
    recipe: Path
    driver: Annotated[str, typer.Option(help="URL of the driver; none for a supervised warm-up.")] = ""
    engine: Annotated[list[str] | None, typer.Option(help="URL of an engine; repeat for each.")] = None


class NoRankError(EmpgError, RuntimeError):
    """The process does not know which rank it is."""


def own_rank() -> int:
    """This process's place among the ranks, as torchrun says it. Raises NoRankError."""
    rank = os.environ.get("RANK", "")
    if not (rank.isascii() and rank.isdigit()):
        raise NoRankError(f"RANK is {rank!r}, not a number: torchrun sets it; start a run by `empg train RECIPE`")
    return int(rank)


def main() -> None:
    """Do a rank's work."""
    arguments = parse_command_line(WorkerArguments)
    rank = own_rank()
    import torch

    from megatron_empg.actor.platform import choose_device
    from megatron_empg.recipe import SftRecipe, load_recipe

    if rank == 0:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("megatron_empg").setLevel(logging.INFO)
    choose_device()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if arguments.kind == "sft":
        from megatron_empg.run.heartbeat import Heartbeat
        from megatron_empg.trainer.phase_limits import phase_limits
        from megatron_empg.trainer.sft import run_sft

        recipe = load_recipe(arguments.recipe, kind=SftRecipe)
        with Heartbeat(recipe.run.folder, rank, phase_limits(recipe)) as heartbeat:
            run_sft(recipe, heartbeat)
    else:
        train(load_recipe(arguments.recipe), arguments.driver, arguments.engine or [])


def train(recipe: Recipe, driver_url: str, engine_urls: list[str]) -> None:
    """Build this rank's part of the run and train."""
    from megatron_empg.actor.platform import device
    from megatron_empg.common.http import wait_until_healthy
    from megatron_empg.rollout.access import token_from_environment
    from megatron_empg.rollout.service.client import RolloutServiceClient
    from megatron_empg.run.folder import RunFolder
    from megatron_empg.run.heartbeat import Heartbeat
    from megatron_empg.trainer.fleet_publisher import EngineSenses, FleetPublisher
    from megatron_empg.trainer.initial_actor import initial_actor
    from megatron_empg.trainer.loop import BatchSource, Publisher, Training
    from megatron_empg.trainer.phase_limits import driver_timeout, phase_limits
    from megatron_empg.trainer.recorded_batches import ToldPublisher, batches_of
    from megatron_empg.weights.sync.held_version import held_version
    from megatron_empg.weights.sync.together import TrainerRanks
    from megatron_empg.weights.sync.transfer import WeightPublisher

    rank, waits = own_rank(), recipe.waits
    with Heartbeat(recipe.run.folder, rank, phase_limits(recipe)) as heartbeat:
        actor = initial_actor(recipe)
        folder, token = RunFolder(recipe.run.folder), token_from_environment()
        ranks = TrainerRanks()
        make = partial(
            WeightPublisher,
            token=token,
            device=device(),
            timeout=waits.sync,
            host=recipe.engines.host,
            ranks=ranks,
        )
        senses = EngineSenses(lambda url: held_version(url, token, SECONDS_TO_TELL))
        service = RolloutServiceClient(
            driver_url, token, timeout=driver_timeout(recipe), patience=recipe.engines.start_timeout
        )
        sender = FleetPublisher(
            engine_urls, make, service.hold, senses, patience=waits.batch, limit=waits.sync, ranks=ranks
        )
        driver: BatchSource | None = None
        publisher: Publisher = sender
        if rank == 0:  # nothing in here may wait for another rank
            wait_until_healthy([driver_url, *engine_urls], token, timeout=recipe.engines.start_timeout)
            driver = service
            if recipe.rollout.max_lag:
                driver = batches = batches_of(recipe, service, folder)
                publisher = ToldPublisher(sender, batches)
        Training(recipe, actor, folder, driver=driver, publisher=publisher, heartbeat=heartbeat).run()


if __name__ == "__main__":
    die_with_parent()  # before torch's import, which takes seconds
    from megatron_empg.trainer.rank_errors import run_rank

    run_rank(main)
