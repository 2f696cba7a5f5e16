"""`empg environments`: what is installed, what an environment may be told, and whether it keeps to the seam."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_empg.common.options import number

if TYPE_CHECKING:
    from megatron_empg.environments.base import TaskSource
    from megatron_empg.environments.conformance import RuleFinding
    from megatron_empg.environments.settings_fields import SettingField

WIDTH = 100
PLACES = {"coroutine": "on the event loop", "process": "in worker processes"}

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME | check NAME [SETTING=VALUE]...]",
        help="An environment, as environment.name of a recipe has it. Settings are written as in an override.",
    ),
]


def environments(
    words: Words = None,
    call_timeout: Annotated[
        float, typer.Option(callback=number(above=0), help="Seconds that check gives one reset, step or close.")
    ] = 60.0,
) -> None:
    """The installed environments; the settings of one; `check NAME`: whether it is one that a run can use."""
    if not words:
        print_installed()
        return
    first, *others = words
    if first == "check" and others:
        name, *given = others
        raise typer.Exit(0 if check(name, given, call_timeout) else 1)
    if first == "check" and not _is_installed(first):
        raise typer.BadParameter("check what? Give an environment's name, or module:Class")
    if others:
        raise typer.BadParameter(f"settings are for `empg environments check {first} SETTING=VALUE...`")
    print_settings(first)


def print_installed() -> None:
    """A line for each environment that has a name."""
    from megatron_empg.environments.registry import installed, origins

    came_from = origins()
    rows = [("name", "from", "episodes run", "services", "demonstrations")]
    rows += [(name, came_from[name], *_about(name)) for name in sorted(installed())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def print_settings(name: str) -> None:
    """What the environment is, and each of its settings. Raises RecipeError for an unknown one."""
    from megatron_empg.environments.settings_fields import fields_of

    kind = _plugin(name)
    about = (kind.__doc__ or "").strip().splitlines()
    typer.echo(f"{name}: {about[0] if about else 'it does not say what it is'}")
    typer.echo(f"Episodes run {PLACES.get(kind.isolation, kind.isolation)}. Settings:")
    groups = {""}
    for field in fields_of(kind.Settings):
        if field.group not in groups:
            typer.echo("\n" + textwrap.indent(field.group, "    "))
            groups.add(field.group)
        for line in _lines(field):
            typer.echo(line)


def check(name: str, given: Sequence[str], call_timeout: float) -> bool:
    """Whether no rule is broken; each has a line. Raises RecipeError where the environment cannot be made."""
    from megatron_empg.common.section import Section
    from megatron_empg.common.values import plain_settings
    from megatron_empg.environments.conformance import check_environment
    from megatron_empg.recipe import RecipeError
    from megatron_empg.recipe.overrides import apply_overrides

    settings: dict[str, Any] = {}
    apply_overrides(settings, given, Section)
    _plugin(name)
    try:
        findings = check_environment(
            name, plain_settings(settings), call_timeout=call_timeout, begun=_announce, found=_report
        )
    except (ValueError, OSError) as error:
        raise RecipeError(f"environment {name!r} cannot be made: {error}") from error
    broken = sum(finding.verdict == "broken" for finding in findings)
    doubtful = sum(finding.verdict == "doubtful" for finding in findings)
    typer.echo(f"{len(findings)} rules: {broken} broken, {doubtful} doubtful")
    return not broken


def _announce(sentence: str) -> None:
    """Before it is known, so that one who waits sees for what."""
    typer.echo(f"{sentence}: ", nl=False)


def _report(finding: RuleFinding) -> None:
    detail = " ".join(finding.detail.split())
    said: str = "BROKEN" if finding.verdict == "broken" else finding.verdict
    if detail:
        said += f", {detail}"
    typer.echo(said)


def _is_installed(name: str) -> bool:
    from megatron_empg.environments.registry import installed

    return name in installed()


def _plugin(name: str) -> type[TaskSource]:
    from megatron_empg.environments.registry import plugin
    from megatron_empg.recipe import RecipeError

    try:
        return plugin(name)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _about(name: str) -> tuple[str, str, str]:
    """Where its episodes run, the services that it starts by default, and whether it has demonstrations."""
    from megatron_empg.environments.registry import plugin

    try:
        kind = plugin(name)
    except ValueError as error:
        return str(error), "", ""
    offers = "no"
    if hasattr(kind, "walkthrough"):
        offers = "yes"
    return PLACES.get(kind.isolation, kind.isolation), _services(kind), offers


def _services(kind: type[TaskSource]) -> str:
    try:
        services = kind.services(kind.Settings())
    except Exception:  # settings that must be given, or code of somebody's
        return "depends on settings"
    return ", ".join(service.name for service in services) or "none"


def _lines(field: SettingField) -> Iterator[str]:
    default = "must be given"
    if field.default is not None:
        default = f"default {field.default}"
    yield f"  {field.key}: {field.type}; {default}"
    paragraph = " ".join(field.description.split())
    if paragraph:
        yield from textwrap.wrap(paragraph, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
