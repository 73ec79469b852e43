"""Ray: where it is, how it is joined, and what fits on a machine."""
