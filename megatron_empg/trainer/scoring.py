"""The actor's scores as an algorithm reads them: of all samples' own tokens, laid end to end."""

from collections.abc import Sequence

import torch

from megatron_empg.actor.actor import Actor
from megatron_empg.actor.reference import FrozenReference
from megatron_empg.algorithms.base import Probe, Scores
from megatron_empg.algorithms.sample import Sample


def score_samples(actor: Actor, samples: Sequence[Sample], temperature: float) -> Scores:
    """What the actor's current weights say; every rank gets all of it."""
    scores = actor.score(samples, temperature=temperature)
    nothing = torch.empty(0)
    return Scores(
        torch.cat([nothing, *(score.logprobs for score in scores)]),
        torch.cat([nothing, *(score.entropies for score in scores)]),
    )


def score_probes(
    actor: Actor, reference: FrozenReference | None, probes: Sequence[Probe], temperature: float
) -> list[Scores]:
    """The scores of each probe by the policy it names, in the order given.

    Raises RuntimeError for a probe of the run's initial policy when no ``reference`` was kept.
    """
    by_place: dict[int, Scores] = {}
    of_reference = [place for place, probe in enumerate(probes) if probe.policy == "reference"]
    for place, probe in enumerate(probes):
        if probe.policy == "current":
            by_place[place] = score_samples(actor, probe.samples, temperature)
    if of_reference:
        if reference is None:
            raise RuntimeError(
                "a probe asks for the run's initial policy, of which no copy is kept: the algorithm's section "
                "must say beforehand that it will (asks_reference)"
            )
        with reference.in_place():
            for place in of_reference:
                by_place[place] = score_samples(actor, probes[place].samples, temperature)
    return [by_place[place] for place in range(len(probes))]
