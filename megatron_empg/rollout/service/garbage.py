"""Garbage collection in a process that holds a batch of episodes in lists of numbers.

A full collection visits every number of every list, with the interpreter's lock held: 1.3 ms for 150,000 tokens
(measured), so a second for a thousand long episodes, in which no request and no timer is served.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1
_YOUNG = 1
"""The oldest generation that is collected without a visit to what lives long."""


@contextmanager
def no_full_collections() -> Iterator[None]:
    """What is there stays for good and is not visited again; of what comes, only what is young is collected.

    Reference counts free nearly everything; `free_cycles` frees the rest.
    """
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def free_cycles(*, at_rest: bool) -> None:
    """Free what refers to itself in a circle. While episodes play, so not `at_rest`, only what is young: a full
    collection would hold up all of them."""
    if at_rest:
        gc.collect()
    else:
        gc.collect(_YOUNG)
