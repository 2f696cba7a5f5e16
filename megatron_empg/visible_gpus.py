"""Which GPUs are ours: CUDA_VISIBLE_DEVICES names them, by number, UUID or MIG instance."""

from collections.abc import Mapping

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(first: int, count: int, environment: Mapping[str, str]) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a process that gets `count` of the caller's GPUs, from `first` on.

    Where the caller has a list, these are entries of it. Raises ValueError when it is too short.
    """
    given = environment.get(VARIABLE)
    if given is None:
        return ",".join(str(index) for index in range(first, first + count))
    ours = [word.strip() for word in given.split(",") if word.strip()]
    if first + count > len(ours):
        raise ValueError(
            f"{VARIABLE} is {given!r}, {len(ours)} GPUs; "
            f"those from place {first} to {first + count - 1} are wanted"
        )
    return ",".join(ours[first : first + count])
