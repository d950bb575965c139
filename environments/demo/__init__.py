"""`atropos demo`: the whole loop on one machine, each part the real one, started and stopped together."""
