"""Whether engines and actor compute the same log-probs."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

AGREEMENT = MetricFamily(
    "Engines and actor",
    "Both compute the log-prob of the same sampled token, by different kernels.",
    (
        Metric(
            "policy/logprob_gap_mean",
            "nats",
            "mean difference of the two log-probs",
            "above `limits.logprob_gap` training stops",
        ),
        Metric(
            "policy/logprob_gap_max",
            "nats",
            "the largest difference at one token",
            "above `limits.logprob_gap_max` training stops",
        ),
        Metric(
            "policy/logprob_gap_engine",
            "nats",
            "the largest of the engines' means (of those with 256 tokens or more)",
            "above `limits.logprob_gap` training stops, and the message names the engine",
        ),
        Metric(
            "policy/logprob_gap_checked",
            "share",
            "`rollout.max_lag`: own tokens that the trained version sampled, which alone are in the four others; "
            "0 where they are fewer than 256: then no token was held to `limits.logprob_gap`, only each engine's "
            "older ones to 1 nat, and those four are absent",
            "above 0 now and then",
        ),
        Metric(
            "policy/logprob_gap_lag_BIN",
            "nats",
            "`rollout.max_lag`: mean difference of the two log-probs at own tokens with a lag of BIN",
            "growing with BIN: it is what the updates changed",
        ),
        Metric("policy/logprob_gap_episode", "nats", "the largest of the episodes' means", "steady"),
        Metric(
            "correction/mean_weight",
            "",
            "`algorithm.correction`: mean factor of a token's loss",
            "near 1; well below it the batch counts for less than it seems to",
        ),
        Metric(
            "correction/truncated_share",
            "share",
            "tis: own tokens whose ratio was held at the cap",
            "near 0; growth is drift between engine and actor",
        ),
        Metric(
            "correction/rejected_tokens",
            "share",
            "mis, icepop, sequence_rejection: own tokens whose loss is multiplied by 0",
            "near 0",
        ),
        Metric("correction/rejected_episodes", "share", "the same: episodes of which no token is left", "near 0"),
    ),
)
