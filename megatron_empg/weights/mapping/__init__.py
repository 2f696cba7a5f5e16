"""Which Hugging Face tensors make which of Megatron-core's: one table for each model family."""
