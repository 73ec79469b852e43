"""Evaluation: prompt suite, exact metrics, VBench, performance and the report."""
