"""Training of the denoisers on latents. All but mini-SD start from it, or learn its output."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from pipelines.data.procedural import Procedural
from pipelines.training import mini
from pipelines.training.latents import N_LATENTS, conditioned_latents, latents, scaling_factor
from pipelines.training.loop import Trainer, block_matrices, half_precision, load_ema, tokenise
from pipelines.training.texts import Reader
from postdiff.models.lcm import guidance_embedding

ALPHAS = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod


@dataclass
class Batch:
    """x0, noise [B, C, side, side]; t [B] in [0, 1000); rows [B] of `captions`, a tenth of them -1: no caption."""

    x0: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    rows: torch.Tensor

    @property
    def noisy(self) -> torch.Tensor:
        return add_noise(self.x0, self.noise, self.t)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    alpha = ALPHAS[t][:, None, None, None]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def captions(data: Procedural, words=None) -> torch.Tensor:
    """The latents' captions as ids [N_LATENTS + 1, L]; the last is empty. words: a tokenizer, mini-SD's by default."""
    texts = [data.scene("train", i).caption for i in range(N_LATENTS)]
    return tokenise(words or mini.tokenizer(data), [*texts, ""])


def batches(
    work: Path, data: Procedural, sizes: dict[int, int], low_until: int = 0
) -> Callable[[int, np.random.Generator], Batch]:
    """A function (step, rng) -> Batch, at 16x16 for 70 % of the steps, at 12x12 for 14 %, at 8x8 for 16 %.

    sizes: images a batch at each side, for about equal time a step; a side that is left out is 16 instead. Before step
    `low_until`, 8x8 only: words and colours are learned there for a quarter of the price.
    """
    stored = latents(work, data)
    scale = scaling_factor(stored)

    def draw(step: int, rng: np.random.Generator) -> Batch:
        side = 8 if step < low_until else int(rng.choice([16, 12, 8], p=[0.7, 0.14, 0.16]))
        side = side if side in sizes else 16
        pick = np.sort(rng.choice(N_LATENTS, sizes[side], replace=False))
        x0 = torch.from_numpy(stored[side][pick]).float() * scale
        rows = torch.from_numpy(np.where(rng.random(len(pick)) < 0.1, -1, pick))
        # One time from each of n equal parts of [0, 1000): the same mean loss, a quieter gradient.
        t = ((torch.randperm(len(pick)) + torch.rand(len(pick))) * 1000 / len(pick)).long()
        return Batch(x0, torch.randn_like(x0), t, rows)

    return draw


def weight(t: torch.Tensor) -> torch.Tensor:
    """How much an error of the predicted noise counts at times t [B]: min-SNR's (gamma 5) over the root of alpha.

    By it all times from 100 on count about as much, where by min-SNR alone those in which the layout is decided (beyond
    600) counted a third to a tenth (NOTES.md).
    """
    alpha = ALPHAS[t]
    return (5 * (1 - alpha) / alpha).clamp(max=1) / alpha.sqrt()


def noise_loss(out: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted error of the predicted noise, and the plain one to log."""
    error = (out - batch.noise).square().mean((1, 2, 3))
    return (error * weight(batch.t)).mean(), {f"eps_mse_{out.shape[-1]}": float(error.detach().mean())}


def teacher_loss(out: torch.Tensor, batch: Batch, teacher: UNet2DConditionModel, words: torch.Tensor) -> tuple:
    """Weighted squared distance to what mini-SD says of `words`, its own embeddings of the captions: the same mean as
    the noise has, without its variance."""
    with torch.no_grad(), half_precision():
        wanted = teacher(batch.noisy, batch.t, words, return_dict=False)[0].float()
    distance = (out - wanted).square().mean((1, 2, 3))
    return (distance * weight(batch.t)).mean(), {f"to_teacher_{out.shape[-1]}": float(distance.detach().mean())}


def distillation_loss(out: torch.Tensor, batch: Batch, teacher: UNet2DConditionModel, words: torch.Tensor) -> tuple:
    """The noise loss, and the distance to mini-SD's output."""
    loss, numbers = noise_loss(out, batch)
    distance, further = teacher_loss(out, batch, teacher, words)
    return loss + distance, {**numbers, **further}


def trainable(model):
    model.set_attn_processor(AttnProcessor())  # a third faster than SDPA to train at these sizes on a CPU
    return model


def clip_text(data: Procedural, **config) -> torch.nn.Module:
    """mini-SD's text encoder, untrained."""
    return mini.text_encoder(mini.tokenizer(data), layers=mini.TEXT_LAYERS[data.name], **config)


def mini_sd(work: Path, data: Procedural) -> tuple[UNet2DConditionModel, torch.nn.Module]:
    """mini-SD as trained: (U-Net, text encoder), frozen."""
    parts = torch.nn.ModuleDict({"unet": mini.unet(data), "text": clip_text(data)})
    load_ema(parts, work, "unet")
    return trainable(parts["unet"]), parts["text"]


def train_unet(work: Path, data: Procedural, steps: int = 5900) -> None:
    """mini-SD's denoiser and text encoder together: epsilon prediction, `noise_loss`, three resolutions."""
    text = load_ema(Reader(clip_text(data), mini.TEXT_WIDTH, data.questions), work, "text").encoder
    _learn_noise(work, data, mini.unet(data), text, steps, low_until=500)


def train_unet_on(work: Path, data: Procedural, steps: int = 5000) -> None:
    """mini-SD trained on from a checkpoint that was restored: as long again as one can spend."""
    _learn_noise(work, data, mini.unet(data), clip_text(data), steps, on=True)


def _learn_noise(work: Path, data: Procedural, unet, text, steps: int, low_until: int = 0, on: bool = False) -> None:
    model = torch.nn.ModuleDict({"unet": trainable(unet), "text": text.train().requires_grad_(True)})
    draw, ids = batches(work, data, {16: 40, 12: 60, 8: 120}, low_until), captions(data)

    def loss_of(step, rng):
        batch = draw(step, rng)
        with half_precision():
            states = model["text"](ids[batch.rows]).last_hidden_state
            out = model["unet"](batch.noisy, batch.t, states, return_dict=False)[0].float()
        return noise_loss(out, batch)

    Trainer("unet", model, steps, 1.5e-3, work, matrices=block_matrices(model), on=on).run(loss_of)


def train_full(work: Path, data: Procedural, steps: int = 1600) -> None:
    """mini-SD that has seen full-size images alone, as SD1.5 has: what fine-tuning for mixed resolution starts from.

    Its U-Net starts from nothing and learns the noise and mini-SD's output; the text encoder is mini-SD's.
    """
    distil("full", mini.unet(data), *mini_sd(work, data), work, data, {16: 32}, steps)


def train_tiny(work: Path, data: Procedural, steps: int = 1500) -> None:
    """mini-BK-SDM, as BK-SDM: what mini-SD shares with it is copied, then it learns the noise and mini-SD's output."""
    teacher, text = mini_sd(work, data)
    model = mini.unet_tiny(data)
    inherit(model, teacher)
    distil("tiny", model, teacher, text, work, data, {16: 40, 12: 64, 8: 120}, steps)


def distil(stage: str, model, teacher, text, work: Path, data: Procedural, sizes: dict[int, int], steps: int) -> None:
    """Train a U-Net that is told the same text as its teacher."""
    model = trainable(model)
    draw, ids = batches(work, data, sizes), captions(data)

    def loss_of(step, rng):
        batch = draw(step, rng)
        with half_precision():
            states = text(ids[batch.rows]).last_hidden_state
            out = model(batch.noisy, batch.t, states, return_dict=False)[0].float()
        return distillation_loss(out, batch, teacher, states)

    Trainer(stage, model, steps, 1.5e-3, work, matrices=block_matrices(model)).run(loss_of)


def inherit(model: UNet2DConditionModel, teacher: UNet2DConditionModel) -> int:
    """Copy from mini-SD what a U-Net of three levels shares with it. Returns how many tensors were copied.

    Of fewer layers a level, the first of each encoder level are kept, and the first and last of each decoder level,
    as BK-SDM-Tiny does. Where the text is wider, what the teacher was not told starts at 0.
    """
    have, copied = teacher.state_dict(), 0
    fewer = model.config.layers_per_block < teacher.config.layers_per_block
    for name, value in model.state_dict().items():
        source = name
        if name.startswith("up_blocks."):  # the teacher has one level more, below
            _, level, part, layer, *rest = name.split(".")
            layer = "2" if fewer and layer == "1" and part in ("resnets", "attentions") else layer
            source = ".".join(["up_blocks", str(int(level) + 1), part, layer, *rest])
        if source not in have:
            continue
        known = have[source].reshape(have[source].shape[: value.ndim])  # a linear layer, there a 1x1 convolution
        if known.shape == value.shape:
            value.copy_(known)
        elif "attn2" in name and len(known) == len(value):
            value.zero_()[:, : known.shape[1]] = known
        else:
            continue
        copied += 1
    return copied


def train_lcm(work: Path, data: Procedural, steps: int = 500, max_guidance: float = 4.0, skip: int = 60) -> None:
    """mini-LCM: latent consistency distillation of mini-SD (Luo et al. 2023, Alg. 1), guidance told to the model.

    The target is the model itself without gradient, one DDIM step of the guided teacher further: `skip` timesteps,
    so that what the teacher knows at t = 0 reaches t = 999 in 17 links. t is one of the 50 that LCMScheduler takes.
    """
    teacher, text = mini_sd(work, data)
    model = trainable(mini.unet_lcm(data))
    model.load_state_dict(teacher.state_dict(), strict=False)  # all but the guidance's projection, which starts at 0
    draw, ids = batches(work, data, {16: 24, 12: 36, 8: 72}), captions(data)
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
            words = text(ids[batch.rows]).last_hidden_state
            both = torch.cat([text(ids[-1:]).last_hidden_state.expand(n, -1, -1), words])
            uncond, cond = teacher(torch.cat([noisy] * 2), torch.cat([t] * 2), both, return_dict=False)[0].chunk(2)
            eps = uncond + guidance[:, None, None, None] * (cond - uncond)
            further = add_noise(clean(noisy, t, eps), eps, before)
            target = consistent(further, before, words, w)
        error = consistent(noisy, t, words, w) - target
        # In units of the noise: in those of x0 the noisiest steps weigh 200 times as much, and training diverges.
        loss = (ALPHAS[t] * error.square().mean((1, 2, 3))).mean()
        return loss, {f"distance_{noisy.shape[-1]}": float(loss.detach())}

    Trainer("lcm", model, steps, 1e-4, work, ema=0.995).run(loss_of)


def xl_text(text, second, ids: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, L, sum of widths] and pooled [B, P] as SDXL's pipeline makes them: the layer before the last of both
    encoders, the second one's pooled output, and zeros where `given` [B] is False."""
    first, other = text(ids, output_hidden_states=True), second(ids, output_hidden_states=True)
    tokens = torch.cat([first.hidden_states[-2], other.hidden_states[-2]], dim=-1)
    return tokens * given[:, None, None], other.text_embeds * given[:, None]


def train_xl(work: Path, data: Procedural, steps: int = 1000) -> None:
    """mini-SDXL: U-Net and both text encoders, told original size, crop and target size. It starts from mini-SD as
    mini-BK-SDM does. A fifth of the full-size steps sees crops and images that were small, of which mini-SD knows
    nothing: those learn the noise alone.

    Small latents are told the full size as original, their own as target. The sampler says neither: it names one for
    both (`target`: the full size; `current`: their own, which as an original also means blur here; it is the nearer).
    """
    words = mini.tokenizer(data)
    teacher, known = mini_sd(work, data)
    text = mini.text_encoder(words, layers=mini.TEXT_LAYERS[data.name] + 1)
    text.load_state_dict(known.state_dict(), strict=False)
    for unread in (text.encoder.layers[-1], text.final_layer_norm):  # SDXL takes the layer before the last
        unread.requires_grad_(False)
    parts = {"unet": trainable(mini.unet_xl(data)), "text": text, "second": mini.second_text_encoder(words)}
    inherit(parts["unet"], teacher)
    model = torch.nn.ModuleDict(parts)
    draw, ids = batches(work, data, {16: 32, 12: 52, 8: 100}), captions(data)
    stored, conditions = conditioned_latents(work, data)
    scale = scaling_factor(latents(work, data))
    full = data.size

    def loss_of(step, rng):
        batch = draw(step, rng)
        n, size = len(batch.t), full // mini.LATENT_SIDE * batch.x0.shape[-1]
        time_ids = torch.tensor([[full, full, 0, 0, size, size]]).repeat(n, 1)
        alone = size == full and rng.random() < 0.2
        if alone:
            pick = np.sort(rng.choice(len(stored), n, replace=False))
            batch.x0, time_ids = torch.from_numpy(stored[pick]).float() * scale, torch.from_numpy(conditions[pick])
            batch.rows = torch.where(batch.rows < 0, -1, torch.from_numpy(pick))
        with half_precision():
            hidden, pooled = xl_text(model["text"], model["second"], ids[batch.rows], batch.rows >= 0)
            added = {"text_embeds": pooled, "time_ids": time_ids}
            out = model["unet"](batch.noisy, batch.t, hidden, added_cond_kwargs=added, return_dict=False)[0].float()
        if alone:
            loss, numbers = noise_loss(out, batch)
            return loss, {f"alone_{name}": value for name, value in numbers.items()}
        return distillation_loss(out, batch, teacher, known(ids[batch.rows]).last_hidden_state)

    Trainer("xl", model, steps, 1.5e-3, work, matrices=block_matrices(model)).run(loss_of)
