"""Pure tensor algorithms: group advantages, entropy modulation, policy loss. No I/O, no Megatron, no vLLM."""
