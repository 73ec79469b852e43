"""Runs as MLflow records them: a new one opened and named, earlier ones continued and judged."""
