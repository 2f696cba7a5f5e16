"""Whether an environment keeps to the seam: `empg environments check NAME`."""

from megatron_empg.environments.conformance.findings import RuleFinding, Verdict
from megatron_empg.environments.conformance.run import RULES, check_environment

__all__ = ["RULES", "RuleFinding", "Verdict", "check_environment"]
