"""The policy and its update."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

POLICY = MetricFamily(
    "The policy and its update",
    "Those of the update are means over the batch's optimizer steps, weighted by own tokens.",
    (
        Metric(
            "policy/entropy", "nats", "mean over own tokens, by the actor, before the update", "no collapse to 0"
        ),
        Metric("policy/step_entropy_{min,q05,median,q95,max}", "nats", "of the turns' mean token entropies"),
        Metric("policy/update_entropy", "nats", "mean entropy at the update's tokens"),
        Metric("policy/loss", "", "the loss, with its KL and its term over entropies"),
        Metric("policy/lr", "", "the learning rate of the last optimizer step"),
        Metric(
            "policy/{grad_norm,grad_norm_max}",
            "",
            "mean and largest over the batch's optimizer steps, before clipping",
            "no jumps",
        ),
        Metric(
            "policy/ratio",
            "",
            "mean ratio of the new to the old probability; with a sequence clip (gspo, sampo) of the sequences'",
            "near 1",
        ),
        Metric(
            "policy/clip_fraction",
            "share",
            "own tokens whose loss the clip cut off; with a sequence clip those of clipped sequences",
            "below about 0.2; sequence clips are narrow and cut more",
        ),
        Metric(
            "policy/approx_kl",
            "nats",
            "k3 estimate of KL(old to new) at the update's tokens; that of the first optimizer step is 0",
            "below about 0.02",
        ),
        Metric(
            "policy/kl_to_initial",
            "nats",
            "k3 estimate of the KL to the policy the run began with, at the batch's own tokens "
            "(`algorithm.kl_to_initial_every`, or every step with `algorithm.kl.coefficient` above 0)",
            "slow growth",
        ),
        Metric(
            "policy/kl_to_reference",
            "nats",
            "the same KL as the loss has it, by `algorithm.kl.estimator` (`algorithm.kl.coefficient` above 0)",
            "slow growth",
        ),
        Metric(
            "skipped_updates",
            "",
            "optimizer steps skipped since loss or gradient was not finite; they count in no mean",
            "0; after more than `limits.max_skipped_updates` in a row training stops",
        ),
        Metric(
            "masked_updates",
            "",
            "optimizer steps left out since `algorithm.masks` left them no token; absent where there are none",
            "absent",
        ),
        Metric(
            "algorithm/masked_tokens",
            "share",
            "own tokens that `algorithm.masks` leave out of the loss; absent with all masks off",
            "small: the batch shrinks by it",
        ),
    ),
)
