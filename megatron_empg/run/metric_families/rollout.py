"""Steps, episodes and groups, of the batch as it was played."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

ROLLOUT = MetricFamily(
    "Step, episodes and groups",
    "Of the batch as it was played, dropped groups included.",
    (
        Metric("step", "steps", "the step, counted from 1; 0 is the evaluation before training"),
        Metric(
            "policy_version",
            "steps",
            "version of the weights that sampled the batch; step n samples with version n - 1. With "
            "`rollout.max_lag` the newest that may have: older ones did too",
        ),
        Metric("train/reward", "", "mean reward of the usable episodes", "rising"),
        Metric("train/success", "share", "usable episodes that ended in success", "rising"),
        Metric("train/turns", "turns", "mean length of an episode"),
        Metric(
            "train/tokens_per_episode",
            "tokens",
            "the same, with prompt and observations; where each turn is a sequence of its own (windowed prompts, "
            "`rollout.history: strip`) that of all its sequences",
        ),
        Metric("train/episodes", "episodes", "usable episodes"),
        Metric("train/episodes_error", "episodes", "ended in an error; they never train", "0"),
        Metric("train/episodes_{success,failure}", "episodes", "ended so, by the environment's word"),
        Metric(
            "train/episodes_truncated",
            "episodes",
            "ended by the turn or token limit, with the rewards earned until then (for an answer: 0)",
            "falling",
        ),
        Metric("train/malformed_actions", "turns", "turns whose tool call could not be read", "falling"),
        Metric(
            "train/token_drift",
            "tokens",
            "tokens from the first one on that the tokenizer would have cut otherwise; ids are never changed; an "
            "episode that the template would not render counts 0",
            "the policy spells words in other pieces",
        ),
        Metric("train/groups_kept", "groups", "groups trained on", "`rollout.groups`"),
        Metric("train/groups_dropped_equal", "groups", "dropped since all rewards were equal (dapo, sampo)"),
        Metric("train/groups_dropped_errors", "groups", "dropped since errors left fewer than two episodes", "0"),
        Metric(
            "train/groups_dropped_stale",
            "groups",
            "`rollout.max_lag`: dropped since the batch before, as they had become older than the lag allows",
            "0; others are played in their place",
        ),
        Metric("train/groups_surplus", "groups", "found beyond the batch, and discarded", "few"),
        Metric(
            "train/rounds",
            "",
            "rounds of questions played until there were enough groups (dapo, sampo); absent with "
            "`rollout.max_lag`",
            "below `algorithm.max_generation_rounds`",
        ),
        Metric(
            "train/idle",
            "",
            "1 where the step trained on nothing: the loss would have seen fewer groups than `limits.min_groups`, "
            "or no turn with an advantage",
            "0; after more than `limits.max_idle_steps` in a row training stops",
        ),
        Metric(
            "rollout/engines_healthy",
            "",
            "engines that may generate, at the end of the batch",
            "all",
            by_clock=True,
        ),
        Metric(
            "rollout/engines_stale",
            "",
            "engines that answer and wait for the policy's weights, at the end of the batch",
            "0; one that stays is sent weights in vain: the trainer's log says why",
            by_clock=True,
        ),
        Metric(
            "rollout/engines_dead",
            "",
            "engines that do not answer, at the end of the batch",
            "0; one that stays is not started again, or does not come up",
            by_clock=True,
        ),
        Metric(
            "rollout/engine_failures",
            "",
            "times that an engine was found dead, since the rollout service was started",
            "0",
            by_clock=True,
        ),
        Metric(
            "rollout/engine_refits",
            "",
            "times that an engine came back and was sent the policy's weights, since then",
            "as many as failures",
            by_clock=True,
        ),
        Metric(
            "rollout/episodes_moved",
            "",
            "times that an episode went on on another engine, or on its own after a restart, since then",
            "few",
            by_clock=True,
        ),
        Metric(
            "rollout/tail_ratio",
            "",
            "time of the slowest usable episode by that of the median one",
            "near 1; far above it a few episodes hold the batch: see the report's timeline",
            by_clock=True,
        ),
        Metric(
            "rollout/episode_seconds_{median,max}",
            "seconds",
            "how long usable episodes took, from the making of their environment to their end",
            by_clock=True,
        ),
        Metric(
            "rollout/environment_share",
            "share",
            "of the episodes' time, what their environments took for resets and steps",
            "small; else engines wait for tools",
            by_clock=True,
        ),
        Metric(
            "rollout/environment_calls_hanging",
            "",
            "calls of environments that were given up and go on in their threads",
            "0",
        ),
        Metric("rollout/environment_workers", "", "worker processes of the environment at the end of the batch"),
        Metric(
            "rollout/environment_workers_died",
            "",
            "worker processes that crashed, hung or outgrew their memory since the rollout service started",
            "0; each cost an episode",
        ),
        Metric("environment/NAME", "", "what the environment counts itself, by the names that it gives"),
        Metric(
            "judge/{requests,verdicts,cached}",
            "",
            "requests to the model that judges answers, those that brought a verdict, and verdicts given again "
            "without a request, since the rollout service started (`environment.settings.judge`)",
            "verdicts nearly as many as requests",
        ),
        Metric(
            "judge/{prompt_tokens,completion_tokens,uncounted,cost}",
            "",
            "tokens that the judge read and wrote, answered requests that did not tell theirs, and the cost by "
            "the prices given",
        ),
    ),
)
