"""Train the mini models from nothing: python jobs/train_mini.py {autoencoder,clip,text,unet,export,evaluate,all}

Each stage trains on Shapes with two single-threaded processes that average their gradients (on two cores a third
faster than one process with two threads; NOTES.md), checkpoints every few minutes, resumes from the checkpoint after
a kill, and appends its losses to `<work>/<stage>.csv`. `export` writes the finished folders, fp16 safetensors:

    postdiff/mini/mini-sd      StableDiffusionPipeline.from_pretrained(folder) loads it
    postdiff/mini/mini-clip    open_clip.create_model("local-dir:FOLDER") loads it; scores are made with it

`evaluate` measures them, and draws a grid of 64 samples beside them.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import postdiff
from pipelines import mini, shapes
from pipelines.training import SEED, Trainer
from postdiff.backbones import MINI
from postdiff.encoders import ClipEncoder

N_TRAIN, N_LATENTS, N_VAL = 40_000, 24_000, 512


def data(split: str, n: int, work: Path) -> tuple[np.ndarray, list[str]]:
    """The first `n` scenes of `split`: uint8 [n, 64, 64, 3] (memory-mapped) and their captions."""
    file = work / f"{split}-{n}.npy"
    scenes = [shapes.scene(split, i) for i in range(n)]
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        images = np.stack([shapes.render(s) for s in tqdm(scenes, desc=f"draw {split}")])
        np.save(file.with_suffix(".tmp.npy"), images)
        os.replace(file.with_suffix(".tmp.npy"), file)
    return np.load(file, mmap_mode="r"), [s.caption for s in scenes]


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))


def load_ema(model: torch.nn.Module, work: Path, stage: str) -> torch.nn.Module:
    file = work / f"{stage}.pt"
    if not file.exists():
        raise FileNotFoundError(f"{stage} is not trained yet: expected {file}; run jobs/train_mini.py {stage}")
    model.load_state_dict(torch.load(file, weights_only=True)["ema"])
    return model.eval().requires_grad_(False)


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


def tokenise(words, captions: list[str]) -> torch.Tensor:
    return words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


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
    """What the denoiser's text encoder learns words from, before it meets the denoiser: another, smaller CLIP."""

    def __init__(self, words):
        super().__init__()
        self.visual = mini.clip(words, width=16).visual
        self.text = mini.text_encoder(words)
        self.projection = torch.nn.Linear(mini.TEXT_WIDTH, 128, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.66))


def train_text(work: Path, steps: int = 800) -> None:
    """The denoiser's text encoder, as Stable Diffusion's came from CLIP; not the model that scores it."""
    words = mini.tokenizer()
    images, captions = data("train", N_TRAIN, work)
    tokens = tokenise(words, captions)
    model = TextTeacher(words)

    def loss_of(step, rng):
        pick = np.sort(rng.choice(len(images), 80, replace=False))
        text = model.projection(model.text(tokens[pick]).pooler_output)
        return contrastive_loss(model.visual(to_tensor(images[pick])), text, model.logit_scale)

    Trainer("text", model, steps, 2e-3, work, ema=0.99).run(loss_of)


@torch.no_grad()
def latents(work: Path) -> dict[int, np.ndarray]:
    """The first training images as latents, {side: float16 [N, C, side, side]}, of the full and of downsampled images.

    Low-resolution latents encode downsampled images, which is what a real model has seen; pooled latents are not.
    """
    files = {side: work / f"latents-{side}.npy" for side in (16, 12, 8)}
    if not all(file.exists() for file in files.values()):
        images, _ = data("train", N_TRAIN, work)
        vae = load_ema(mini.autoencoder(), work, "autoencoder")
        torch.set_num_threads(os.cpu_count() or 1)
        for side, file in files.items():
            parts = []
            for start in tqdm(range(0, N_LATENTS, 100), desc=f"encode {side}x{side}"):
                batch = to_tensor(images[start : min(start + 100, N_LATENTS)])
                batch = F.interpolate(batch, 4 * side, mode="bilinear", antialias=True) if side < 16 else batch
                parts.append(vae.encode(batch).latent_dist.mean.half().numpy())
            np.save(file.with_suffix(".tmp.npy"), np.concatenate(parts))
            os.replace(file.with_suffix(".tmp.npy"), file)
    return {side: np.load(file, mmap_mode="r") for side, file in files.items()}


def scaling_factor(stored: dict[int, np.ndarray]) -> float:
    """What brings the latents to unit variance (AutoencoderKL's `scaling_factor`)."""
    return round(1 / float(np.std(stored[16][:4000].astype(np.float32))), 5)


def train_unet(work: Path, steps: int = 5800) -> None:
    """mini-SD's denoiser and text encoder together: epsilon prediction, min-SNR weights, three resolutions."""
    words = mini.tokenizer()
    _, captions = data("train", N_TRAIN, work)
    tokens, empty = tokenise(words, captions), tokenise(words, [""])
    stored = latents(work)
    scale = scaling_factor(stored)
    text = load_ema(TextTeacher(words), work, "text").text.train().requires_grad_(True)
    model = torch.nn.ModuleDict({"unet": mini.unet(), "text": text})
    model["unet"].set_attn_processor(AttnProcessor())  # a third faster than SDPA to train at these sizes on a CPU
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    batch_size = {16: 32, 12: 48, 8: 96}  # about equal time a step

    def loss_of(step, rng):
        # Words and colours are learned at 8x8 first, for a quarter of the price; then mostly at full size.
        side = 8 if step < 400 else int(rng.choice([16, 12, 8], p=[0.7, 0.14, 0.16]))
        pick = np.sort(rng.choice(N_LATENTS, batch_size[side], replace=False))
        x0 = torch.from_numpy(stored[side][pick]).float() * scale
        ids = torch.where(torch.from_numpy(rng.random(len(pick)) < 0.1)[:, None], empty, tokens[pick])
        # One time from each of n equal parts of [0, 1000): the same mean loss, a quieter gradient.
        t = ((torch.randperm(len(pick)) + torch.rand(len(pick))) * 1000 / len(pick)).long()
        alpha = alphas[t][:, None, None, None]
        noise = torch.randn_like(x0)
        noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        out = model["unet"](noisy, t, model["text"](ids).last_hidden_state, return_dict=False)[0]
        error = (out - noise).square().mean((1, 2, 3))
        snr = alpha.flatten() / (1 - alpha.flatten())
        return (error * (5 / snr).clamp(max=1)).mean(), {f"eps_mse_{side}": float(error.detach().mean())}

    Trainer("unet", model, steps, 1.2e-3, work).run(loss_of)


def export(work: Path, out: Path) -> None:
    """Write the trained EMA weights as folders in the ordinary formats."""
    words = mini.tokenizer()
    vae = load_ema(mini.autoencoder(), work, "autoencoder")
    vae.register_to_config(scaling_factor=scaling_factor(latents(work)))
    model = load_ema(torch.nn.ModuleDict({"unet": mini.unet(), "text": mini.text_encoder(words)}), work, "unet")
    mini.save(mini.stable_diffusion(vae, model["text"], model["unet"], words), out / "mini-sd")
    mini.save_clip(load_ema(mini.clip(words), work, "clip"), words, out / "mini-clip")


def evaluate(out: Path, n: int = 256, steps: int = 20) -> dict[str, float]:
    """What the issue asks of the models, measured on the exported fp16 folders; and a picture of 64 samples."""
    torch.set_num_threads(os.cpu_count() or 1)
    backbone, clip = (
        postdiff.load("mini-sd" if out == MINI else out / "mini-sd", device="cpu"),
        ClipEncoder(str(out / "mini-clip")),
    )
    vae = backbone.pipe.vae
    val = [shapes.scene("val", i) for i in range(N_VAL)]
    drawn = np.stack([shapes.render(scene) for scene in val])
    x = to_tensor(drawn)
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(32)])
    prompts = [scene.caption for scene in shapes.distinct_scenes("prompts", n)]
    numbers = {
        "autoencoder_psnr_db": round(psnr(decoded.clamp(-1, 1), x), 2),
        "mini_clip_choice_of_100": choice(clip, drawn, [scene.caption for scene in val]),
    }
    images = postdiff.sample(backbone, prompts, list(range(n)), postdiff.methods.dense(steps), batch_size=32)
    numbers[f"mini_sd_choice_of_100_n{n}"] = choice(clip, images, prompts)
    rows = images[:64].reshape(8, 8, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(512, 512, 3)
    Image.fromarray(rows).resize((1024, 1024), Image.Resampling.NEAREST).save(out / "samples.png", optimize=True)
    (out / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def choice(clip: ClipEncoder, images: np.ndarray, captions: list[str]) -> float:
    image, text = torch.from_numpy(clip.images(images)), torch.from_numpy(clip.texts(captions))
    return round(choice_of_100(image, text, captions), 4)


STAGES = {"autoencoder": train_autoencoder, "clip": train_clip, "text": train_text, "unet": train_unet}


def _worker(rank: int, world: int, port: int, stage: str, work: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(SEED)
    STAGES[stage](work)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "export", "evaluate", "all"])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints, logs and drawn images")
    parser.add_argument("--out", type=Path, default=MINI, help="finished folders")
    parser.add_argument("--workers", type=int, default=2, help="processes; part of what the weights depend on")
    args = parser.parse_args()
    for stage in STAGES if args.stage == "all" else [args.stage]:
        if stage in STAGES:
            data("train", N_TRAIN, args.work), data("val", N_VAL, args.work)
            if stage == "unet":
                latents(args.work)
            port = 29500 + os.getpid() % 1000
            torch.multiprocessing.spawn(_worker, (args.workers, port, stage, args.work), nprocs=args.workers)
    if args.stage in ("export", "all"):
        export(args.work, args.out)
    if args.stage in ("evaluate", "all"):
        print(json.dumps(evaluate(args.out), indent=2))


if __name__ == "__main__":
    main()
