"""Frames of a video whose damage is an error: by default FFmpeg patches it up with smears, and says nothing."""

from __future__ import annotations

from collections.abc import Iterator

import av.error
from av.video.frame import VideoFrame

from magic141.data.videos.decoding import Video, is_of

_CUT_ANYWHERE = ("mpegts", "mpeg")  # formats of recordings, which begin and end within a picture


def sound_frames(video: Video) -> Iterator[VideoFrame]:
    """All frames of a video, from its first on: after a jump, what some refer to would be missing.

    What is broken before the first frame refers to what was cut off, and is left out as it is without these checks.

    Raises:
        av.error.InvalidDataError: a packet is damaged, which in a recording may be the last.
    """
    video.stream.codec_context.options = {"err_detect": "explode"}
    may_be_cut, has_begun = is_of(video, _CUT_ANYWHERE), False
    damage: Exception | None = None
    for number, packet in enumerate(video.container.demux(video.stream)):
        if damage is not None and has_begun and packet.size:  # an empty one only asks for the frames still held back
            raise damage
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            if not may_be_cut and (has_begun or number == 0):  # others begin with a whole picture
                raise
            damage = error
            continue
        if frames and not has_begun:
            has_begun, damage = True, None
        yield from frames
    if damage is not None and not has_begun:
        raise damage
