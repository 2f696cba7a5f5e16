"""Which GPUs are ours: CUDA_VISIBLE_DEVICES names them, by number, UUID or MIG instance."""

from collections.abc import Mapping

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NONE = ("-1", "NoDevFiles")
"""What stands there instead of a device where a process is to see none."""


def visible_gpus(first: int, count: int, environment: Mapping[str, str], present: int | None = None) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a process that gets `count` of the caller's GPUs, from `first` on.

    Where the caller has a list, these are entries of it; else all of the machine's are ours, `present` of them
    where that is known. Raises ValueError when there are too few.
    """
    given = environment.get(VARIABLE)
    if given is None:
        ours = [str(number) for number in range(first + count if present is None else present)]
        seen = f"this machine has {present} GPUs"
    else:
        words = [word.strip() for word in given.split(",")]
        ours = [word for word in words if word and word not in _NONE]
        seen = f"{VARIABLE} is {given!r}, {len(ours)} GPUs"
    if first + count > len(ours):
        raise ValueError(f"{seen}; those from place {first} to {first + count - 1} are wanted")
    return ",".join(ours[first : first + count])
