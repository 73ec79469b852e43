"""The variables that name servers; imports next to nothing, as the command line's help must be fast."""

from magic141.cluster.address import VARIABLE as RAY

STORE, PREFECT = "MLFLOW_TRACKING_URI", "PREFECT_API_URL"
SERVERS = (STORE, PREFECT, RAY)

__all__ = ["PREFECT", "RAY", "SERVERS", "STORE"]
