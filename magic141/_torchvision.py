"""Makes a CUDA build of torchvision importable with a CPU build of torch.

Package registries hold one torchvision wheel per platform, and it is a CUDA build. Its compiled operators cannot
load beside a CPU torch, so `import torchvision` stops at "operator torchvision::nms does not exist" and takes
`open_clip`, `peft` and the vision classes of `transformers` down with it. Only the *schemas* of two operators are
missing; once they are declared, everything in torchvision that is written in Python works. The operators themselves
stay unavailable, and nothing here uses them.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.library import Library

_PACKAGE = "torchvision"
_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionFinder(MetaPathFinder):
    """Prepares torch's operator registry when torchvision is first looked up; never finds a module itself."""

    def __init__(self) -> None:
        """Starts idle; the first lookup of torchvision does the work."""
        self._done = False
        self._library: Library | None = None  # the declared schemas live as long as this object

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declares the missing schemas once, then leaves the lookup to the usual finders by returning None."""
        if fullname == _PACKAGE and not self._done:
            self._done = True  # first, because torch may look torchvision up again
            self._declare_missing_schemas()
        return None

    def _declare_missing_schemas(self) -> None:
        spec = PathFinder.find_spec(_PACKAGE)
        if spec is None or spec.origin is None or _compiled_operators_load(Path(spec.origin).parent):
            return
        import torch

        self._library = torch.library.Library(_PACKAGE, "DEF")
        for schema in _MISSING_SCHEMAS:
            self._library.define(schema)


def _compiled_operators_load(folder: Path) -> bool:
    """Whether torchvision's operator library, if there is one, loads into the installed torch."""
    import torch

    libraries = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def install() -> None:
    """Puts the finder first on `sys.meta_path`, unless it is there or torchvision is already imported."""
    if _PACKAGE in sys.modules or any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, TorchvisionFinder())
