"""Prefect tasks: one thin task a stage over the library."""
