"""Artifacts appear whole, under a name of their own."""

import errno
import os
from pathlib import Path

import pytest

from magic141.artifacts import file_records
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.file_records import record_path
from magic141.artifacts.publication import (
    is_published_whole,
    link_or_copy,
    publish,
    publish_by_content,
    staging,
    written_aside,
)


def test_staging_leaves_nothing_unless_published(tmp_path: Path) -> None:
    final = tmp_path / "workspace" / "stage" / "key"
    with staging(final) as out:
        (out / "half.txt").write_text("half")
    assert list(final.parent.iterdir()) == []
    for text in ("first", "second"):
        with staging(final) as out:
            (out / "whole.txt").write_text(text)
            publish(out, final)
    assert [path.name for path in final.parent.iterdir()] == ["key"]
    assert (final / "whole.txt").read_text() == "second"


def test_what_is_written_aside_appears_only_without_an_error(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with written_aside(final) as folder:
            (folder / "whole.txt").write_text(text)
            if text == "half":
                raise RuntimeError

    final = tmp_path / "checkpoint"
    write("first")
    write("second")
    with pytest.raises(RuntimeError):
        write("half")
    assert list(tmp_path.iterdir()) == [final]
    assert (final / "whole.txt").read_text() == "second"


def test_all_of_it_is_on_the_disk_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, final.exists()))
        raise OSError(errno.EINVAL, "a file system that cannot say so")

    final, flushed = tmp_path / "stage" / "key", list[tuple[str, bool]]()
    monkeypatch.setattr(os, "fsync", fsync)
    num_open = len(os.listdir("/proc/self/fd"))
    with staging(final) as out:
        (out / "sub").mkdir()
        (out / "sub" / "whole.txt").write_text("whole")
        (out / "link").symlink_to("nowhere")
        publish(out, final)
        staged = out.name
    assert sorted(flushed) == sorted([("sub", False), ("whole.txt", False), (staged, False), ("stage", True)])
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no space"), written_aside(tmp_path / "key"):
        pass
    assert not (tmp_path / "key").exists()


def test_staging_clears_what_a_killed_worker_left(tmp_path: Path) -> None:
    final = tmp_path / "stage" / "key"
    left = final.parent / ".staging-key-1"
    left.mkdir(parents=True)
    record_path(left).touch()
    with staging(final) as out:
        assert list(final.parent.iterdir()) == [out]


def test_what_was_set_aside_comes_back_when_publishing_was_killed_before_the_new_one_was_there(tmp_path: Path) -> None:
    place = tmp_path / "stage" / "key"
    for name in ("lost", "whole", "moved"):
        (place.parent / f".old-key-{name}").mkdir(parents=True)
    (place.parent / "key-whole").mkdir()
    (place.parent / "key-whole" / "data.txt").write_text("newer")
    for other in (".old-other", ".old-key6"):  # of other keys, on which others may work
        (place.parent / other).mkdir()
    (place.parent / ".old-key").mkdir()
    with staging(place):
        pass
    left = {path.name for path in place.parent.iterdir()}
    assert left == {"key", "key-lost", "key-whole", "key-moved", ".old-other", ".old-key6"}
    assert (place.parent / "key-whole" / "data.txt").read_text() == "newer"


def test_a_publication_that_is_killed_half_way_leaves_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> Path:
        if source.name.startswith(".staging"):
            raise KeyboardInterrupt
        return replace(source, target)

    replace, final = Path.replace, tmp_path / "stage" / "key"
    with staging(final) as out:
        (out / "whole.txt").write_text("first")
        publish(out, final)
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), written_aside(final) as out:
        (out / "whole.txt").write_text("second")
    assert (final / "whole.txt").read_text() == "first"
    assert list(final.parent.iterdir()) == [final]


def test_other_content_of_the_same_key_stays_beside_and_equal_content_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "stage" / "key"

    def make(text: str, seconds: str) -> Path:
        with staging(place) as out:
            (out / "data.txt").write_text(text)
            (out / "timing.txt").write_text(seconds)
            return publish_by_content(out, place, ("timing.txt",)).path

    first, other, again = make("a", "1"), make("b", "2"), make("a", "3")
    assert first == again != other
    assert sorted(place.parent.iterdir()) == sorted({first, other})
    assert (first / "timing.txt").read_text() == "3"
    assert all(path.name.startswith("key-") for path in (first, other))


def test_an_artifact_is_whole_while_its_content_is_what_its_name_says(tmp_path: Path) -> None:
    place = tmp_path / "stage" / "key"
    with staging(place) as out:
        (out / "data.txt").write_text("a")
        made = publish_by_content(out, place, ("timing.txt",)).path
    (made / "timing.txt").write_text("1")
    assert is_published_whole(made, ("timing.txt",))
    shorter = made.rename(made.with_name(made.name[:-1]))
    assert not is_published_whole(shorter, ("timing.txt",)), "part of a digest is none"
    shorter.rename(made)
    (made / "data.txt").write_text("b")
    assert not is_published_whole(made, ("timing.txt",))


def test_digests_of_a_large_artifacts_files_are_kept_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_records, "ALWAYS_READ_BYTES", 0)
    place = tmp_path / "stage" / "key"
    for _ in range(2):
        with staging(place) as out:
            (out / "data.txt").write_text("a")
            made = publish_by_content(out, place)
    record = record_path(made.path)
    assert sorted(place.parent.iterdir()) == [made.path, record]
    monkeypatch.setattr("magic141.artifacts.digests.digest_file", lambda path: pytest.fail(f"{path} was read"))
    assert digest_folder(made.path, record=record) == made.digest
    assert is_published_whole(made.path)


def test_an_artifact_shares_the_file_behind_a_link_and_outlives_both(tmp_path: Path) -> None:
    """Checkpoints often consist of links into a cache, which may be cleared."""
    blob, link = tmp_path / "blob", tmp_path / "model.safetensors"
    blob.write_text("weights")
    link.symlink_to(blob)
    target = Path(link_or_copy(str(link), str(tmp_path / "artifact")))
    assert target.samefile(blob)
    for path in (link, blob):
        path.unlink()
    assert target.read_text() == "weights"


def test_a_file_of_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source = tmp_path / "source"
    source.write_text("weights")
    monkeypatch.setattr(os, "link", refuse)
    target = Path(link_or_copy(str(source), str(tmp_path / "artifact")))
    assert target.read_text() == "weights"
    assert not target.samefile(source)
