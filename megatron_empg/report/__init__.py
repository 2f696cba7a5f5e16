"""report.html: one self-contained page that shows how a run went."""
