"""The exported student as a service: an MLflow pyfunc model, and a web application on Ray Serve."""
