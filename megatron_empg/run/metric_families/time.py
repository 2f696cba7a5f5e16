"""Time and speed."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

TIME = MetricFamily(
    "Time and speed",
    "The step is the sum of its four phases and `time/other`; evaluations and checkpoints stand beside it.",
    (
        Metric(
            "time/{rollout,score,update,sync}",
            "seconds",
            "the four phases; every `logging.diagnostics_every` steps update has the gradients of single turns in "
            "it, and score the batch's second scoring",
        ),
        Metric("time/{evaluate,checkpoint}", "seconds", "that training stood still for one"),
        Metric("time/other", "seconds", "of the step, what is in none of the four phases", "below 5% of the step"),
        Metric("time/step", "seconds", "the whole step"),
        Metric(
            "trainer/idle_share",
            "share",
            "of the step, what the trainer waited for its batch",
            "small where engines and trainer work at once",
        ),
        Metric("tokens_per_second", "tokens/s", "own tokens trained on, by the step's time"),
        Metric("actor/{score,update}_tokens_per_second", "tokens/s", "tokens of all ranks by the phase's time"),
        Metric(
            "actor/{score,update}_tflops_per_rank",
            "TFLOP/s",
            "model FLOPs of a rank (LM head and causal attention counted, recomputation not)",
            "steady",
        ),
        Metric(
            "actor/{score,update}_mfu",
            "share",
            "of the GPU's bfloat16 peak; absent on devices whose peak is not known",
            "steady",
        ),
    ),
    by_clock=True,
)
