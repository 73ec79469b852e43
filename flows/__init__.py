"""Prefect flows and the command line, without any computation of their own."""
