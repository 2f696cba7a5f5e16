"""`empg sft`: supervised warm-up on this machine."""

from megatron_empg.cli.arguments import Overrides, RecipePath


def sft(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Supervised warm-up on the environment's scripted walkthroughs."""
    from megatron_empg.launch.local import launch_sft

    launch_sft(recipe, overrides or [])
