"""The main job end to end: two zoos, one SANE, a probe table, sampled networks, one report."""
