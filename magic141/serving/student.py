"""The exported student behind every kind of service: a checked request to the bytes of a video."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from magic141.data.pixels import Frames
from magic141.data.video import write_video
from magic141.export import Bundle, load_bundle
from magic141.serving.requests import Video, VideoRequest


class Student:
    """A loaded model that makes one video at a time, whichever thread asks."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads an exported folder, all of it: a first request would wait for the encoders."""
        bundle = load_bundle(folder)
        _ = bundle.encoders.parts  # read when first asked for
        return cls(bundle)

    def animate(self, request: VideoRequest) -> Video:
        """Generates the video."""
        with self._one_at_a_time:
            start = time.monotonic()
            remarks = tuple(self.bundle.encoders.remarks(request.prompt))
            frames = self.bundle.generate(request.image, request.prompt, request.seconds, request.seed)
            mp4 = _encoded(frames, self.bundle.info.fps)
            return Video(mp4, remarks, time.monotonic() - start)


def _encoded(frames: Frames, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        write_video(file, frames, fps)
        return file.read_bytes()
