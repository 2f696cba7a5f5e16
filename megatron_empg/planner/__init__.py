"""Whether a recipe fits so many GPUs, how long a step takes, which layout is best: known before asking for any."""
