"""`empg train`: reinforcement learning on this machine."""

from megatron_empg.cli.arguments import Overrides, RecipePath


def train(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Reinforcement learning. The same command continues an interrupted run."""
    from megatron_empg.launch.local import launch_training

    launch_training(recipe, overrides or [])
