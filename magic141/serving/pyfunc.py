"""The module that MLflow imports to load a published folder as a pyfunc model; the folder's MLmodel names it."""

from __future__ import annotations

import base64
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magic141.config.errors import validated
from magic141.data.videos.video import fit_nearest
from magic141.errors import UserError
from magic141.serving.config import Limits
from magic141.serving.requests import FIELDS, RequestError, VideoRequest, check_request
from magic141.serving.student import Student


@dataclass(frozen=True)
class PyfuncModel:
    """The model as MLflow calls it."""

    student: Student
    limits: Limits

    def predict(self, data: Any) -> list[dict[str, str]]:
        """Makes a video for every row.

        Args:
            data: DataFrame, dictionary or list of dictionaries with the columns image (bytes of a PNG, JPEG or WebP
                file, or their base64 text), prompt, and optionally seconds and seed.

        Returns:
            One row per input row, with the column video: an mp4 file as base64 text.

        Raises:
            UserError: if a row is invalid; all rows are checked before the first video is made.
        """
        requests = [self._checked(number, row) for number, row in enumerate(_rows(data))]
        return [{"video": base64.b64encode(self.student.animate(request).mp4).decode()} for request in requests]

    def _checked(self, number: int, row: Mapping[str, Any]) -> VideoRequest:
        """The request, with its picture scaled to the model's size: all rows are in memory at the same time."""
        try:
            request = check_request({**row, "image": _decoded(row.get("image"))}, self.limits)
        except RequestError as error:
            raise UserError(f"row {number}: {error}") from None
        return replace(request, image=fit_nearest(request.image, self.student.bundle.info.sizes))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncModel:
    """MLflow's entry point. `model_config` holds the limits, which `load_model(uri, model_config=...)` overrides."""
    limits = validated(Limits, dict(model_config or {}), "model_config")
    return PyfuncModel(Student.load(Path(path)), limits)


def _rows(data: Any) -> Iterator[Mapping[str, Any]]:
    if hasattr(data, "to_dict"):  # a DataFrame
        data = data.to_dict(orient="records")
    for row in [data] if isinstance(data, Mapping) else data:
        if not isinstance(row, Mapping):
            raise UserError(f"input of type {type(row).__name__}: expected rows with the columns {', '.join(FIELDS)}")
        yield row


def _decoded(image: object) -> object:
    """The picture's bytes, which may be given as base64: as text or, by MLflow's server, as the bytes of the text."""
    if isinstance(image, str):
        try:
            return _from_base64(image.encode())
        except ValueError:
            expected = "bytes, or their base64 text"
            raise RequestError("image", f"{len(image)} characters", expected, "encode the file, not its name") from None
    if isinstance(image, bytes):
        with suppress(ValueError):  # a picture has bytes that no base64 has
            return _from_base64(image)
    return image


def _from_base64(text: bytes) -> bytes:
    return base64.b64decode(text.translate(None, string.whitespace.encode()), validate=True)
