"""Training of the denoisers on Shapes' latents. All but mini-SD start from what mini-SD has learned."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from pipelines import mini
from pipelines.train_encoders import TextTeacher
from pipelines.training import (
    N_LATENTS,
    N_TRAIN,
    Trainer,
    conditioned_latents,
    data,
    latents,
    load_ema,
    scaling_factor,
    tokenise,
)
from postdiff.families import FAMILIES, guidance_embedding

ALPHAS = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod


@dataclass
class Batch:
    """x0, noise [B, C, side, side]; t [B] in [0, 1000); ids [B, L], a tenth of them of the empty caption."""

    x0: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    ids: torch.Tensor

    @property
    def noisy(self) -> torch.Tensor:
        return add_noise(self.x0, self.noise, self.t)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    alpha = ALPHAS[t][:, None, None, None]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def batches(
    work: Path, sizes: dict[int, int], low_until: int = 0, words=None
) -> Callable[[int, np.random.Generator], Batch]:
    """A function (step, rng) -> Batch, at 16x16 for 70 % of the steps, at 12x12 for 14 %, at 8x8 for 16 %.

    sizes: images a batch at each side, for about equal time a step. Before step `low_until`, 8x8 only: words and
    colours are learned there for a quarter of the price. words: the tokenizer, mini-SD's by default.
    """
    words = words or mini.tokenizer()
    _, captions = data("train", N_TRAIN, work)
    tokens, empty = tokenise(words, captions), tokenise(words, [""])
    stored = latents(work)
    scale = scaling_factor(stored)

    def draw(step: int, rng: np.random.Generator) -> Batch:
        side = 8 if step < low_until else int(rng.choice([16, 12, 8], p=[0.7, 0.14, 0.16]))
        pick = np.sort(rng.choice(N_LATENTS, sizes[side], replace=False))
        x0 = torch.from_numpy(stored[side][pick]).float() * scale
        ids = torch.where(torch.from_numpy(rng.random(len(pick)) < 0.1)[:, None], empty, tokens[pick])
        # One time from each of n equal parts of [0, 1000): the same mean loss, a quieter gradient.
        t = ((torch.randperm(len(pick)) + torch.rand(len(pick))) * 1000 / len(pick)).long()
        return Batch(x0, torch.randn_like(x0), t, ids)

    return draw


def noise_loss(out: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Min-SNR weighted (gamma 5) error of the predicted noise, and the plain one to log."""
    error = (out - batch.noise).square().mean((1, 2, 3))
    snr = ALPHAS[batch.t] / (1 - ALPHAS[batch.t])
    return (error * (5 / snr).clamp(max=1)).mean(), {f"eps_mse_{out.shape[-1]}": float(error.detach().mean())}


def trainable(model):
    model.set_attn_processor(AttnProcessor())  # a third faster than SDPA to train at these sizes on a CPU
    return model


def mini_sd(work: Path) -> tuple[UNet2DConditionModel, torch.nn.Module]:
    """mini-SD as trained: (U-Net, text encoder), frozen."""
    parts = torch.nn.ModuleDict({"unet": mini.unet(), "text": mini.text_encoder(mini.tokenizer())})
    load_ema(parts, work, "unet")
    return trainable(parts["unet"]), parts["text"]


def train_unet(work: Path, steps: int = 5800) -> None:
    """mini-SD's denoiser and text encoder together: epsilon prediction, min-SNR weights, three resolutions."""
    words = mini.tokenizer()
    text = load_ema(TextTeacher(words, mini.text_encoder(words)), work, "text").text.train().requires_grad_(True)
    model = torch.nn.ModuleDict({"unet": trainable(mini.unet()), "text": text})
    draw = batches(work, {16: 32, 12: 48, 8: 96}, low_until=400)

    def loss_of(step, rng):
        batch = draw(step, rng)
        text = model["text"](batch.ids).last_hidden_state
        return noise_loss(model["unet"](batch.noisy, batch.t, text, return_dict=False)[0], batch)

    Trainer("unet", model, steps, 1.2e-3, work).run(loss_of)


def train_tiny(work: Path, steps: int = 1500) -> None:
    """mini-BK-SDM, as BK-SDM: what mini-SD shares with it is copied, then it learns the noise and mini-SD's output."""
    teacher, text = mini_sd(work)
    model = trainable(mini.unet_tiny())
    inherit(model, teacher)
    draw = batches(work, {16: 40, 12: 64, 8: 120})

    def loss_of(step, rng):
        batch = draw(step, rng)
        with torch.no_grad():
            words = text(batch.ids).last_hidden_state
            wanted = teacher(batch.noisy, batch.t, words, return_dict=False)[0]
        out = model(batch.noisy, batch.t, words, return_dict=False)[0]
        loss, numbers = noise_loss(out, batch)
        distance = F.mse_loss(out, wanted)
        return loss + distance, {**numbers, "to_teacher": float(distance.detach())}

    Trainer("tiny", model, steps, 1.2e-3, work).run(loss_of)


def inherit(tiny: UNet2DConditionModel, teacher: UNet2DConditionModel) -> int:
    """Copy from mini-SD what BK-SDM-Tiny keeps: the first pair of each encoder level, the first and last of each
    decoder level, no middle. Returns how many tensors were copied."""
    have, copied = teacher.state_dict(), 0
    for name, value in tiny.state_dict().items():
        source = name
        if name.startswith("up_blocks."):  # the teacher has one level more, below; and three layers a level, not two
            _, level, part, layer, *rest = name.split(".")
            layer = {"1": "2"}.get(layer, layer) if part in ("resnets", "attentions") else layer
            source = ".".join(["up_blocks", str(int(level) + 1), part, layer, *rest])
        if source in have and have[source].shape == value.shape:
            value.copy_(have[source])
            copied += 1
    return copied


def train_lcm(work: Path, steps: int = 500, max_guidance: float = 4.0, skip: int = 60) -> None:
    """mini-LCM: latent consistency distillation of mini-SD (Luo et al. 2023, Alg. 1), guidance told to the model.

    The target is the model itself without gradient, one DDIM step of the guided teacher further: `skip` timesteps,
    so that what the teacher knows at t = 0 reaches t = 999 in 17 links. t is one of the 50 that LCMScheduler takes.
    """
    teacher, text = mini_sd(work)
    model = trainable(mini.unet_lcm())
    model.load_state_dict(teacher.state_dict(), strict=False)  # all but the guidance's projection, which starts at 0
    draw = batches(work, {16: 24, 12: 36, 8: 72})
    empty = tokenise(mini.tokenizer(), [""])
    width = model.config.time_cond_proj_dim

    def clean(x, t, eps):
        alpha = ALPHAS[t][:, None, None, None]
        return (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()

    def consistent(x, t, words, w):
        """The model's x0, blended so that it is x itself at t = 0 (LCMScheduler's c_skip, c_out)."""
        eps = model(x, t, words, timestep_cond=w, return_dict=False)[0]
        scaled = (10.0 * t)[:, None, None, None]
        return 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25).sqrt() * clean(x, t, eps)

    def loss_of(step, rng):
        batch = draw(step, rng)
        n = len(batch.t)
        t = batch.t // 20 * 20 + 19  # 19, 39, ..., 999
        before = (t - skip).clamp(min=0)
        noisy = add_noise(batch.x0, batch.noise, t)
        guidance = 1 + (max_guidance - 1) * torch.from_numpy(rng.random(n)).float()
        w = torch.cat([guidance_embedding(float(g), width) for g in guidance])
        with torch.no_grad():
            words = text(batch.ids).last_hidden_state
            both = torch.cat([text(empty).last_hidden_state.expand(n, -1, -1), words])
            uncond, cond = teacher(torch.cat([noisy] * 2), torch.cat([t] * 2), both, return_dict=False)[0].chunk(2)
            eps = uncond + guidance[:, None, None, None] * (cond - uncond)
            further = add_noise(clean(noisy, t, eps), eps, before)
            target = consistent(further, before, words, w)
        error = consistent(noisy, t, words, w) - target
        # In units of the noise: in those of x0 the noisiest steps weigh 200 times as much, and training diverges.
        loss = (ALPHAS[t] * error.square().mean((1, 2, 3))).mean()
        return loss, {f"distance_{noisy.shape[-1]}": float(loss.detach())}

    Trainer("lcm", model, steps, 1e-4, work, ema=0.995).run(loss_of)


def xl_text(text, second, ids: torch.Tensor, empty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, L, sum of widths] and pooled [B, P] as SDXL's pipeline makes them: the layer before the last of both
    encoders, the second one's pooled output, and zeros for the empty caption."""
    first, other = text(ids, output_hidden_states=True), second(ids, output_hidden_states=True)
    given = (ids != empty).any(1, keepdim=True).float()
    tokens = torch.cat([first.hidden_states[-2], other.hidden_states[-2]], dim=-1)
    return tokens * given[..., None], other.text_embeds * given


def train_xl(work: Path, steps: int = 4000) -> None:
    """mini-SDXL: U-Net and both text encoders, told original size, crop and target size; a fifth of the full-size
    steps sees crops and images that were small."""
    words = mini.tokenizer()
    text = mini.text_encoder(words, layers=3)
    text.load_state_dict(mini_sd(work)[1].state_dict(), strict=False)  # its last layer is not read: SDXL skips it
    parts = {"unet": trainable(mini.unet_xl()), "text": text, "second": mini.second_text_encoder(words)}
    model = torch.nn.ModuleDict(parts)
    draw = batches(work, {16: 40, 12: 60, 8: 120}, low_until=300)
    stored, conditions = conditioned_latents(work)
    scale, empty = scaling_factor(latents(work)), tokenise(words, [""])
    tokens = tokenise(words, data("train", N_TRAIN, work)[1])

    def loss_of(step, rng):
        batch = draw(step, rng)
        n, size = len(batch.t), 4 * batch.x0.shape[-1]
        time_ids = torch.tensor([[64, 64, 0, 0, size, size]]).repeat(n, 1)
        if size == 64 and rng.random() < 0.2:
            pick = np.sort(rng.choice(len(stored), n, replace=False))
            batch.x0, time_ids = torch.from_numpy(stored[pick]).float() * scale, torch.from_numpy(conditions[pick])
            batch.ids = torch.where((batch.ids == empty).all(1, keepdim=True), empty, tokens[pick])
        hidden, pooled = xl_text(model["text"], model["second"], batch.ids, empty)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        out = model["unet"](batch.noisy, batch.t, hidden, added_cond_kwargs=added, return_dict=False)[0]
        return noise_loss(out, batch)

    Trainer("xl", model, steps, 1.2e-3, work).run(loss_of)


def train_pixart(work: Path, steps: int = 5000) -> None:
    """mini-PixArt: transformer and T5 together, told the size of the image.

    The channels of the learned variance stay 0: no ODE solver reads them, nor does PixArt's pipeline.
    """
    pieces = mini.t5_tokenizer()
    teacher = TextTeacher(mini.tokenizer(), mini.t5_encoder(pieces))
    text = load_ema(teacher, work, "t5").text.train().requires_grad_(True)
    model = torch.nn.ModuleDict({"transformer": trainable(mini.transformer()), "text": text})
    draw = batches(work, {16: 40, 12: 70, 8: 150}, low_until=400, words=pieces)

    def loss_of(step, rng):
        batch = draw(step, rng)
        mask = (batch.ids != pieces.pad_token_id).long()
        hidden = model["text"](batch.ids, attention_mask=mask).last_hidden_state
        size = 4 * batch.x0.shape[-1]
        inputs = FAMILIES["pixart"].inputs(
            {"text": hidden, "mask": mask}, batch.t[0], (size, size), 1.0, model["transformer"].config
        )
        out = model["transformer"](batch.noisy, return_dict=False, **{**inputs, "timestep": batch.t})[0]
        return noise_loss(out.chunk(2, dim=1)[0], batch)

    Trainer("pixart", model, steps, 1e-3, work).run(loss_of)
