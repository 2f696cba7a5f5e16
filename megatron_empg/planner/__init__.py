"""Whether a recipe fits so many GPUs, how long its step takes, and which layout is best: known before asking for any."""
