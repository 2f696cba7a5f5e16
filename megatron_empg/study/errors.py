"""What a study is refused for."""

from megatron_empg.common.errors import EmpgError


class StudyError(EmpgError, ValueError):
    """A study that cannot be made as it was written, or a file of results that cannot be used."""

    exit_code = 2
