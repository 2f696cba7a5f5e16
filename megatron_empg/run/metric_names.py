"""Every metric that a run writes: its name, its unit, what it is and what to look for.

`tools/metrics_page.py` makes the tables of docs/metrics.md of it. A metric that is not here fails a test.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "", "share", "nats", "seconds", "tokens", "turns", "episodes", "groups", "steps", "tokens/s", "TFLOP/s"
]
"""Empty for plain numbers. A share lies in [0, 1]."""

STANDS_FOR = {
    "SPLIT": "[a-z_]+",
    "KIND": "[^/]+",
    "BIN": "[0-9]+",
    "ENGINE": "[0-9]+",
    "NAME": "[A-Za-z0-9_./-]+",
}
"""Words in names that stand for any text of this form."""


@dataclass(frozen=True)
class Metric:
    """One metric, or several that are told in one breath. Example: ``policy/logprob_gap_{mean,max}`` are two."""

    name: str
    """Braces hold alternatives; the words of `STANDS_FOR` are filled in when it is written."""
    unit: Unit
    meaning: str
    look_for: str = ""
    by_clock: bool = False
    """Whether the machine's speed and load are in it, so that two runs of the same numbers differ in it."""

    @property
    def names(self) -> list[str]:
        """The name with its braces written out."""
        pieces = re.split(r"\{([^}]+)\}", self.name)
        # Every other piece is what stood in braces.
        choices = [piece.split(",") if place % 2 else [piece] for place, piece in enumerate(pieces)]
        return ["".join(chosen) for chosen in itertools.product(*choices)]

    def covers(self, name: str) -> bool:
        """Whether a metric with this name is meant."""
        return any(_pattern(own).fullmatch(name) for own in self.names)


@dataclass(frozen=True)
class Family:
    """Metrics that belong together: a table of the page. `by_clock`: all of them are."""

    title: str
    about: str
    metrics: tuple[Metric, ...]
    by_clock: bool = False


def _pattern(name: str) -> re.Pattern[str]:
    words = re.split(f"({'|'.join(STANDS_FOR)})", name)
    return re.compile("".join(STANDS_FOR.get(word, re.escape(word)) for word in words))


def find(name: str) -> Metric | None:
    """The entry of a metric's name; None for a name that no run writes."""
    for family in FAMILIES:
        for metric in family.metrics:
            if metric.covers(name):
                return metric
    return None


def by_clock(name: str) -> bool:
    """Whether two runs that learn the same to the bit may differ in this metric."""
    for family in FAMILIES:
        for metric in family.metrics:
            if metric.covers(name):
                return family.by_clock or metric.by_clock
    return False


ROLLOUT = Family(
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
        Metric("train/groups_surplus", "groups", "found beyond the batch, and thrown away", "few"),
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
        Metric("rollout/engines_healthy", "", "engines that may generate, at the end of the batch", "all"),
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

STREAM = Family(
    "The stream of groups",
    "`rollout.max_lag` above 0. Groups are counted since the run began: those that started are those trained on, "
    "those dropped, those in flight and those ready. An own token's lag is the trained version less that which "
    "sampled it.",
    (
        Metric("stream/lag_mean", "steps", "mean lag of an own token", "below `rollout.max_lag`"),
        Metric("stream/lag_max", "steps", "the largest", "at most `rollout.max_lag`"),
        Metric("stream/lag_share_BIN", "share", "own tokens with a lag of BIN"),
        Metric("stream/started", "groups", "that have entered the stream"),
        Metric("stream/trained", "groups", "handed over to be trained on, this batch's among them"),
        Metric(
            "stream/dropped_{equal,errors,stale}",
            "groups",
            "dropped: equal rewards, errors that left fewer than two episodes, older than the lag allows",
        ),
        Metric("stream/in_flight", "groups", "that were not done when the batch was handed over"),
        Metric("stream/ready", "groups", "that were done then, and wait for the next batch"),
        Metric(
            "stream/wait_seconds",
            "seconds",
            "that the trainer waited for groups of this batch",
            "near 0 where training takes longer than playing",
            by_clock=True,
        ),
        Metric(
            "stream/idle_seconds",
            "seconds",
            "since the batch before, in which an episode could have been played, all slots were taken and the "
            "trainer did not wait for a batch",
            "near 0 where playing takes longer than training; else a larger `rollout.max_lag` plays more",
            by_clock=True,
        ),
    ),
)

AGREEMENT = Family(
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

ENGINES = Family(
    "What engines do",
    "From vLLM's own counters, read once a step, over the batch's rollout alone: evaluations are left out. "
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

POLICY = Family(
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

EMPG = Family(
    "EMPG",
    "`algorithm.modulation=empg`. Over the batch's turns, each counted once, unless tokens are named.",
    (
        Metric("empg/k", "", "k in force; it moves with `algorithm.modulation.target_scale_ratio` alone"),
        Metric("empg/zeta", "", "zeta in force; it moves with `algorithm.modulation.target_bonus_ratio` alone"),
        Metric("empg/h_norm_mean", "", "mean normalised entropy: 0 is the surest turn", "not near 0 or 1"),
        Metric("empg/h_norm_{std,q05,q95}", "", "its spread", "q95 - q05 near 0: one outlier squeezes all others"),
        Metric("empg/g_{min,max}", "", "the extremes of the scale g, whose mean is 1"),
        Metric("empg/g_{std,q05,q95}", "", "the spread of g", "q95 / q05 near 1: EMPG scales nothing"),
        Metric("empg/bonus_mean", "", "mean future-clarity bonus, zeta·f"),
        Metric("empg/advantage_mean", "", "mean final advantage of a turn", "0 when centred"),
        Metric(
            "empg/advantage_token_mean",
            "",
            "mean final advantage of an own token, masked ones included",
            "near 0; see below",
        ),
        Metric(
            "empg/bonus_share",
            "share",
            "of the advantages' size (by own tokens, masked ones included, after centring), what comes from the "
            "bonus",
            "well below 0.5",
        ),
        Metric(
            "empg/bonus_only_tokens",
            "share",
            "own tokens whose turn has no advantage before modulation (as where its group's rewards are equal): "
            "bonus and centring alone train them",
            "0 with dapo",
        ),
    ),
)

AEM = Family(
    "AEM",
    "`algorithm.modulation=aem`.",
    (
        Metric("aem/scale_{min,max}", "", "the extremes of the scale alpha, whose mean over each set is 1"),
        Metric("aem/{amplified,damped}_turns", "share", "turns with a scale above and below 1"),
    ),
)

EPO = Family(
    "EPO",
    "`algorithm.regularizer=epo`.",
    (
        Metric("epo/history", "nats", "mean entropy of past batches, the middle of the band; absent in the first"),
        Metric(
            "epo/outside_share",
            "share",
            "turns whose entropy, before the update, is outside the band; absent in the first batch",
            "falling to 0 where the smoothing works",
        ),
        Metric("epo/phase_weight", "", "factor of the penalty by the run's progress; 1 without phase weights"),
        Metric("policy/epo_outside", "share", "the same as `epo/outside_share`, of tokens during the update"),
        Metric("policy/epo_penalty", "", "mean penalty P of the update's tokens, with the phase weight"),
    ),
)

DIAGNOSTICS = Family(
    "What the papers measure",
    "The first four every `logging.diagnostics_every` steps, the others in every step. A bin holds a tenth of the "
    "turns, in the order of their entropies before the update, numbered from 0.",
    (
        Metric(
            "diagnostics/entropy_change",
            "nats",
            "how the mean entropies of the batch's turns changed by its update",
            "no steady fall",
        ),
        Metric("diagnostics/entropy_change_bin_BIN", "nats", "the same, of the turns in a bin"),
        Metric(
            "diagnostics/gradient_norm",
            "",
            "norm of the gradient of one turn's mean log-prob, without its advantage: the mean over "
            "`logging.diagnostics_turns` turns",
        ),
        Metric(
            "diagnostics/gradient_norm_bin_BIN",
            "",
            "the same, of the turns in a bin",
            "growing with the bin: what EMPG's g is to even out",
        ),
        Metric(
            "diagnostics/advantage_times_relative_surprisal",
            "nats",
            "mean of A·(-log p - H) over the own tokens that the loss sees",
            "above 0 the batch pushes entropy up, below 0 down",
        ),
        Metric(
            "diagnostics/advantage_{turn,token}_mean",
            "",
            "mean final advantage of a turn, and of an own token, masked ones included; absent with empg, which "
            "has them as `empg/advantage_{mean,token_mean}`",
            "near 0",
        ),
        Metric("diagnostics/h_norm_{std,q05,q95}", "", "aem: spread of the turns' normalised entropies"),
        Metric("diagnostics/scale_{std,q05,q95}", "", "aem: spread of the scale alpha"),
        Metric(
            "diagnostics/bonus_ratio",
            "",
            "a turn's mean |bonus| by its mean |advantage| before modulation",
            "`algorithm.modulation.target_bonus_ratio`, where it is given",
        ),
        Metric(
            "diagnostics/{amplified,damped}_turns_{right,wrong}",
            "share",
            "turns with a scale above and below 1, of episodes with a reward above 0 and of the others",
        ),
    ),
)

EVALUATION = Family(
    "Evaluation",
    "On the fixed questions of each split; KIND is the environment's kind of question.",
    (
        Metric(
            "eval/SPLIT/{sampled,greedy}",
            "share",
            "success; an episode that ended in an error is no success",
            "rising",
        ),
        Metric("eval/SPLIT/{sampled,greedy}/KIND", "share", "success among the questions of a kind", "rising"),
        Metric("eval/SPLIT/{sampled,greedy}_questions", "", "questions asked"),
        Metric("eval/SPLIT/{sampled,greedy}_errors", "episodes", "those whose episode ended in an error", "0"),
    ),
)

WARM_UP = Family(
    "Supervised warm-up",
    "`empg sft` alone.",
    (
        Metric("policy/correct_surely", "share", "the batch's own tokens with a probability above 0.9", "rising"),
        Metric(
            "validation/loss",
            "nats",
            "mean loss of the own tokens of held-out walkthroughs, which a script played (`sft.validate_every`)",
            "falling to a floor above 0: the scripted searcher errs on purpose",
        ),
        Metric("validation/correct_surely", "share", "of them, those with a probability above 0.9", "rising"),
    ),
)

TIME = Family(
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

FAMILIES = (
    ROLLOUT,
    STREAM,
    ENGINES,
    AGREEMENT,
    POLICY,
    EMPG,
    AEM,
    EPO,
    DIAGNOSTICS,
    EVALUATION,
    WARM_UP,
    TIME,
)
"""In the page's order."""
