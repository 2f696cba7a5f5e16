"""The Megatron actor: it scores a batch, learns from it, and saves and loads itself, under any layout."""
