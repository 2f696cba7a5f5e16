"""Is every node fit for the run? Facts are collected on each node; what they mean is judged apart from that."""
