"""Why a preparation stopped; what was fetched stays, and the same command goes on."""

from megatron_empg.common.errors import EmpgError


class PrepareError(EmpgError, RuntimeError):
    """A fault that the user can fix; the message says what, where and how."""


class BrokenManifest(PrepareError):
    """A prepared.json that cannot be read as one; a preparation writes it anew."""


class SourceUnavailable(PrepareError):
    """A place that does not have the file, or does not answer: another place may."""
