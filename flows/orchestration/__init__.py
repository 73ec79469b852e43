"""Prefect around a run: its server, stages as tasks, events for deployments, notices of failed runs."""
