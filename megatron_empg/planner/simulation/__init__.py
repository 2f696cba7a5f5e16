"""Training with rollouts as discrete events: engines, episodes, the trainer's loop with bounded lag."""
