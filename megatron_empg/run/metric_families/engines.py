"""What engines do, by vLLM's own counters."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

ENGINES = MetricFamily(
    "What engines do",
    "From vLLM's own counters, read once per step, over the batch's rollout alone: evaluations are left out. "
    "`_mean` is over the engines, `_worst` of the worst one (the least speed, cache hits and running requests, "
    "the most of others); with several engines `engine/ENGINE/…` is that of each, numbered from 0 in the order in "
    "which they were given.",
    (
        Metric("engine/tokens_per_second_{mean,worst}", "tokens/s", "tokens that an engine sampled", "steady"),
        Metric(
            "engine/prefill_tokens_per_second_{mean,worst}",
            "tokens/s",
            "prompt tokens that an engine computed, those found in its cache left out",
        ),
        Metric(
            "engine/cache_hit_share_{mean,worst}",
            "share",
            "of the prompt tokens looked up in the prefix cache, those found",
            "high where turns read their earlier ones again",
        ),
        Metric(
            "engine/running_{mean,worst}", "", "requests computed at a time, on average over the rollout", "many"
        ),
        Metric(
            "engine/waiting_{mean,worst}",
            "",
            "requests in the queue at a time, on average over the rollout",
            "near 0; else fewer `rollout.concurrency` or more engines",
        ),
        Metric(
            "engine/first_token_seconds_{mean,worst}", "seconds", "from a request's arrival to its first token"
        ),
        Metric(
            "engine/first_token_seconds_q95", "seconds", "the same, of all engines' requests together", "steady"
        ),
        Metric(
            "engine/preemptions_{mean,worst}",
            "",
            "requests that lost their place in the cache and were computed anew",
            "0; else a larger `engines.kv_cache_gib` or fewer `rollout.concurrency`",
        ),
        Metric(
            "engine/idle_share_{mean,worst}",
            "share",
            "of the time from the last batch's end to this one's, that in which no request was with the engine; "
            "absent in a start's first step",
            "small",
        ),
        Metric(
            "engine/ENGINE/{tokens_per_second,prefill_tokens_per_second,cache_hit_share,running,waiting,"
            "first_token_seconds,preemptions,idle_share}",
            "",
            "the same of one engine, where there are several",
            "all alike",
        ),
    ),
    by_clock=True,
)
