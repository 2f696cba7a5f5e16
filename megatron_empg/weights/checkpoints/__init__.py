"""Checkpoints as files, Hugging Face's and Megatron's, and the way from one to the other."""
