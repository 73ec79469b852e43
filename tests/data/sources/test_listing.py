from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from magic141.artifacts.digests import digest_source
from magic141.data.sources.listing import BadFile, VideoFile, corpus_files, list_videos
from magic141.errors import UserError

TABLE = "captions.jsonl"


def add_video(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()


def write_captions(folder: Path, *rows: object) -> None:
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_captions_from_the_table_and_from_text_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mp4", "c.mp4", "d.mp4"):
        add_video(tmp_path, name)
    write_captions(tmp_path, {"file": "a.mp4", "caption": " a  red\nball "}, {"file": "gone.mp4", "caption": "x"})
    (tmp_path / "sub" / "b.txt").write_text("a cat")
    (tmp_path / "c.txt").write_text(" \n")
    listing = list_videos(tmp_path)
    assert listing.videos == [VideoFile("a.mp4", "a red ball"), VideoFile("sub/b.mp4", "a cat")]
    reasons = dict(listing.bad_files)
    assert reasons["c.mp4"] == "empty caption"
    assert "no caption" in reasons["d.mp4"]
    assert "there is no such video" in reasons["gone.mp4"]


def test_captions_are_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    for name, encoding in (("ok", "utf-8-sig"), ("utf16", "utf-16"), ("no_mark", "utf-16-le"), ("latin", "latin-1")):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / f"{name}.txt").write_text("a café", encoding=encoding)
    listing = list_videos(tmp_path)
    assert listing.videos == [VideoFile("ok.mp4", "a café")]
    assert set(listing.bad_files) == {
        BadFile(f"{name}.mp4", f"{name}.txt is not UTF-8, the encoding expected")
        for name in ("utf16", "no_mark", "latin")
    }
    table = tmp_path / "captions.jsonl"
    table.write_text('{"file": "latin.mp4", "caption": "a café"}', encoding="utf-8-sig")
    assert VideoFile("latin.mp4", "a café") in list_videos(tmp_path).videos
    table.write_text('{"file": "latin.mp4", "caption": "a café"}', encoding="latin-1")
    with pytest.raises(UserError, match=r"captions\.jsonl: not UTF-8"):
        list_videos(tmp_path)


def test_links_are_followed_names_with_a_dot_left_out_and_suffixes_are_of_any_case(tmp_path: Path) -> None:
    folder, disk = tmp_path / "videos", tmp_path / "disk"
    for path in (folder / "._ok.mp4", folder / ".cache" / "x.mp4", folder / "UPPER.MP4", disk / "far.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "UPPER.TXT").write_text("a cat")
    (disk / "far.txt").write_text("a dog")
    (folder / "link").symlink_to(disk)
    (disk / "back").symlink_to(folder)
    assert list_videos(folder) == ([VideoFile("UPPER.MP4", "a cat"), VideoFile("link/far.mp4", "a dog")], [])


def test_the_table_may_name_files_by_their_whole_path(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "link").symlink_to("videos")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos" / name).touch()
    rows = [{"file": str(tmp_path / name), "caption": "x"} for name in ("videos/a.mp4", "link/b.mp4")]
    write_captions(tmp_path / "videos", *rows)
    assert list_videos(tmp_path / "videos") == ([VideoFile("a.mp4", "x"), VideoFile("b.mp4", "x")], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops", "'{oops' is not JSON (Expecting property name enclosed in double quotes)"),
        ('["a.mp4"]', "'[\"a.mp4\"]' is not a JSON object"),
        ('{"file": "a.mp4"}', "field 'caption' is None"),
        ('{"file": "a.mp4", "caption": null}', "field 'caption' is None"),
        ('{"file": 3, "caption": "x"}', "field 'file' is 3"),
        ('{"file": "a\\u0000.mp4", "caption": "x"}', "field 'file' is 'a\\x00.mp4'"),
        ('{"file": "v.mp4", "caption": "y"}', "file 'v.mp4' is named a second time, with another caption"),
    ],
)
def test_bad_caption_lines_are_bad_files_and_the_others_count(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "v.mp4").touch()
    good = '{"file": "v.mp4", "caption": "x"}\n'
    (tmp_path / TABLE).write_text(good + line + "\r\n\n" + good)
    listing = list_videos(tmp_path)
    assert listing.videos == [VideoFile("v.mp4", "x")]
    assert [bad.file for bad in listing.bad_files] == ["captions.jsonl, line 2"]
    assert listing.bad_files[0].reason.startswith(reason)


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\u2029", "\x0c"])
def test_signs_that_end_lines_elsewhere_may_be_in_captions_and_names(tmp_path: Path, sign: str) -> None:
    name = f"a{sign}b.mp4"
    (tmp_path / name).touch()
    row = {"file": name, "caption": f"one{sign}two"}
    (tmp_path / TABLE).write_text(json.dumps(row, ensure_ascii=sign < " ") + "\n", encoding="utf-8")
    assert list_videos(tmp_path) == ([VideoFile(name, "one two")], [])


def test_half_signs_in_captions_and_names_are_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    rows = [{"file": "a.mp4", "caption": "a cat \ud83d"}, {"file": "\ud83d.mp4", "caption": "x"}]
    write_captions(tmp_path, *rows)
    (videos, bad) = list_videos(tmp_path)
    assert not videos
    assert bad[0].reason.startswith(r"its caption 'a cat \ud83d' is not valid text")
    assert bad[1].file == r"'\ud83d.mp4'"
    str(bad).encode()


def test_names_that_are_not_utf8_are_bad_files(tmp_path: Path) -> None:
    for suffix in (b"mp4", b"txt"):
        with open(os.fsencode(tmp_path) + b"/caf\xe9." + suffix, "wb") as file:
            file.write(b"x")
    expected = BadFile(r"'caf\udce9.mp4'", "its name is not UTF-8, the encoding expected; rename it")
    assert list_videos(tmp_path) == ([], [expected])
    assert digest_source(tmp_path, corpus_files) == digest_source(tmp_path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_one_sign_and_of_two_are_the_same_name(
    tmp_path: Path, forms: tuple[Literal["NFC", "NFD"], ...]
) -> None:
    on_disk, in_table = (unicodedata.normalize(form, "café.mp4") for form in forms)
    (tmp_path / on_disk).touch()
    (tmp_path / TABLE).write_text(json.dumps({"file": in_table, "caption": "x"}))
    assert list_videos(tmp_path) == ([VideoFile(on_disk, "x")], [])
    (tmp_path / TABLE).unlink()
    (tmp_path / in_table).with_suffix(".txt").write_text("y")
    assert list_videos(tmp_path) == ([VideoFile(on_disk, "y")], [])
    before = digest_source(tmp_path, corpus_files)
    (tmp_path / in_table).with_suffix(".txt").write_text("z")
    assert digest_source(tmp_path, corpus_files) != before, "its caption counts in the key, too"


def test_videos_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.rmvb", "notes.pdf"):
        (tmp_path / name).touch()
    write_captions(tmp_path, *({"file": name, "caption": "x"} for name in ("a.mp4", "b.rmvb")))
    assert list_videos(tmp_path) == (
        [VideoFile("a.mp4", "x")],
        [BadFile("b.rmvb", "files that end in .rmvb are not read; convert it to .mp4, or remove it")],
    )


def test_only_videos_and_captions_count_in_the_key(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.txt", TABLE):
        (tmp_path / name).write_text(name)
    before = digest_source(tmp_path, corpus_files)
    assert before == digest_source(tmp_path)
    for name in ("README.md", "notes.txt", "sub/captions.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert digest_source(tmp_path, corpus_files) == before
    for name in ("a.txt", TABLE, "b.mov"):
        (tmp_path / name).write_text("other")
        assert digest_source(tmp_path, corpus_files) not in (before, digest_source(tmp_path))


def test_missing_folder_file_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "no such folder"), ("file", "not a folder"), ("empty", "no videos in it")):
        with pytest.raises(UserError, match=message):
            list_videos(tmp_path / name)
