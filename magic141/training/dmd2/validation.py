"""Validation of a step distillation: metrics of the student's clips, and pictures beside real and fake score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from magic141.artifacts.publication import written_aside
from magic141.data.dataset import ClipDataset
from magic141.data.videos.sheets import contact_sheet, with_row_names
from magic141.diffusion.flow import interpolate, shift_sigma, sigma_grid, x0_from_velocity
from magic141.diffusion.samplers import PredictVelocity, randn_like, sample
from magic141.errors import UserError
from magic141.evaluation.scoring.frechet import TubeSpace, frechet_between, moments
from magic141.models.config import Sampler
from magic141.models.vae import load_codec
from magic141.training.batch_sampler import own_share
from magic141.training.batches import Batch, BatchMaker
from magic141.training.context import TrainContext, sum_over_shares, sum_over_workers
from magic141.training.dmd2.backward_simulation import BackwardSimulation
from magic141.training.dmd2.clip_metrics import PREFIX, compare
from magic141.training.dmd2.networks import Guidance, GuidedScores
from magic141.training.progress import write_image
from magic141.training.random_numbers import step_generator

SHEET = "student_real_fake"
LATENTS = "latents.safetensors"
ROWS = ("student", "real score", "fake score")  # of each clip in the sheet


class Dmd2Validation:
    """Validates the student on this worker's share of the validation clips, with the same noise every time."""

    def __init__(
        self,
        maker: BatchMaker,
        guided: GuidedScores,
        chain: BackwardSimulation,
        data: Path,
        context: TrainContext,
    ) -> None:
        self.guided, self.chain, self.config = guided, chain, chain.config
        self.data, self.context = data, context
        self._maker = replace(maker, dataset=ClipDataset.open(data, "validation"), continued_fraction=0.0)
        self._reference: Tensor | None = None  # the many-step model's latents, [S, N, C, T, h, w]
        self._reference_frechet = 1.0
        real, num_frames = self._maker.dataset.latents, maker.num_latent_frames
        self._space = TubeSpace.fit(real, real.shape[1], num_frames)
        own = range(context.share, len(real), context.num_shares)
        self._real_moments = self._moments(real[row, :, :num_frames] for row in own)

    @torch.no_grad()
    def figures(self, num_steps: int) -> dict[str, float]:
        """Metrics of the student with the generator's current weights, against the many-step model and real clips.

        Args:
            num_steps: steps done, for the name of the picture.
        """
        batch = self._batch()
        w = Guidance.fixed(self.config, len(batch.x0)).to(self.context.device)
        if self._reference is None:
            self._reference = self._many_step_clips(batch, w)
            self._reference_frechet = self._frechet(self._reference)
            self._require_finite(self._reference_frechet)
        student = self._sample_student(batch, w)
        self._show(student[0], batch, w, num_steps)
        frechet = self._frechet(student)
        distances = {f"{PREFIX}frechet": frechet, f"{PREFIX}frechet_ratio": frechet / self._reference_frechet}
        return distances | compare(student, self._reference, self._mean_over_workers)

    def _mean_over_workers(self, own: Tensor) -> Tensor:
        return sum_over_workers(own, self.context) / self.context.world_size

    def _frechet(self, student: Tensor) -> float:
        """Fréchet distance of all workers' clips together to all real validation clips: one worker's are too few.

        Infinite if any clip contains a value that is not finite.
        """
        made = self._moments(student.flatten(0, 1))
        return frechet_between(made, self._real_moments) if np.isfinite(made).all() else float("inf")

    def _require_finite(self, reference_frechet: float) -> None:
        """Compared with clips that are not finite, every student would look healthy."""
        if not np.isfinite(reference_frechet):
            kind, wider = self.config.real_score, "" if self.config.precision == "fp32" else "; use precision = fp32"
            raise UserError(
                f"real_score = {kind}: its clips in {self.config.collapse.reference_steps} steps have values that are "
                f"not finite, so that no student can be compared with them{wider}, or train that network anew"
            )

    def _moments(self, clips: Iterable[Tensor]) -> NDArray[np.float64]:
        """Moments of all workers' clips, clip by clip: a single real clip's tubes fill hundreds of megabytes."""
        size = 1 + self._space.basis.shape[1]
        parts = (moments(self._space.project(clip[None])) for clip in clips)
        own = torch.from_numpy(sum(parts, np.zeros((size, size))))
        return np.asarray(sum_over_shares(own, self.context))

    def _batch(self) -> Batch:
        """This worker's batch."""
        rows = own_share(self._maker.dataset, self.config.collapse.num_clips, self.context)
        return self._maker.make(rows, self._rng(0)).to(self.context.device)

    def _sample_student(self, batch: Batch, w: Guidance) -> Tensor:
        """The student's clips, from its own chain."""
        return self._sample(self.chain.in_parts(batch, w), batch, self.config.num_inference_steps, self.config.sampler)

    def _many_step_clips(self, batch: Batch, w: Guidance) -> Tensor:
        """The many-step model's clips, kept for later attempts: at 13B they take all GPUs a quarter of an hour."""
        context = self.context
        kept = context.run_dir / f"many_steps-{context.share}-of-{context.num_shares}"
        # all sample or none: the passes of a network that is split over the workers involve all of them
        if sum_over_workers(torch.tensor(0 if kept.exists() else 1), context):
            clips = self._sample_reference(batch, w)
            if context.leads_share:
                with written_aside(kept) as aside:
                    save_file({"latents": clips}, aside / LATENTS)
            return clips
        found: Tensor = load_file(kept / LATENTS)["latents"]
        return found.to(context.device)

    def _sample_reference(self, batch: Batch, w: Guidance) -> Tensor:
        """The many-step model's clips: many Euler steps of the base, without an adapter."""
        predict = self._in_parts(self.guided.base, batch, w)
        return self._sample(predict, batch, self.config.collapse.reference_steps, "euler")

    def _in_parts(self, evaluate: Callable[..., Tensor], batch: Batch, w: Guidance) -> PredictVelocity:
        """Evaluates a network on the batch in parts, no more clips at once than in training: more may not fit.

        Callers draw the noise for the whole batch, so that it does not depend on the size of the parts.
        """
        parts = self.chain.parts.over(evaluate, batch, w)

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            with self.chain.generator.autocast():
                return parts(x_t, sigma)

        return predict

    def _sample(self, predict: PredictVelocity, batch: Batch, num_steps: int, sampler: Sampler) -> Tensor:
        """The batch's clips from all seeds, [S, N, C, T, h, w]."""
        sigmas, clips = sigma_grid(num_steps, self.config.shift), []
        for seed in range(self.config.collapse.num_seeds):
            rng = self._rng(1 + seed)
            clips.append(sample(predict, randn_like(batch.x0, rng), sigmas, sampler, rng))
        return torch.stack(clips)

    def _show(self, student: Tensor, batch: Batch, w: Guidance, num_steps: int) -> None:
        """Writes a picture: each of the student's clips, and real and fake score's estimates from it when noised."""
        num = self.config.collapse.num_shown
        if num == 0:
            return
        middle = torch.tensor((self.config.min_score_time + self.config.max_score_time) / 2)
        median = shift_sigma(middle, self.config.score_shift)  # of the times at which the scores are compared
        sigma = median.expand(len(student)).to(student.device)
        x_t = interpolate(student, randn_like(student, self._rng(-1)), sigma)
        self.guided.scores.set_exit(self.config.num_inference_steps - 1)
        fake = self._in_parts(partial(self.guided.fake, self.guided.scores), batch, w)(x_t, sigma)
        real = self._in_parts(self.guided.real, batch, w)(x_t, sigma)
        if not self.context.is_main:  # the forward passes are collective when the networks are sharded
            return
        rows = torch.stack([student, *(x0_from_velocity(x_t, u, sigma) for u in (real, fake))], dim=1)
        image = self._decode(rows[:num].flatten(0, 1))
        write_image(self.context.run_dir, SHEET, num_steps, image)

    def _decode(self, latents: Tensor) -> NDArray[np.uint8]:
        codec = load_codec(self.data / "codec")
        codec.to(self.context.device)
        clips = [codec.decode_video(clip).cpu() for clip in latents.split(1)]  # one at a time, to be sure that they fit
        return with_row_names(contact_sheet(torch.cat(clips).numpy()), len(clips), ROWS)

    def _rng(self, stream: int) -> torch.Generator:
        return step_generator(self.context.seed, -2 - stream, self.context.share)
