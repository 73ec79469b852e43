"""Serves the exported student: as an MLflow pyfunc model, and as a web application on Ray Serve."""
