"""Reads and checks RAY_ADDRESS without importing Ray, which takes seconds."""

from __future__ import annotations

import os
import re

VARIABLE = "RAY_ADDRESS"
_HOST_AND_PORT = re.compile(r"(\[[\da-fA-F:.]+\]|[\w.-]+):\d+")


def ray_cluster() -> str:
    """The address of the cluster to use; empty if a local Ray is to be started."""
    address = os.environ.get(VARIABLE, "").strip()
    return "" if address == "local" else address


def ray_address_trouble() -> str | None:
    """What is wrong with RAY_ADDRESS, with the remedy; None if it is not set or may be right."""
    address = ray_cluster()
    if address in ("", "auto") or _HOST_AND_PORT.fullmatch(address):
        return None
    if address.startswith("ray://"):
        return (
            f"{VARIABLE} = {address}: Ray Client cannot run Ray Data's actors; run this on a node of the cluster with "
            f"{VARIABLE}=auto or HOST:6379"
        )
    return (
        f"{VARIABLE} = {address}: expected HOST:PORT such as 10.0.0.1:6379, or auto; unset {VARIABLE} for a local Ray"
    )
