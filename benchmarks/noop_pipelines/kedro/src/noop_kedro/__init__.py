"""The seven stages as a Kedro project."""
