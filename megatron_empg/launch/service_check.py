"""Whether the servers that a recipe's environment names are there, before a run of this machine starts."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from megatron_empg.recipe import Recipe, RecipeError, SftRecipe

SECONDS = 5.0
"""To answer a connection."""
PORTS = {"http": 80, "https": 443}


def check_services(recipe: Recipe | SftRecipe) -> None:
    """Raises RecipeError for the address of a service where nobody answers.

    Only that somebody answers is asked: protocols and tokens are the services' own. Addresses inside of a section
    of the settings (a judge's) are left out: the way there may be by a proxy.
    """
    from megatron_empg.environments.registry import plugin
    from megatron_empg.environments.settings import read_settings, service_addresses

    acting = recipe.environment
    try:
        settings = read_settings(plugin(acting.name).Settings, acting.settings, acting.name)
    except ValueError as error:
        raise RecipeError(f"environment.settings: {error}") from None
    for key, address in service_addresses(settings).items():
        if "." not in key:
            _connect(f"environment.settings.{key}", address)


def _connect(name: str, address: str) -> None:
    try:
        place = urlsplit(address)
        port = place.port or PORTS[place.scheme]
        socket.create_connection((place.hostname or "", port), SECONDS).close()
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"{name} is {address}, where nobody answers ({error}): start that server first, or correct the address"
        ) from None
