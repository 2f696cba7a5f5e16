"""Rules of the class and its settings."""

from __future__ import annotations

import math
import re

import psutil

from megatron_empg.environments.base import SideService
from megatron_empg.environments.conformance.findings import Rule, RuleDoubtful, RuleNotTried, refuse
from megatron_empg.environments.conformance.subject import EnvironmentUnderTest
from megatron_empg.environments.settings import EnvironmentSettings, role_of
from megatron_empg.environments.settings_fields import fields_of
from megatron_empg.environments.source_metrics import metric_faults

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def settings_are_documented(subject: EnvironmentUnderTest) -> None:
    fields = fields_of(subject.source.Settings)
    bare = [field.key for field in fields if not field.description and not field.group]
    refuse([f"setting {key} has no text below it that says what it means" for key in bare])


def isolation_is_known(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    faults: list[str] = []
    if source.isolation not in ("coroutine", "process"):
        faults.append(f'isolation is {source.isolation!r}; allowed: "coroutine", "process"')
    memory = source.worker_memory_gib
    if not (isinstance(memory, int | float) and math.isfinite(memory) and memory > 0):
        faults.append(f"worker_memory_gib is {memory!r}; it must be above 0")
    refuse(faults)
    there = psutil.virtual_memory().total / (1 << 30)
    if subject.in_process and memory > there:
        raise RuleDoubtful(
            f"worker_memory_gib is {memory:g}, and this machine has {there:.0f} GiB: "
            "no worker would be started on it"
        )


def services_can_be_started(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    services = type(source).services(source.settings)
    if not services:
        raise RuleNotTried("it needs none")
    faults: list[str] = []
    for service in services:
        if isinstance(service, SideService):
            faults += _service_faults(service, source.Settings)
        else:
            faults.append(f"services gave a {type(service).__name__}, not a SideService")
    refuse(faults)


def metrics_have_names_of_their_own(subject: EnvironmentUnderTest) -> None:
    refuse([f"metrics gave {fault}" for fault in metric_faults(subject.source.metrics())])


async def the_source_can_be_closed(subject: EnvironmentUnderTest) -> None:
    source = subject.source
    another = type(source)(source.settings, source.limits)
    await subject.call("close", another.close())


def _service_faults(service: SideService, settings: type[EnvironmentSettings]) -> list[str]:
    faults: list[str] = []
    if isinstance(service.arguments, str) or not all(map(_is_word, service.arguments)):
        faults.append(
            f"service {service.name!r} has arguments that are not a tuple of words: {service.arguments!r:.80}"
        )
    field = settings.model_fields.get(service.setting)
    if field is None or role_of(field) != "service":
        faults.append(
            f"service {service.name!r} has the setting {service.setting!r}, which is not a ServiceAddress"
        )
    if not VARIABLE.fullmatch(service.token_variable):
        faults.append(f"the token of service {service.name!r} is to be in {service.token_variable!r}, no variable")
    return faults


def _is_word(argument: object) -> bool:
    return isinstance(argument, str) and argument != "" and "\0" not in argument


RULES = (
    Rule("every setting says what it means", settings_are_documented),
    Rule("isolation is one that a run knows", isolation_is_known),
    Rule("the services that it needs can be started", services_can_be_started),
    Rule("what it counts has names of its own", metrics_have_names_of_their_own),
    Rule("the task source can be closed", the_source_can_be_closed),
)
