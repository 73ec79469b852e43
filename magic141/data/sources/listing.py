"""Which files of a folder are videos, and which caption belongs to each. Imports nothing heavy: plans use it too."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from magic141.artifacts.digests import source_files
from magic141.errors import UserError

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".mov", ".m4v", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts",
    ".wmv", ".asf", ".flv", ".ogv", ".gif",
})
FOREIGN_SUFFIXES = frozenset({  # of videos that are named instead of being passed over in silence
    ".rm", ".rmvb", ".mxf", ".dv", ".divx", ".f4v", ".ogm", ".qt", ".m1v", ".m2v", ".mpv", ".h264", ".264", ".h265",
    ".265", ".hevc", ".ivf", ".y4m", ".swf", ".wtv", ".trp", ".mj2", ".nut",
})
# fmt: on
CAPTIONS_FILE = "captions.jsonl"


class BadFile(NamedTuple):
    """A file that cannot be used, and why."""

    file: str
    reason: str


class Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    modified_ns: int


class VideoFile(NamedTuple):
    """A video and its caption."""

    file: str  # relative to the folder, with forward slashes
    caption: str


class Listing(NamedTuple):
    """Usable and unusable videos."""

    videos: list[VideoFile]
    bad_files: list[BadFile]


class CaptionTable(NamedTuple):
    """What captions.jsonl says: {file inside the folder: caption}, and its lines that say nothing."""

    captions: dict[str, str]
    bad_lines: list[BadFile]


def list_videos(folder: Path) -> Listing:
    """Finds the videos of a folder and their captions, from captions.jsonl or a .txt beside each video.

    Raises:
        UserError: for a missing folder, one without videos, or a captions.jsonl in another encoding than UTF-8.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"data.path = {folder}: {what}; expected a folder of videos with {CAPTIONS_FILE}")
    listed = source_files(folder)
    table = _read_table(folder)
    texts = {_stem(path): path for path in listed if path.suffix.lower() == ".txt"}
    files = {path.relative_to(folder).as_posix(): path for path in listed if _is_video(path)}
    if not files and not table.captions and not table.bad_lines:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"data.path = {folder}: no videos in it; expected files that end in one of {known}")
    written = {_composed(name): name for name in table.captions}
    rows = {name: name if name in table.captions else written.get(_composed(name), name) for name in files}
    judged = [
        _judge(name, path, table.captions.get(rows[name]), texts.get(_stem(path))) for name, path in files.items()
    ]
    lost = sorted(set(table.captions) - set(rows.values()))
    missing = [BadFile(_shown(name), f"named in {CAPTIONS_FILE}, but there is no such video") for name in lost]
    bad = [result for result in judged if isinstance(result, BadFile)]
    return Listing([result for result in judged if isinstance(result, VideoFile)], [*table.bad_lines, *bad, *missing])


def stamp_file(path: Path) -> Stamp:
    """A file's size and time; of one that is gone such as no file has."""
    try:
        stat = path.stat()
    except OSError:
        return Stamp(-1, -1)
    return Stamp(stat.st_size, stat.st_mtime_ns)


def corpus_files(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Those of a folder's files that `list_videos` reads or names: videos and captions, but not a README."""
    videos = {_stem(path) for path in files if _is_video(path)}
    return [
        path
        for path in files
        if _is_video(path)
        or path == folder / CAPTIONS_FILE
        or (path.suffix.lower() == ".txt" and _stem(path) in videos)
    ]


def _judge(name: str, path: Path, caption: str | None, text: Path | None) -> VideoFile | BadFile:
    """A video with its caption, from the table or else from its .txt, or what is wrong with either."""
    if not _is_text(name):
        return BadFile(repr(name), "its name is not UTF-8, the encoding expected; rename it")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return BadFile(name, f"files that end in {path.suffix} are not read; convert it to .mp4, or remove it")
    if caption is None and text is not None:
        caption = _read_utf8(text)
        if caption is None:
            return BadFile(name, f"{text.name} is not UTF-8, the encoding expected")
    if caption is None:
        return BadFile(name, f"no caption: neither in {CAPTIONS_FILE} nor in {path.stem}.txt")
    if not caption.strip():
        return BadFile(name, "empty caption")
    if not _is_text(caption):
        return BadFile(
            name, f"its caption {caption!r} is not valid text: it contains half a character, such as a cut emoji"
        )
    return VideoFile(name, " ".join(caption.split()))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | FOREIGN_SUFFIXES


def _is_text(text: str) -> bool:
    """Whether it can be written: names that are not UTF-8, and JSON, may have halves of characters in them."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(name: str) -> str:
    return name if _is_text(name) else repr(name)


def _composed(name: str) -> str:
    """The form in which é is one code point: macOS writes names with two, a table from elsewhere does not."""
    return unicodedata.normalize("NFC", name)


def _stem(path: Path) -> str:
    """What a video and its .txt have in common."""
    return _composed(str(path.with_suffix("")))


def _read_utf8(path: Path) -> str | None:
    """A file's text, without a byte-order mark; None if it is in another encoding."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text  # UTF-16 without a byte-order mark passes as UTF-8 with zeros in between


def _read_table(folder: Path) -> CaptionTable:
    """Reads captions.jsonl; an empty table when there is none. Of two lines of a file the first counts."""
    path, table = folder / CAPTIONS_FILE, CaptionTable({}, [])
    if not path.is_file():
        return table
    text = _read_utf8(path)
    if text is None:
        raise UserError(f"{path}: not UTF-8, the encoding expected; save it as UTF-8")
    root = folder.resolve()
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: other line ends may be in captions
        if not line.strip():
            continue
        row = _parse_caption(line)
        if isinstance(row, VideoFile):
            file = _inside(root, Path(row.file))
            if table.captions.setdefault(file, row.caption) == row.caption:
                continue
            row = f"file {file!r} is named a second time, with another caption; keep one of the two lines"
        table.bad_lines.append(BadFile(f"{CAPTIONS_FILE}, line {number}", row))
    return table


def _parse_caption(line: str) -> VideoFile | str:
    """What a line says, or what is wrong with it."""
    expected = 'expected {"file": "a.mp4", "caption": "..."}; correct the line'
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"{line[:60]!r} is not JSON ({getattr(error, 'msg', error)}); {expected}"
    if not isinstance(row, dict):
        return f"{line[:60]!r} is not a JSON object; {expected}"
    for field in ("file", "caption"):
        if not isinstance(row.get(field), str):
            return f"field {field!r} is {row.get(field)!r}; {expected}"
    if "\0" in row["file"]:
        return f"field 'file' is {row['file']!r}; {expected}"
    return VideoFile(row["file"], row["caption"])


def _inside(root: Path, file: Path) -> str:
    """The name that `list_videos` gives a file; an absolute path may lead through a link."""
    ways = (file, file.resolve()) if file.is_absolute() else ()
    return next((way.relative_to(root).as_posix() for way in ways if way.is_relative_to(root)), file.as_posix())
