"""Training of what denoisers stand on, the autoencoder, and of the CLIP that scores Shapes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pipelines.data.procedural import Procedural
from pipelines.data.shapes import Scene
from pipelines.training import mini
from pipelines.training.loop import N_TRAIN, N_VAL, Trainer, drawn, load_ema, to_tensor, tokenise


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))


def train_autoencoder(work: Path, data: Procedural, steps: int = 10_000) -> None:
    """Crops of half a side for 90 % of the steps, which teach a convolutional net as much for a quarter of the time,
    and whole images after; a quarter of the steps at half the resolution, which mixed resolution decodes too."""
    rank, world = dist.get_rank(), dist.get_world_size()
    held = to_tensor(data.drawn([data.scene("val", i) for i in range(64)]))
    model, probe = mini.autoencoder(data), mini.autoencoder(data)

    def loss_of(step, rng):
        whole, small = step >= 0.9 * steps, step % 4 == 3
        first = (step * world + rank) * 16  # drawn anew: none is seen twice
        scenes = [data.scene("train", first + i) for i in range(4 if whole and not small else 16)]
        images = data.drawn(scenes)
        batch = to_tensor(images if whole or small else around_objects(images, scenes, rng))
        batch = F.avg_pool2d(batch, 2) if small else batch
        posterior = model.encode(batch).latent_dist
        out = model.decode(posterior.sample()).sample
        mse, l1 = F.mse_loss(out, batch), F.l1_loss(out, batch)
        edges = sum(F.l1_loss(out.diff(dim=axis), batch.diff(dim=axis)) for axis in (2, 3))
        kl = posterior.kl().mean() / batch[0].numel()
        numbers = {"mse": float(mse.detach()), "edges": float(edges.detach())}
        return 2 * mse + 0.5 * l1 + 0.5 * edges + 1e-6 * kl, numbers

    @torch.no_grad()
    def validate(ema):
        probe.load_state_dict(ema)
        out = torch.cat([probe.decode(probe.encode(x).latent_dist.mean).sample for x in held.split(16)])
        return {"val_psnr": round(psnr(out, held), 2)}

    file = work / "autoencoder.pt"
    if file.exists() and torch.load(file, weights_only=True).get("balanced"):
        return  # finished: the weights that were trained are not these, and would go on from others than their average
    Trainer("autoencoder", model, steps, 2e-3, work, ema=0.995).run(loss_of, validate)
    if rank == 0:
        load_ema(probe, work, "autoencoder")
        balance(probe, to_tensor(data.drawn([data.scene("train", i) for i in range(512)])))
        torch.save({"ema": probe.state_dict(), "balanced": True}, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    dist.barrier()


@torch.no_grad()
def balance(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Mix the latents' channels, which changes no decoded image: their mean becomes 0, their covariance its own root.

    Left alone, one direction (how bright a place is) spread 60 times as far as another, and what draws edges and
    letters a fifth as far: at a given noise they drown first, so that a denoiser learns them last and draws them in its
    last two steps (NOTES.md). `images` [N, 3, H, W] in [-1, 1] are what the covariance is measured on.

    Raises: ValueError if a direction does not vary at all: no power of its variance brings it back.
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)]).transpose(0, 1).flatten(1)
    values, directions = torch.linalg.eigh(means.cov())
    if values[0] < 1e-7 * values[-1]:
        raise ValueError(f"expected latents that vary in all {len(values)} directions, got variances {values.tolist()}")
    mix, back = (directions * values**power @ directions.T for power in (-0.25, 0.25))
    n, (inward, outward) = len(mix), (vae.quant_conv, vae.post_quant_conv)
    noise = (vae.encode(images[:64]).latent_dist.var.mean((0, 2, 3)) @ mix.square().T).log()
    inward.weight[:n] = torch.einsum("ij,jkhw->ikhw", mix, inward.weight[:n])
    inward.bias[:n] = mix @ (inward.bias[:n] - means.mean(1))
    inward.weight[n:], inward.bias[n:] = 0, noise  # of a mixed channel, its mean over places: a diagonal cannot mix
    outward.bias += outward.weight[:, :, 0, 0] @ means.mean(1)
    outward.weight.copy_(torch.einsum("ijhw,jk->ikhw", outward.weight, back))


def around_objects(images: np.ndarray, scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """A crop of half a side of each image [N, size, size, 3], near one of its objects: most of a scene is background,
    and what is hard to keep is on the objects."""
    half, crops = images.shape[1] // 2, []
    for image, scene in zip(images, scenes, strict=True):
        thing = scene.objects[rng.integers(len(scene.objects))]
        corner = np.array([thing.y, thing.x]) * 2 * half - half / 2 + rng.uniform(-half / 3, half / 3, 2)
        y, x = np.clip(corner.round().astype(int), 0, half)
        crops.append(image[y : y + half, x : x + half])
    return np.stack(crops)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """CLIP's symmetric cross-entropy over a batch: [N, D], [N, D], log scale."""
    logits = scale.clamp(max=4.6).exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(logits))
    accuracy = float((logits.argmax(1) == own).float().mean())
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, {"accuracy": accuracy}


def train_clip(work: Path, data: Procedural, steps: int = 900) -> None:
    """mini-CLIP: image and text tower, contrastive. It scores Shapes; what scores Scenes is mini-clip-scenes."""
    words = mini.tokenizer(data)
    images, captions = drawn(data, "train", N_TRAIN, work)
    tokens = tokenise(words, captions)
    val_images, val_captions = drawn(data, "val", N_VAL, work)
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
