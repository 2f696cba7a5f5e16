"""What settings make otherwise than in EPO's row (arXiv 2509.22576), in phrases for a table of results."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings

_EPO = ScienceWorldSettings(splits="epo", drawn="variations")


def caveats_of(settings: ScienceWorldSettings) -> Iterator[str]:
    """A phrase for each setting by which results are not EPO's."""
    if settings.splits != _EPO.splits:
        yield f"other variations than EPO's: the splits are {settings.splits}"
    if settings.tasks is not None:
        yield f"fewer tasks than EPO's: {', '.join(settings.tasks)}"
    if settings.drawn != _EPO.drawn:
        yield f"drawn differently from EPO: all {settings.drawn} have the same chance"
    if settings.simplifications != _EPO.simplifications:
        yield f"other simplifications than EPO's: {settings.simplifications or 'none'}"
    if settings.choices != _EPO.choices:
        yield f"other choices than EPO's: a turn is told {settings.choices}"
    if settings.rules != _EPO.rules:
        yield "no rules are told, unlike EPO's"
    if settings.reward != _EPO.reward:
        yield f"another reward than EPO's: {settings.reward}"
