"""What a prepared corpus says of its clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from magic141.data.config import DataConfig
from magic141.data.encoding import clip_id, refuse_bad_files
from magic141.data.sources.listing import BadFile
from magic141.errors import UserError


def test_a_clip_is_known_by_its_pixels_and_its_caption() -> None:
    """Evaluation finds clips again by this: one video may be there twice, with two captions."""
    assert clip_id("black", "a cat") == clip_id("black", "a cat")
    assert len({clip_id(pixels, caption) for pixels in ("black", "white") for caption in ("a cat", "a dog")}) == 4


def test_with_fail_the_first_bad_file_is_named_and_the_others_are_counted() -> None:
    skip = DataConfig(source="folder", path=Path("videos"))
    fail = skip.model_copy(update={"on_bad_file": "fail"})
    bad = [BadFile(f"{number}.mp4", "empty") for number in range(3)]
    for num_bad, line in ((1, r"videos: 0\.mp4: empty; repair"), (3, r"videos: 0\.mp4: empty \(and 2 more\); repair")):
        with pytest.raises(UserError, match=line):
            refuse_bad_files(bad[:num_bad], fail)
    refuse_bad_files(bad, skip)
    refuse_bad_files([], fail)
