"""What the trainer's ranks run: the training loop, its phases, the policy update, and supervised warm-up."""
