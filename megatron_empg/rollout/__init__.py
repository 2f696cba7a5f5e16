"""Rollouts: episodes played token by token on vLLM engines, and the service that makes batches of them."""
