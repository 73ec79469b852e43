"""The import hook for torchvision, each case in a fresh interpreter because imports happen once."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import PATIENCE_S


def run_python(code: str) -> str:
    """Runs `code` in a new interpreter and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_import_is_light() -> None:
    heavy = ["torch", "torchvision", "diffusers", "transformers", "ray", "mlflow", "prefect", "numpy"]
    out = run_python(f"import sys, magic141; print([m for m in {heavy!r} if m in sys.modules])")
    assert out.strip() == "[]"


def test_libraries_that_need_torchvision_import() -> None:
    out = run_python(
        "import magic141, torchvision, open_clip, peft, torch\n"
        "from torchvision.transforms import v2\n"
        "print(tuple(v2.Resize((4, 4))(torch.rand(1, 3, 8, 8)).shape))"
    )
    assert out.strip() == "(1, 3, 4, 4)"


def test_lookups_before_import() -> None:
    out = run_python(
        "import importlib, importlib.util, magic141\n"
        "for _ in range(2): assert importlib.util.find_spec('torchvision') is not None\n"
        "importlib.reload(magic141)\n"
        "import torchvision, torch\n"
        "print(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert out.strip() == "True"


def test_installs_once() -> None:
    out = run_python(
        "import sys\n"
        "from magic141._torchvision import TorchvisionFinder, install\n"
        "install(); install()\n"
        "print(sum(isinstance(f, TorchvisionFinder) for f in sys.meta_path))"
    )
    assert out.strip() == "1"
