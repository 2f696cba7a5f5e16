"""`empg watch`: a run in a terminal, from what its folder says. Nothing is written, no process is asked."""
