"""The rollout service's process.

Started as ``python -m megatron_empg.launch.rollout_service RECIPE --port P --engine URL …``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.errors import told_to_the_launcher
from megatron_empg.common.options import Port, parse_command_line
from megatron_empg.common.processes import die_with_parent


@dataclass(frozen=True)
class RolloutServiceArguments:
    """The rollout service; the launcher starts it."""

    recipe: Path
    port: Port
    engine: Annotated[list[str], typer.Option(help="URL of an engine; repeat for each.")]
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1"


def main() -> None:
    """Serve until the launcher ends it, or has gone."""
    die_with_parent()  # before imports that take seconds
    import uvicorn

    from megatron_empg.recipe import load_recipe
    from megatron_empg.rollout.access import token_from_environment
    from megatron_empg.rollout.service.rollout_service import open_rollout_service
    from megatron_empg.rollout.service.server import application

    arguments = parse_command_line(RolloutServiceArguments)
    config = load_recipe(arguments.recipe).service_config()
    token = token_from_environment()
    uvicorn.run(
        application(open_rollout_service(config, arguments.engine, token, told=True), token),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_keep_alive=600,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    with told_to_the_launcher():
        main()
