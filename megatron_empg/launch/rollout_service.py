"""The rollout service's process.

Started as ``python -m megatron_empg.launch.rollout_service RECIPE --port P --engine URL …``.
"""

import argparse
from pathlib import Path

from megatron_empg.common.errors import told_to_the_launcher
from megatron_empg.common.processes import die_with_parent


def main() -> None:
    """Serve until the launcher ends it, or has gone."""
    die_with_parent()  # before imports that take seconds
    import uvicorn

    from megatron_empg.recipe import load_recipe
    from megatron_empg.rollout.access import token_from_environment
    from megatron_empg.rollout.service.driver import open_driver
    from megatron_empg.rollout.service.server import application

    parser = argparse.ArgumentParser(prog="python -m megatron_empg.launch.rollout_service")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", action="append", required=True, help="URL of an engine; repeat for each")
    arguments = parser.parse_args()
    config = load_recipe(arguments.recipe).service_config()
    token = token_from_environment()
    uvicorn.run(
        application(open_driver(config, arguments.engine, token, told=True), token),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_keep_alive=600,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    with told_to_the_launcher():
        main()
