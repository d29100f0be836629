"""Training of what denoisers stand on: the autoencoder, the CLIP that scores, the text encoders' first words."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.training import mini
from pipelines.training.loop import N_TRAIN, N_VAL, Trainer, data, to_tensor, tokenise


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))


def train_autoencoder(work: Path, steps: int = 1800) -> None:
    images, _ = data("train", N_TRAIN, work)
    held = to_tensor(data("val", N_VAL, work)[0][:128])
    model, probe = mini.autoencoder(), mini.autoencoder()

    def loss_of(step, rng):
        batch = to_tensor(images[np.sort(rng.integers(len(images), size=32))])
        if step < 0.8 * steps:  # the net is convolutional: quarter images teach it as much for a quarter of the time
            y, x = rng.integers(0, 33, 2)
            batch = batch[:, :, y : y + 32, x : x + 32]
        else:
            batch = batch[:8] if step % 2 else F.avg_pool2d(batch, 2)
        posterior = model.encode(batch).latent_dist
        out = model.decode(posterior.sample()).sample
        mse, l1 = F.mse_loss(out, batch), F.l1_loss(out, batch)
        kl = posterior.kl().mean() / batch[0].numel()
        return 2 * mse + 0.5 * l1 + 1e-6 * kl, {"mse": float(mse.detach())}

    @torch.no_grad()
    def validate(ema):
        probe.load_state_dict(ema)
        out = torch.cat([probe.decode(probe.encode(x).latent_dist.mean).sample for x in held.split(32)])
        return {"val_psnr": round(psnr(out, held), 2)}

    Trainer("autoencoder", model, steps, 2e-3, work, ema=0.995).run(loss_of, validate)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """CLIP's symmetric cross-entropy over a batch: [N, D], [N, D], log scale."""
    logits = scale.clamp(max=4.6).exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(logits))
    accuracy = float((logits.argmax(1) == own).float().mean())
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, {"accuracy": accuracy}


def train_clip(work: Path, steps: int = 900) -> None:
    """The scoring model: image and text tower, contrastive."""
    words = mini.tokenizer()
    images, captions = data("train", N_TRAIN, work)
    tokens = tokenise(words, captions)
    val_images, val_captions = data("val", N_VAL, work)
    model, probe = mini.clip(words), mini.clip(words)

    def loss_of(step, rng):
        pick = np.sort(rng.choice(len(images), 80, replace=False))
        image, text = model.encode_image(to_tensor(images[pick])), model.encode_text(tokens[pick])
        return contrastive_loss(image, text, model.logit_scale)

    def validate(ema):
        probe.load_state_dict(ema)
        probe.eval()
        with torch.no_grad():
            image, text = probe.encode_image(to_tensor(val_images)), probe.encode_text(tokenise(words, val_captions))
        return {"val_choice_of_100": round(choice_of_100(image, text, val_captions), 4)}

    Trainer("clip", model, steps, 2e-3, work, ema=0.99).run(loss_of, validate)


def choice_of_100(image: torch.Tensor, text: torch.Tensor, captions: list[str]) -> float:
    """Share of images whose own caption scores highest among 100: itself and the next 99 that differ from it."""
    similarity = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    right = 0
    for i, row in enumerate(similarity):
        others = [
            j % len(captions) for j in range(i + 1, i + len(captions)) if captions[j % len(captions)] != captions[i]
        ]
        right += bool((row[others[:99]] < row[i]).all())
    return right / len(similarity)


class TextTeacher(torch.nn.Module):
    """What a denoiser's text encoder learns words from, before it meets the denoiser: another, smaller CLIP."""

    def __init__(self, words, text):
        super().__init__()
        self.visual = mini.clip(words, width=16).visual
        self.text = text
        self.projection = torch.nn.Linear(mini.TEXT_WIDTH, 128, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.66))


def train_text(work: Path, steps: int = 800) -> None:
    """The denoiser's text encoder, as Stable Diffusion's came from CLIP; not the model that scores it."""
    words = mini.tokenizer()
    images, captions = data("train", N_TRAIN, work)
    tokens = tokenise(words, captions)
    model = TextTeacher(words, mini.text_encoder(words))

    def loss_of(step, rng):
        pick = np.sort(rng.choice(len(images), 80, replace=False))
        text = model.projection(model.text(tokens[pick]).pooler_output)
        return contrastive_loss(model.visual(to_tensor(images[pick])), text, model.logit_scale)

    Trainer("text", model, steps, 2e-3, work, ema=0.99).run(loss_of)


def train_t5(work: Path, steps: int = 800) -> None:
    """mini-PixArt's text encoder, likewise; it has no pooled output, so the mean of its tokens is compared."""
    pieces = mini.t5_tokenizer()
    images, captions = data("train", N_TRAIN, work)
    tokens = tokenise(pieces, captions)
    model = TextTeacher(mini.tokenizer(), mini.t5_encoder(pieces))

    def loss_of(step, rng):
        pick = np.sort(rng.choice(len(images), 80, replace=False))
        mask = tokens[pick] != pieces.pad_token_id
        hidden = model.text(tokens[pick], attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return contrastive_loss(model.visual(to_tensor(images[pick])), model.projection(mean), model.logit_scale)

    Trainer("t5", model, steps, 2e-3, work, ema=0.99).run(loss_of)
