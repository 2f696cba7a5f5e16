"""Small charts of what should stay quiet, each a line of `HEALTH`."""

from dataclasses import dataclass

from megatron_empg.report.chart import SMALL, Chart
from megatron_empg.report.data import RunData
from megatron_empg.report.lines import Line, line_chart
from megatron_empg.report.points import thin


@dataclass(frozen=True)
class Quiet:
    """A small chart of what should stay quiet."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """Metrics with their labels."""
    unit: str = ""
    caption: str = ""


HEALTH = (
    Quiet("Gradient norm", (("policy/grad_norm", "norm"),)),
    Quiet(
        "Clipped tokens",
        (("policy/clip_fraction", "share"),),
        "%",
        "Look for less than about 20%; the narrow clips of whole sequences (gspo, sampo) cut more.",
    ),
    Quiet(
        "Ratio of new to old probability",
        (("policy/ratio", "mean"),),
        caption="Look for a mean near 1; far from it the update left its batch behind.",
    ),
    Quiet(
        "Engine to actor log-prob gap",
        (("policy/logprob_gap_mean", "mean"), ("policy/logprob_gap_max", "largest")),
    ),
    Quiet(
        "Weight of the correction",
        (("correction/mean_weight", "mean"),),
        caption="Mean factor of a token's loss. Look for 1; below it the batch counts for less than it seems.",
    ),
    Quiet(
        "What the correction changed",
        (
            ("correction/truncated_share", "tokens held at the cap"),
            ("correction/rejected_tokens", "tokens rejected"),
            ("correction/rejected_episodes", "episodes rejected"),
        ),
        "%",
        "Look for growth: it is drift between engines and actor.",
    ),
    Quiet(
        "Turns outside EPO's band",
        (("epo/outside_share", "before the update"), ("policy/epo_outside", "tokens, during it")),
        "%",
        "Look for a fall to 0: there the smoothing works.",
    ),
    Quiet(
        "Slowest episode by the median",
        (("rollout/tail_ratio", "ratio"),),
        caption="Look for a value near 1; the timeline shows what the slowest ones did.",
    ),
    Quiet("Requests that wait", (("engine/waiting_mean", "mean"), ("engine/waiting_worst", "most"))),
    Quiet(
        "Time to the first token",
        (("engine/first_token_seconds_mean", "mean"), ("engine/first_token_seconds_q95", "95% are faster")),
        " s",
    ),
    Quiet("Prefix-cache hits", (("engine/cache_hit_share_mean", "share"),), "%"),
    Quiet("Learning rate", (("policy/lr", "lr"),)),
    Quiet("Turns per episode", (("train/turns", "turns"),)),
    Quiet("Tokens per episode", (("train/tokens_per_episode", "tokens"),)),
    Quiet(
        "Groups",
        (
            ("train/groups_kept", "kept"),
            ("train/groups_dropped_equal", "equal rewards"),
            ("train/groups_dropped_errors", "errors"),
        ),
    ),
    Quiet(
        "Episodes that went wrong", (("train/episodes_error", "error"), ("train/episodes_truncated", "truncated"))
    ),
    Quiet(
        "Malformed actions, token drift",
        (("train/malformed_actions", "malformed"), ("train/token_drift", "drift")),
    ),
)


def health(run: RunData) -> list[Chart]:
    """Those whose metrics were logged."""
    shown = []
    for quiet in HEALTH:
        lines = []
        for place, (name, label) in enumerate(quiet.lines):
            lines.append(Line(label, thin(run.series(name)), f"C{place}"))
        chart = line_chart(quiet.title, quiet.caption, lines, unit=quiet.unit, size=SMALL)
        if chart is not None:
            shown.append(chart)
    return shown
