"""What keeps long videos from drifting: ways for a window to go on from the one before, on fresh clips.

    python benchmarks/drift.py --workspace runs-table1 --seeds 0 1 2 --write-docs

Needs the demo's runs up to their students, those of the pipeline or of choose_student.py without --try, and trains a
student that goes on from its own frames. Restartable: rows and students that are there are reused. About 5 minutes a
seed and 4 for its student (13 without AVX-512), on one core.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose_student import Case
from documents import store_results, write_section
from environment import settle
from finished import finished, parser_of_seeds
from jury import BATCH, Jury
from students import train_students
from torch import Tensor
from verdicts import mean

from magic141.config import PipelineConfig, load_config
from magic141.diffusion.samplers import randn_like
from magic141.evaluation.generation.long_videos import frame_spans
from magic141.evaluation.generation.suite import Conditions, long_video_seed
from magic141.evaluation.scoring.shapes import score_clips
from magic141.evaluation.variants import Variant, long_video_variants
from magic141.models.encoders import Encoders
from magic141.models.generator import VideoGenerator
from magic141.models.transformer import load_transformer
from tasks.evaluate import STAGE as EVALUATE
from tasks.generate import STAGE as GENERATE

NUM_CLIPS = 64
NOISE_SEED = 1_000_000  # apart from the seeds of the windows
COLUMNS = (("motion", "motion", 2), ("iou", "subject IoU", 2), ("background_psnr_db", "background dB", 1))
Figures = Mapping[str, Any]  # score -> its values at the windows that are shown; and figures of the whole video


@dataclass(frozen=True)
class Scheme:
    """How a window goes on from the one before.

    Attributes:
        carried: latent frames that it knows of that window.
        anchored: whether it knows the video's first frame before these, with its image tokens, as the product's
            windows do; or else the frame that comes just before them, decoded and encoded as a video's first.
        noise: standard deviation of what is added to all that it knows but the video's first frame.
        fused: all windows at every step, averaged where they overlap.
    """

    carried: int
    anchored: bool = True
    noise: float = 0.0
    fused: bool = False

    @property
    def label(self) -> str:
        """What a window knows."""
        start = "the video's first frame" if self.anchored else f"only the last frame{'s' * (self.carried > 0)}"
        carried = [f"{self.carried} carried"] * (self.carried > 0)
        how = [f"noise {self.noise:g}"] * (self.noise > 0) + ["fused"] * self.fused
        return ", ".join([start, *carried, *how])


NO_ANCHOR = Scheme(2, anchored=False)
OWN_FRAMES = "distill_dmd2.own_frames_fraction=0.5"
SELF_FORCED = "student, own frames"
SCHEMES = {  # model: its rows
    "student": (
        Scheme(1),
        Scheme(2),
        Scheme(3),
        Scheme(2, noise=0.05),
        Scheme(2, noise=0.1),
        Scheme(2, fused=True),
        replace(NO_ANCHOR, carried=0),
        replace(NO_ANCHOR, carried=1),
        NO_ANCHOR,
        replace(NO_ANCHOR, noise=0.05),
        replace(NO_ANCHOR, noise=0.1),
    ),
    SELF_FORCED: (Scheme(2), NO_ANCHOR),
    "teacher": (Scheme(2), NO_ANCHOR),
}
IN_DOCS = (Scheme(1), Scheme(2), NO_ANCHOR)  # rows of docs/results.md; benchmarks/results/drift.md has them all


@dataclass(frozen=True)
class LongVideos:
    """Makes long videos by a scheme."""

    generator: VideoGenerator
    codec: Any
    encoders: Any
    scheme: Scheme
    num_windows: int

    def make(self, clips: Conditions, seed: int) -> Tensor:
        """Latents [B, C, T + (num_windows-1)*(T-1-carried), h, w], by the product's own code if it has the scheme."""
        scheme, given = self.scheme, (clips.text, clips.image_tokens, clips.prefix)
        if scheme.fused:
            return self.generator.fuse(*given, self.num_windows, scheme.carried, seed)
        if scheme.anchored and not scheme.noise:
            return self.generator.chain(*given, self.num_windows, scheme.carried, seed)
        return self.chain(clips, seed)

    def chain(self, clips: Conditions, seed: int) -> Tensor:
        """The product's chain with what each window knows replaced."""
        window = self.generator.sample(clips.text, clips.image_tokens, clips.prefix, seed)
        parts = [window]
        for index in range(1, self.num_windows):
            known = self._known(clips, window, seed + index)
            window = self.generator.sample(known.text, known.image_tokens, known.prefix, seed + index)
            parts.append(window[:, :, 1 + self.scheme.carried :])
        return torch.cat(parts, dim=2)

    def _known(self, clips: Conditions, window: Tensor, seed: int) -> Conditions:
        """What the window after this one is told."""
        rng = torch.Generator().manual_seed(NOISE_SEED + seed)
        start = clips if self.scheme.anchored else self._restart(clips, window)
        known = torch.cat([start.prefix, window[:, :, window.shape[2] - self.scheme.carried :]], dim=2)
        added = self.scheme.noise * randn_like(known, rng)
        added[:, :, : int(self.scheme.anchored)] = 0
        return replace(start, prefix=known + added)

    def _restart(self, clips: Conditions, window: Tensor) -> Conditions:
        """The clips as if they began at the frame before those carried."""
        frame = self.codec.decode_video(window)[:, -1 - self.scheme.carried * self.codec.temporal_factor]
        return Conditions(clips.text, self.encoders.encode_image(frame), self.codec.encode_video(frame[:, None]))


def shown(num_windows: int) -> list[int]:
    """The windows in the table, counted from 0: the first, and every fourth."""
    return sorted({0, *range(3, num_windows, 4)})


def score(frames: Tensor, truths: list[dict[str, Any]], spans: Sequence[tuple[int, int]]) -> Figures:
    """Mean scores of some windows, as the evaluation's drift has them, and the share that ends as it began to move."""
    windows = [score_clips(frames[:, start:stop].numpy(), truths, start == 0) for start, stop in spans]
    figures = {key: [float(np.nanmean(window[key])) for window in windows] for key, _, _ in COLUMNS}
    same_way = windows[0]["plus"] == windows[-1]["plus"]  # of the two that a caption allows; never where there is none
    return {**figures, "same_way": float(same_way.mean()), "frames": frames.shape[1]}


def models(case: Case) -> dict[str, Path]:
    """The teacher, the student of the pipeline or else the one that choose_student.py has trained, and our own."""
    alone = case.student().folder
    try:
        student = finished(case.pipeline, "distill_dmd2")["distill_dmd2"]
    except SystemExit:
        if not alone.is_dir():
            raise
        student = alone
    self_forced = replace(case, changes=(OWN_FRAMES,)).student().folder
    return {"student": student, SELF_FORCED: self_forced, "teacher": case.made()["pretrain_i2v"]}


def variants(config: PipelineConfig) -> dict[str, Variant]:
    """Model -> how it is sampled."""
    teacher, student = long_video_variants(config.generate, config.distill_dmd2)
    own = replace(student, label=f"{student.label}, trained on its own frames")
    return {"student": student, SELF_FORCED: own, "teacher": teacher}


def judge_seed(case: Case) -> dict[str, dict[str, Figures]]:
    """Model -> scheme -> figures."""
    torch.set_num_threads(1)
    config, data, folders = case.pipeline, case.made()["prepare_data"], models(case)
    jury, encoders = Jury.open(config, data, NUM_CLIPS), Encoders.load(data / "encoders", torch.device("cpu"))
    found: dict[str, dict[str, Figures]] = {}
    for model, variant in variants(config).items():
        network = load_transformer(folders[model] / "transformer").eval()
        generator = variant.generator(network, jury.null_text, jury.latent_frames)
        found[model] = {}
        for scheme in SCHEMES[model]:
            videos = LongVideos(generator, jury.codec, encoders, scheme, config.generate.long_video_windows)
            store = case.home / "drift" / f"{_key(config, data, folders[model], variant, scheme)}.json"
            found[model][scheme.label] = _stored(store, videos, jury)
            print(f"seed {case.seed}: {variant.label}: {scheme.label}", flush=True)
    return found


def _key(config: PipelineConfig, data: Path, model: Path, variant: Variant, scheme: Scheme) -> str:
    """A digest of all that decides a row's figures."""
    settings = [config.generate.long_video_windows, NUM_CLIPS, asdict(variant), asdict(scheme)]
    code = [GENERATE.code(), EVALUATE.code(), Path(__file__).read_text()]
    content = [*code, config.seed, data.name, model.name, *settings]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _stored(store: Path, videos: LongVideos, jury: Jury) -> Figures:
    """The figures of a row, from their file if it is there."""
    if not store.is_file():
        store.parent.mkdir(exist_ok=True)
        aside = store.with_suffix(".part")
        aside.write_text(json.dumps(_judge(videos, jury)))
        aside.replace(store)
    figures: Figures = json.loads(store.read_text())
    return figures


@torch.no_grad()
def _judge(videos: LongVideos, jury: Jury) -> Figures:
    """Makes the videos of all clips and scores them."""
    parts = [
        videos.make(part, long_video_seed(0, number)) for number, part in enumerate(jury.conditions.batches(BATCH))
    ]
    frames = torch.cat([jury.codec.decode_video(part) for part in parts])
    carried, factor = videos.scheme.carried, jury.codec.temporal_factor
    spans = frame_spans(videos.num_windows, jury.latent_frames, carried, factor)
    return score(frames, jury.truths, [spans[window] for window in shown(videos.num_windows)])


def table(
    config: PipelineConfig,
    seeds: Sequence[Mapping[str, Mapping[str, Figures]]],
    schemes: Sequence[Scheme] | None = None,
) -> str:
    """Markdown, a row a scheme: means over the seeds, the default of the config in bold.

    Args:
        config: says how models are sampled, and what the default is.
        seeds: per seed: model -> scheme -> figures.
        schemes: rows to show; all of them without.
    """
    generate = config.generate
    default = Scheme(generate.long_video_carried, fused=generate.long_video_scheme == "fused").label
    windows = " / ".join(str(window + 1) for window in shown(generate.long_video_windows))
    heads = [f"{head} at window {windows}" for _, head, _ in COLUMNS]
    lines = [f"| a window knows | frames | {' | '.join(heads)} | dB lost | same way at the end |"]
    lines.append("|---|" + "--:|" * (3 + len(COLUMNS)))
    for model, variant in variants(config).items():
        labels = seeds[0][model] if schemes is None else [scheme.label for scheme in schemes]
        for label in filter(seeds[0][model].__contains__, labels):
            title = f"**{label}**" if label == default else label
            cells = _cells([figures[model][label] for figures in seeds])
            lines.append(f"| {variant.label}: {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(seeds: Sequence[Figures]) -> list[str]:
    """A row's figures."""
    courses = [
        " / ".join(f"{np.mean(values):.{digits}f}" for values in zip(*(figures[key] for figures in seeds), strict=True))
        for key, _, digits in COLUMNS
    ]
    lost = [figures["background_psnr_db"][0] - figures["background_psnr_db"][-1] for figures in seeds]
    return [str(seeds[0]["frames"]), *courses, mean(lost, 1), mean([figures["same_way"] for figures in seeds])]


def main() -> None:
    """Judges what is missing, prints and stores the table."""
    settle()
    parser = parser_of_seeds(__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="seeds at a time, one core each")
    parser.add_argument("--write-docs", action="store_true", help="also put some rows into docs/results.md")
    arguments = parser.parse_args()
    cases = [Case(arguments.config, arguments.workspace.resolve(), seed) for seed in arguments.seeds]
    train_students([replace(case, changes=(OWN_FRAMES,)).student() for case in cases])
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        seeds = list(pool.map(judge_seed, cases))
    head = f"Means over seeds {', '.join(map(str, arguments.seeds))}, {NUM_CLIPS} fresh clips each:"
    config = load_config(Path(arguments.config))
    text = f"{head}\n\n{table(config, seeds)}"
    print("\n" + text)
    store_results("drift", text, num_clips=NUM_CLIPS, seeds=dict(zip(arguments.seeds, seeds, strict=True)))
    if arguments.write_docs:
        write_section("drift", f"{head}\n\n{table(config, seeds, IN_DOCS)}")


if __name__ == "__main__":
    main()
