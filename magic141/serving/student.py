"""The exported student as used by every kind of service: turns a checked request into an encoded video."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from magic141.data.videos.video import video_bytes
from magic141.export import Bundle, load_bundle
from magic141.models.device import sampling_device
from magic141.serving.requests import Video, VideoRequest


class Student:
    """A loaded model that makes one video at a time, even if several threads ask."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(cls, folder: Path, num_gpus: float | None = None) -> Self:
        """Loads an exported folder completely, so that the first request need not wait for the encoders.

        Args:
            folder: the export.
            num_gpus: as in `sampling_device`.
        """
        bundle = load_bundle(folder, sampling_device(num_gpus))
        _ = bundle.encoders.parts  # loaded on first access
        return cls(bundle)

    def animate(self, request: VideoRequest) -> Video:
        """Generates the video."""
        with self._one_at_a_time:
            start = time.monotonic()
            remarks = tuple(self.bundle.encoders.remarks(request.prompt))
            frames = self.bundle.generate(request.image, request.prompt, request.seconds, request.seed)
            mp4 = video_bytes(frames, self.bundle.info.fps)
            return Video(mp4, remarks, time.monotonic() - start)
