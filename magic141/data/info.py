"""What a prepared corpus says of itself: sizes, quality, bad files. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from magic141.data.sizes import Size
from magic141.data.sources.splits import HeldOut
from magic141.errors import UserError

INFO_FILE = "dataset.json"
ORIGINS_FILE = "origins.json"  # beside it, and no result: see `origins`


class BadFileInfo(BaseModel):
    """A file that was not used, and why."""

    file: str
    reason: str


class DatasetInfo(BaseModel):
    """Sizes and quality of a prepared corpus."""

    model_config = ConfigDict(frozen=True)

    num_clips: dict[str, int]
    source: str
    fps: float
    num_frames: int
    height: int
    width: int
    latent_shape: tuple[int, int, int, int]  # C, T, h, w
    text_width: int
    pooled_width: int
    temporal_factor: int
    has_ground_truth: bool
    bad_files: tuple[BadFileInfo, ...]
    codec_psnr_db: float
    heldout: HeldOut | None = None  # by which rule clips are held out; None where they are drawn separately (shapes)
    more_sizes: tuple[Size, ...] = ()  # that training clips may have, besides height x width
    num_of_size: dict[str, int] = {}  # training clips of every size that some have, if there are more sizes

    @property
    def more_sizes_found(self) -> tuple[Size, ...]:
        """Those of `more_sizes` that training clips have."""
        return tuple(size for size in self.more_sizes if str(size) in self.num_of_size)

    @property
    def latent_size(self) -> str:
        """Height and width of the latents, of all sizes, as the config gives them."""
        *_, height, width = self.latent_shape
        more = (f"{size.height * height // self.height}x{size.width * width // self.width}" for size in self.more_sizes)
        return " ".join([f"{height}x{width}", *more])


def load_info(folder: Path) -> DatasetInfo:
    """Reads dataset.json."""
    return DatasetInfo.model_validate_json(existing(folder / INFO_FILE).read_text())


def existing(path: Path) -> Path:
    """The path of a file of a prepared corpus.

    Raises:
        UserError: if there is none.
    """
    if not path.is_file():
        raise UserError(f"data set file {path}: no such file; expected a folder from prepare_data; prepare it again")
    return path
