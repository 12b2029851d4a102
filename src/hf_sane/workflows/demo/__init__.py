"""The full pipeline on a small example: two zoos, a SANE, probes, sampled networks and a report."""
