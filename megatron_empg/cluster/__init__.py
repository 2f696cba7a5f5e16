"""What a cluster must be before and while a run holds it: preflight checks and the suite of collectives."""
