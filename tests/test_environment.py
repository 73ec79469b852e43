import importlib
import sys

import pytest

from magic141.environment import as_if_missing


def test_a_package_is_missing_only_inside() -> None:
    sys.modules.pop("colorsys", None)
    with as_if_missing("colorsys"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv


def test_a_package_that_is_imported_stays() -> None:
    with as_if_missing("sys"):
        assert importlib.import_module("sys") is sys
    assert "sys" in sys.modules
