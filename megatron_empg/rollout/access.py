"""The token that every route of an engine asks for."""

from __future__ import annotations

from megatron_empg.common.token_access import ROUTES_PATH, RUN_TOKEN, TokenMiddleware, route_table, token_of

__all__ = ["ROUTES_PATH", "TOKEN_VARIABLE", "TokenMiddleware", "route_table", "token_from_environment"]

TOKEN_VARIABLE = RUN_TOKEN


def token_from_environment() -> str:
    """The run's token. Raises SystemExit when the variable is missing or shorter than 16 characters."""
    return token_of(TOKEN_VARIABLE, "the run's")
