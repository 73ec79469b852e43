from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from magic141.data.sources.splits import SPLITS, Split, rank_of, split_windows
from magic141.data.sources.video_groups import VideoGroup, group_videos, note_copies

FEW = [4, 8, 1, 12, 16, 13]  # windows of the six real videos that the README's example has


def corpus(counts: list[int], prefix: str = "") -> list[VideoGroup]:
    """Videos that all differ; each is told by its first number, whatever else is there."""
    return [VideoGroup((f"{prefix}{number}",), (number,), (count,)) for number, count in enumerate(counts)]


def windows(split: Split, name: str) -> int:
    return sum(video.count(name) for video in split.labels)


def videos(split: Split, name: str) -> set[int]:
    return {number for number, video in enumerate(split.labels) if name in video}


@pytest.mark.parametrize("counts", [[1] * 200, [40] * 60, [*range(1, 201)], [1000, *[9] * 300]])
def test_whole_videos_are_held_out_where_there_are_enough(counts: list[int]) -> None:
    split = split_windows(corpus(counts), fraction=0.15, gap=3)
    assert split.heldout == "videos"
    (note,) = split.notes
    assert note.startswith("held-out clips come from videos that are never trained on (a model trained while there")
    assert [len(video) for video in split.labels] == counts
    assert all(len(set(video)) == 1 for video in split.labels)
    assert all(0.05 < windows(split, name) / sum(counts) < 0.28 for name in ("validation", "heldout"))


@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.49])
def test_half_of_the_videos_train_whatever_is_asked_for(fraction: float) -> None:
    assert windows(split_windows(corpus([10] * 200), fraction, gap=3), "train") >= 0.5 * 2000


def test_a_video_longer_than_what_is_held_out_trains_wherever_it_ranks() -> None:
    first, *others = (str(number) for number in sorted(range(301), key=lambda number: rank_of(str(number))))
    groups = [VideoGroup((first,), (0,), (1000,))]
    groups += [VideoGroup((digest,), (1 + place,), (9,)) for place, digest in enumerate(others)]
    split = split_windows(groups, fraction=0.15, gap=3)
    assert split.heldout == "videos"
    assert set(split.labels[0]) == {"train"}


def test_tails_are_held_out_where_all_videos_rank_among_the_held_out_ones() -> None:
    first = sorted(map(str, range(999)), key=rank_of)[:30]
    groups = [VideoGroup((digest,), (place,), (10,)) for place, digest in enumerate(first)]
    split = split_windows(groups, fraction=0.15, gap=1)
    assert split.heldout == "tails"
    assert all(windows(split, name) for name in SPLITS)


def test_of_many_windows_those_that_are_kept_lie_spread_over_their_video() -> None:
    split = split_windows(corpus([90] * 100), fraction=0.15, gap=3, max_windows=3)
    held = [video for video in split.labels if "heldout" in video]
    assert [[place for place, label in enumerate(video) if label] for video in held] == [[45]] * 3
    held = [video for video in split_windows(corpus([90] * 20), 0.15, 3, 9).labels if "heldout" in video]
    assert [[place for place, label in enumerate(video) if label] for video in held] == [[15, 45, 75]] * 3
    assert windows(split_windows(corpus([90] * 20), 0.15, 3, 10), "heldout") == 10, "one has four"


def test_a_corpus_of_few_videos_or_a_few_long_ones_holds_out_tails_and_says_so() -> None:
    for counts in (FEW, [30] * 19, [500, 500, *[1] * 15]):
        split = split_windows(corpus(counts), fraction=0.15, gap=3)
        assert split.heldout == "tails"
        assert split.notes[0].startswith("held-out clips are later parts of videos that were trained on")
        assert all(windows(split, name) for name in SPLITS)
        assert videos(split, "heldout") & videos(split, "train")
    assert split_windows(corpus([30] * 20), fraction=0.15, gap=3).heldout == "videos"
    assert split_windows([], fraction=0.15, gap=3) == Split([], "tails", [split.notes[0]])


@pytest.mark.parametrize("num_windows", [3, 7])
def test_short_videos_of_a_small_corpus_are_held_out_whole_and_said_to_be(num_windows: int) -> None:
    split = split_windows(corpus([num_windows] * 15), fraction=0.15, gap=3)
    assert not videos(split, "heldout") & videos(split, "train")
    assert split.heldout == "short_videos"
    assert split.notes[0].startswith("held-out clips come from videos that are never trained on, too short to be split")
    assert split_windows(corpus([8] * 15), fraction=0.15, gap=3).heldout == "tails"


@pytest.mark.parametrize("counts", [[1] * 4000, [4] * 1000, [40] * 100, [400] * 100])
def test_a_limit_is_kept_and_spread_over_many_videos(counts: list[int]) -> None:
    split = split_windows(corpus(counts), fraction=0.15, gap=3, max_windows=20)
    for name in ("validation", "heldout"):
        assert 3 <= windows(split, name) <= 20
        assert windows(split, name) == 20 or counts == [1] * 4000  # where fewer may be nearest, by chance
        assert min(10, 0.004 * len(counts)) <= len(videos(split, name)) <= max(3, 0.015 * len(counts))
    assert not videos(split, "train") & (videos(split, "heldout") | videos(split, "validation"))
    assert windows(split, "train") / sum(counts) > 0.85
    assert split_windows(corpus(counts), 0.15, 3, max_windows=10**6) == split_windows(corpus(counts), 0.15, 3)


@pytest.mark.parametrize("limit", [None, 512])
def test_what_is_held_out_stays_so_when_the_corpus_grows(limit: int | None) -> None:
    rng = np.random.default_rng(0)
    old = corpus([int(count) for count in rng.integers(1, 30, 2000)], "old")
    before = split_windows(old, 0.15, 1, limit)
    assert windows(before, "heldout") > 400
    for num_new in (1, 100, 2000):
        new = [VideoGroup((f"new{number}",), (number,), (17,)) for number in range(num_new)]
        moved = [group._replace(videos=(group.videos[0] + num_new,)) for group in old]
        after = split_windows([*new, *moved], 0.15, 1, limit)
        now = {number - num_new for number in videos(after, "train")}
        lost = len(videos(before, "heldout") & now) / len(videos(before, "heldout"))
        assert lost == 0 if limit is None else lost < (0.02 if num_new == 1 else 0.6)
        later = {number - num_new for number in videos(after, "heldout") if number >= num_new}
        assert later <= videos(before, "heldout"), "an older model was not trained on any of them"


def split_files(files: Sequence[str], limit: int | None = None) -> dict[str, set[str | None]]:
    """File -> its labels, in a corpus of files that all differ, of ten windows each."""
    split = split_windows(group_videos(files, files, [10] * len(files)), 0.15, 1, limit)
    assert split.heldout == "videos"
    return {file: set(labels) for file, labels in zip(files, split.labels, strict=True)}


@pytest.mark.parametrize(("num", "limit"), [(60, None), (400, 200)])
def test_a_video_that_trained_is_not_held_out_for_a_copy_beside_it_in_another_format(
    num: int, limit: int | None
) -> None:
    rng = np.random.default_rng(0)
    files = [f"{number}.mp4" for number in range(num)]
    before = first = split_files(files, limit)
    for suffix in ("mov", "webm", "avi"):
        files += [f"{number}.{suffix}" for number in rng.permutation(num)[: num // 10]]
        after = split_files(sorted(files), limit)
        assert not [file for file, labels in before.items() if "train" in labels and after[file] != {"train"}]
        before = after
    left = [file for file, labels in first.items() if "train" not in labels and after[file] == {"train"}]
    assert left, "what was held out may train later, or the copies changed nothing here"


def test_where_copies_leave_too_few_videos_others_are_held_out_with_a_note() -> None:
    alone = [VideoGroup((str(number),), (number,), (10,)) for number in range(24)]
    before = split_windows(alone, 0.15, 1)
    first = min(videos(before, "heldout"))
    trains = next(str(number) for number in range(24, 99) if 0.3 < rank_of(str(number)) < 0.7)
    alone[first] = VideoGroup((str(first), trains), (first, 24), (10, 10))
    after = split_windows(alone, 0.15, 1)
    assert after.labels[first] == after.labels[24] == ["train"] * 10
    assert len(videos(before, "heldout")) == len(videos(after, "heldout")) == 3
    assert len(before.notes) == 1
    assert [note.partition(" have")[0] for note in after.notes[1:]] == ["heldout: too few videos"]


def test_a_video_with_copies_is_in_one_split_even_if_it_is_near_both_ends() -> None:
    near, far = (sorted(map(str, range(999)), key=lambda digest: sign * rank_of(digest)) for sign in (1, -1))
    middle = [str(number) for number in range(999) if abs(rank_of(str(number)) - 0.5) < 0.02]
    groups = [VideoGroup((near[k], far[k]), (k, 23 + k), (10, 10)) for k in range(20)]
    groups += [VideoGroup((middle[k],), (20 + k,), (10,)) for k in range(3)]
    split = split_windows(groups, 0.15, 1)
    held, validating = videos(split, "heldout"), videos(split, "validation")
    assert (len(held), len(validating), held & validating) == (3, 3, set())


def test_copies_are_in_one_split_and_not_judged_twice() -> None:
    for num, rule in ((60, "videos"), (6, "tails")):
        files = [f"{kind}{number:02d}.mp4" for kind in ("copy", "v") for number in range(num)]
        counts = [12] * 2 * num
        split = split_windows(group_videos(files, [file[-6:-4] for file in files], counts), 0.15, 3)
        assert split.heldout == rule
        for first, second in zip(split.labels[:num], split.labels[num:], strict=True):
            assert second == ["train" if label == "train" else None for label in first]


def test_a_longer_copy_never_trains_on_what_is_held_out() -> None:
    groups = [*corpus(FEW), VideoGroup((*"abc",), (6, 7, 8), (30, 32, 29))]
    labels = split_windows(groups, 0.15, 3).labels
    assert [len(video) for video in labels] == [*FEW, 30, 32, 29]
    num_train = labels[6].count("train")
    assert labels[7] == ["train"] * num_train + [None] * (32 - num_train)
    assert labels[8] == labels[7][:29]


def test_files_of_equal_content_or_name_are_one_video() -> None:
    files = ["a.mov", "a.mp4", "b/a.mp4", "c.mp4", "d.mp4", "e.v1.mp4", "e.v2.mp4"]
    groups = group_videos(files, ["2", "1", "3", "4", "2", "5", "6"], [9, 8, 7, 6, 5, 4, 3])
    assert groups == [
        VideoGroup((*"212",), (0, 1, 4), (9, 8, 5)),
        VideoGroup(("3",), (2,), (7,)),
        VideoGroup(("4",), (3,), (6,)),
        VideoGroup(("5",), (5,), (4,)),
        VideoGroup(("6",), (6,), (3,)),
    ]
    (note,) = note_copies(files, groups)
    assert note.startswith("a.mp4, d.mp4: copies of other videos")
    assert note_copies(files, groups[1:]) == []
    backwards = group_videos(files[::-1], [*"2134256"][::-1], [1] * 7)
    assert [set(group.ranked_by) for group in backwards] == [{"6"}, {"5"}, {"1", "2"}, {"4"}, {"3"}], "in any order"


def split_scenes(num_films: int, scenes: int = 30, first_film: int = 0) -> dict[str, set[str | None]]:
    """Scene -> its labels; a film's scenes are in one folder."""
    films = range(first_film, first_film + num_films)
    files = [f"films/{film}/{scene}.mp4" for film in films for scene in range(scenes)]
    split = split_windows(group_videos(files, files, [2] * len(files), by_folder=True), 0.15, 1)
    return {file: set(labels) for file, labels in zip(files, split.labels, strict=True)}


def test_scenes_of_a_film_are_in_one_split() -> None:
    labels = split_scenes(100)
    films = {file.split("/")[1]: set[str | None]() for file in labels}
    for file, found in labels.items():
        films[file.split("/")[1]] |= found
    assert all(len(found) == 1 for found in films.values())
    shares = {name: sum(found == {name} for found in films.values()) for name in SPLITS}
    assert shares["heldout"] >= 3
    assert shares["validation"] >= 3
    assert shares["train"] > 50


def test_a_film_that_trained_is_not_held_out_as_others_are_added() -> None:
    before, after = split_scenes(60), split_scenes(120)
    assert not [file for file, labels in before.items() if labels == {"train"} != after[file]]


def test_a_folder_larger_than_what_is_held_out_trains_and_too_few_are_not_enough() -> None:
    large = [f"a/{scene}.mp4" for scene in range(400)]
    others = [f"{film}/{scene}.mp4" for film in range(60) for scene in range(10)]
    groups = group_videos([*large, *others], [*large, *others], [1] * 1000, by_folder=True)
    split = split_windows(groups, 0.15, 1)
    assert split.heldout == "videos"
    assert all(labels == ["train"] for labels in split.labels[:400])
    assert split_windows(groups[:400], 0.15, 1).heldout != "videos", "one folder: nothing to hold out as a whole"


def test_a_video_in_no_subfolder_is_by_itself() -> None:
    groups = group_videos(["a.mp4", "b.mp4", "c/d.mp4"], ["1", "2", "3"], [1, 1, 1], by_folder=True)
    assert [group.ranked_by for group in groups] == [("1",), ("2",), ("folder c",)]
