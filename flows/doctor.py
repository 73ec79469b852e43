"""`magic141 doctor`: checks Python, packages, device, disk and servers, with remedies."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.failures.reach import trouble
from flows.failures.servers import STORE
from flows.failures.writable import OTHER_WORKSPACE, nearest_existing, workspace_trouble
from magic141.cluster.room import usable_cpus
from magic141.environment import installed_version
from magic141.errors import UserError
from magic141.evaluation.scoring.vbench_needs import HOW_TO_INSTALL
from magic141.urls import without_credentials

GIB = 1 << 30
MIN_DISK_GIB = 5
PACKAGES = {  # distribution -> (module, what it is for)
    "torch": ("torch", "training and sampling"),
    "diffusers": ("diffusers", "the video transformer"),
    "transformers": ("transformers", "text and image encoders"),
    "peft": ("peft", "the fake score's LoRA"),
    "open-clip-torch": ("open_clip", "image priors"),
    "faiss-cpu": ("faiss", "the index of image priors"),
    "av": ("av", "reading and writing video"),
    "ray": ("ray", "training workers and data preparation"),
    "deepspeed": ("deepspeed", "engine: deepspeed"),
    "prefect": ("prefect", "the flow"),
    "mlflow": ("mlflow", "tracking and registry"),
}
OPTIONAL = {"vbench": f"for VBench's own scores: `make demo` installs it, or {HOW_TO_INSTALL}"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `remedy` is set if something is wrong, or (`ok`) could be better."""

    name: str
    state: str
    ok: bool = True
    remedy: str = ""


def examine(workspace: Path) -> Iterator[Finding]:
    """Checks Python, packages, device, disk and servers."""
    yield _python()
    for distribution, (module, purpose) in PACKAGES.items():
        yield _package(distribution, module, purpose)
    for distribution, remedy in OPTIONAL.items():
        found = installed_version(distribution)
        yield Finding(distribution, found or "not installed (optional)", remedy="" if found else remedy)
    yield _bytecode()
    yield _guarded("device", _device)
    yield _disk(workspace)
    yield _guarded(STORE, lambda: _store(workspace))
    yield _server("PREFECT_API_URL", "embedded, for the time of a command")
    yield _server("RAY_ADDRESS", "a local one, for the time of a stage")


def _python() -> Finding:
    supported = (3, 11) <= sys.version_info < (3, 14)
    remedy = "" if supported else "use Python 3.11, 3.12 or 3.13: make clean setup"
    return Finding("python", f"{platform.python_version()} on {platform.platform()}", not remedy, remedy)


def _package(distribution: str, module: str, purpose: str) -> Finding:
    found = installed_version(distribution)
    if found is None:
        return Finding(distribution, "not installed", False, f"for {purpose}: run `make setup`, or pip install -e .")
    try:
        if module == "deepspeed":
            from magic141.accelerator import settle_accelerator

            settle_accelerator()
        importlib.import_module(module)
    except Exception as error:  # importing a package may fail in any way
        why = without_credentials(str(error))
        return Finding(distribution, f"{found}, does not import: {why}", False, f"reinstall {distribution}=={found}")
    return Finding(distribution, found)


def _bytecode() -> Finding:
    """Whether Python keeps compiled modules, which the dozens of processes of a run can then share."""
    if sys.dont_write_bytecode:
        lost = "every process compiles torch and all else anew, 10 seconds or more"
        return Finding("bytecode", f"not kept: {lost}", remedy="unset PYTHONDONTWRITEBYTECODE")
    return Finding("bytecode", "kept")


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:
        return Finding(name, f"cannot be examined: {without_credentials(str(error))}", False, "see the packages above")


def _device() -> Finding:
    import psutil
    import torch

    memory = f"{psutil.virtual_memory().total / GIB:.0f} GiB memory"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", f"{names}; {usable_cpus()} CPU cores, {memory}")
    vectors = torch.backends.cpu.get_cpu_capability()
    return Finding("device", f"CPU, {usable_cpus()} cores, {vectors}, {memory}; configs/demo.yaml is made for this")


def _disk(workspace: Path) -> Finding:
    if problem := workspace_trouble(workspace):
        return Finding("workspace", f"{workspace}: {problem}", False, OTHER_WORKSPACE)
    free = shutil.disk_usage(nearest_existing(workspace)).free / GIB
    remedy = "" if free >= MIN_DISK_GIB else f"free {MIN_DISK_GIB} GiB, or set MAGIC141_HOME to a larger disk"
    return Finding("workspace", f"{workspace}: {free:.0f} GiB free", not remedy, remedy)


def _server(variable: str, default: str) -> Finding:
    if problem := trouble(variable):
        return Finding(variable, problem, False, "infra/README.md says how the servers start")
    return Finding(variable, without_credentials(os.environ.get(variable, "")) or f"not set: {default}")


def _store(workspace: Path) -> Finding:
    """The tracking server: checks its health, and that it answers a real request."""
    finding = _server(STORE, f"SQLite in {workspace}")
    if not (finding.ok and os.environ.get(STORE)):
        return finding
    from magic141.tracking.first_contact import require_answer
    from magic141.tracking.store_address import tracking_uri

    try:
        require_answer(tracking_uri(workspace))
    except UserError as error:
        return Finding(STORE, str(error), False, "infra/README.md says how the servers start")
    return finding
