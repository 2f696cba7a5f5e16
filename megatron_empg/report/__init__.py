"""report.html: one self-contained page that shows how a run went."""

from megatron_empg.report.page import write_learning_curve, write_report

__all__ = ["write_learning_curve", "write_report"]
