"""CFG distillation reaches the guided teacher at every guidance scale of its range."""

from __future__ import annotations

import torch

from magic141.diffusion.guidance import guided_velocity
from magic141.models.transformer import Conditioning, add_guidance_embedding, make_prefix, velocity
from magic141.training.cfg_distillation import cfg_distillation_loss
from tests.models.tiny import tiny_inputs, tiny_transformer


def test_the_loss_is_the_weighted_sum_of_both_terms() -> None:
    student, guided, target = torch.randn(3, 2, 4)
    expected = 0.7 * (student - guided).square().mean() + 0.3 * (student - target).square().mean()
    torch.testing.assert_close(cfg_distillation_loss(student, guided, target, 0.7), expected)
    nan = torch.full_like(target, float("nan"))
    assert torch.isfinite(cfg_distillation_loss(student, guided, nan, 1.0)), "lambda = 1 must not touch the data term"


def test_student_learns_the_guided_teacher_over_the_range_of_w() -> None:
    teacher = tiny_transformer(image_condition=True)
    student = add_guidance_embedding(teacher).train()
    x_t, sigma, cond = tiny_inputs(batch=4)
    uncond = Conditioning(torch.zeros_like(cond.tokens), cond.mask, torch.zeros_like(cond.pooled))
    prefix = make_prefix(x_t, 1)
    with torch.no_grad():
        u_cond = velocity(teacher, x_t, sigma, cond, prefix)
        u_uncond = velocity(teacher, x_t, sigma, uncond, prefix)

    def error(w: float) -> float:
        scale = torch.full((4,), w)
        with torch.no_grad():
            u_student = velocity(student, x_t, sigma, cond, prefix, scale)
        guided = guided_velocity(u_uncond, u_cond, scale)
        return float((u_student - guided).square().mean() / (u_cond - u_uncond).square().mean())

    at_start = {w: error(w) for w in (1.0, 2.0, 3.0)}
    assert at_start[1.0] < 1e-10, "w = 1 is the conditional teacher from the start"
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 400)
        w = 1 + 2 * torch.rand(4, generator=generator)
        u_student = velocity(student, x_t, sigma, cond, prefix, w)
        loss = cfg_distillation_loss(u_student, guided_velocity(u_uncond, u_cond, w), x_t, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for scale in (1.0, 1.5, 2.0, 2.5, 3.0):
        assert error(scale) < 0.05, (scale, error(scale))


def test_a_teacher_in_bf16_gives_what_autocast_gives_anyway() -> None:
    teacher = tiny_transformer(image_condition=True).eval()
    x_t, sigma, cond = tiny_inputs(batch=4)
    prefix = make_prefix(x_t, 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = velocity(teacher, x_t, sigma, cond, prefix)
        halved = velocity(teacher.to(torch.bfloat16), x_t, sigma, cond, prefix)
    assert float((whole - halved).norm() / whole.norm()) < 0.02
