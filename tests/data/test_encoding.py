"""What a prepared corpus says of its clips."""

from __future__ import annotations

from magic141.data.encoding import clip_id


def test_a_clip_is_known_by_its_pixels_and_its_caption() -> None:
    """Evaluation finds clips again by this: one video may be there twice, with two captions."""
    assert clip_id("black", "a cat") == clip_id("black", "a cat")
    assert len({clip_id(pixels, caption) for pixels in ("black", "white") for caption in ("a cat", "a dog")}) == 4
