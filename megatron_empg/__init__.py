"""Entropy-Modulated Policy Gradients for long-horizon LLM agents on Megatron-core and vLLM."""

__version__ = "0.1.0"
