"""The mini models: which stage of training makes each, from checkpoints to finished folders, and how good they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.multiprocessing.spawn import ProcessException

import postdiff
from pipelines.data.procedural import PROCEDURAL, SHAPES, Procedural
from pipelines.engine.cluster import Stopped
from pipelines.metrics.encoders import ClipEncoder
from pipelines.training import judges, mini, reading
from pipelines.training.denoisers import (
    mini_sd,
    train_full,
    train_lcm,
    train_tiny,
    train_unet,
    train_unet_on,
    train_xl,
)
from pipelines.training.encoders import choice_of_100, psnr, train_autoencoder, train_clip
from pipelines.training.latents import conditioned_latents, latents, scaling_factor
from pipelines.training.loop import N_TRAIN, N_VAL, SEED, drawn, load_ema, to_tensor
from pipelines.training.texts import train_t5, train_text
from pipelines.training.transformer import refine_pixart, train_pixart
from postdiff.models import minis
from postdiff.models.checkpoints import resolve, write_run
from postdiff.models.families import FAMILIES
from postdiff.models.hub import TINY_SETTINGS

STAGES: dict[str, Callable[[Path, Procedural], None]] = {
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "text": train_text,
    "unet": train_unet,
    "unet-on": train_unet_on,
    "tiny": train_tiny,
    "lcm": train_lcm,
    "xl": train_xl,
    "t5": train_t5,
    "pixart": train_pixart,
    "refine": refine_pixart,
    "full": train_full,
    **judges.STAGES,
    **reading.STAGES,
}
DENOISERS = ("unet", "unet-on", "tiny", "lcm", "xl", "pixart", "refine", "full")  # stages that are trained on latents
# And the stage that each is finished by.
MODELS = {
    "mini-sd": "unet",
    "mini-bk-sdm": "tiny",
    "mini-lcm": "lcm",
    "mini-sdxl": "xl",
    "mini-pixart": "refine",
    "mini-sd-full": "full",
}
# How each is run. Guidance as measured with mini-SD (NOTES.md), which 7.5 overdrives: of Shapes FID, CLIP score and
# choice of 100 are best at 2; of Scenes eight steps are seen to hurt at 4. mini-LCM is trained from 1 to 4.
GUIDANCE = {"shapes": 2.0, "scenes": 4.0}
RUNS: dict[str, dict[str, Any]] = {
    "mini-bk-sdm": {"settings": TINY_SETTINGS},
    "mini-pixart": {"size": SHAPES.size},  # or its own data set's: its config says 128 cells
}


def pipeline(name: str, work: Path, data: Procedural):
    """The diffusers pipeline of a mini model, from its checkpoints' EMA weights."""
    words = mini.tokenizer(data)
    vae = load_ema(mini.autoencoder(data), work, "autoencoder")
    vae.register_to_config(scaling_factor=scaling_factor(latents(work, data)))
    if name == "mini-sdxl":
        layers = mini.TEXT_LAYERS[data.name] + 1
        texts = {"text": mini.text_encoder(words, layers=layers), "second": mini.second_text_encoder(words)}
        parts = load_ema(torch.nn.ModuleDict({"unet": mini.unet_xl(data), **texts}), work, "xl")
        return mini.stable_diffusion_xl(vae, (parts["text"], parts["second"]), parts["unet"], words)
    if name == "mini-pixart":
        pieces = mini.t5_tokenizer(data)
        parts = torch.nn.ModuleDict({"transformer": mini.transformer(), "text": mini.t5_encoder(pieces)})
        load_ema(parts, work, "refine")
        return mini.pixart(vae, parts["text"], parts["transformer"], pieces)
    unet, text = mini_sd(work, data)
    unet.set_default_attn_processor()
    if name == "mini-lcm":
        return mini.consistency_model(vae, text, load_ema(mini.unet_lcm(data), work, "lcm"), words)
    if name == "mini-sd-full":
        return mini.stable_diffusion(vae, text, load_ema(mini.unet(data), work, "full"), words)
    if name == "mini-bk-sdm":
        return mini.stable_diffusion(vae, text, load_ema(mini.unet_tiny(data), work, "tiny"), words)
    return mini.stable_diffusion(vae, text, unet, words)


def folder_name(name: str, data: Procedural) -> str:
    """What the folder of a model is called: of Shapes as the model, of another data set with its name behind."""
    return name if data is SHAPES else f"{name}-{data.name}"


def export(work: Path, out: Path, names: list[str], data: Procedural) -> None:
    """Write the trained EMA weights as folders in the ordinary formats."""
    claim(work, data)
    words = mini.tokenizer(data)
    unshare(out)  # else a model that is written anew would change those that link to it
    for name in names:
        folder = out / folder_name(name, data)
        mini.save(pipeline(name, work, data), folder)
        run = {"guidance": GUIDANCE[data.name], "prompts": data.name, **RUNS.get(name, {})}
        write_run(resolve(folder), folder, **run | ({"size": data.size} if "size" in run else {}))
    if (work / "clip.pt").exists():
        mini.save_clip(load_ema(mini.clip(words), work, "clip"), mini.clip_config(words), words, out / "mini-clip")
    if (work / f"{reading.STAGE}.pt").exists():
        reading.export(work, out, data)
    if all((work / f"{stage}.pt").exists() for stage in judges.STAGES):
        judges.export(work, out / data.judges, data)
    for file in out.glob("mini-*/**/*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that their owner alone can read
    share(out)
    minis.write_sums(out)


def share(out: Path) -> None:
    """Weights that models of `out` have in common become one file, of the first of `MODELS`, and links to it."""
    folders = [out / folder_name(name, data) for data in PROCEDURAL.values() for name in MODELS]
    first: dict[str, Path] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.safetensors"))):
        if (original := first.setdefault(minis.sha256(file), file)) != file:
            file.unlink()
            file.symlink_to(os.path.relpath(original, file.parent))


def unshare(out: Path) -> None:
    """Weights that are links become files."""
    for file in out.glob("mini-*/*/*.safetensors"):
        if file.is_symlink():
            own = file.read_bytes()
            file.unlink()
            file.write_bytes(own)


def restore(work: Path, folder: Path, data: Procedural) -> None:
    """Checkpoints of finished folders, as far as `load_ema` reads them; mini-PixArt's is what `refine` starts from."""
    claim(work, data)
    stages = {**MODELS, "mini-pixart": "pixart"}
    folders = {name: folder / folder_name(name, data) for name in stages}
    pipes = {name: postdiff.load(own, device="cpu").pipe for name, own in folders.items() if own.exists()}
    if "mini-sd" not in pipes:
        raise FileNotFoundError(f"expected {folders['mini-sd']}, whose parts the others share, found no such folder")
    modules = {"autoencoder": pipes["mini-sd"].vae, reading.STAGE: reading.restored(folder, data)}
    if data is SHAPES:
        modules["clip"] = ClipEncoder(str(folder / "mini-clip")).model
    for name, pipe in pipes.items():
        trained = {"unet": getattr(pipe, "unet", None), "transformer": getattr(pipe, "transformer", None)}
        if name in ("mini-sd", "mini-sdxl", "mini-pixart"):  # trained with their text encoders
            trained |= {"text": pipe.text_encoder, "second": getattr(pipe, "text_encoder_2", None)}
            modules[stages[name]] = torch.nn.ModuleDict({part: module for part, module in trained.items() if module})
        else:
            modules[stages[name]] = pipe.unet
    if existing := [f"{stage}.pt" for stage in modules if (work / f"{stage}.pt").exists()]:
        raise SystemExit(f"error: expected a folder without checkpoints, found {', '.join(existing)} in {work}")
    for stage, module in modules.items():
        torch.save({"ema": module.state_dict()}, work / f"{stage}.pt")


def evaluate(out: Path, names: list[str], data: Procedural, n: int = 256) -> dict[str, float]:
    """What was asked of the models, measured on the exported fp16 folders; and a picture of 64 samples of each."""
    torch.set_num_threads(os.cpu_count() or 1)
    clip = ClipEncoder(str(out / data.clip))
    val = [data.scene("val", i) for i in range(N_VAL)]
    real = data.drawn(val)
    x = to_tensor(real)
    file = out / "evaluation.json"
    numbers = json.loads(file.read_text()) if file.exists() else {}
    numbers[f"{key(data.clip)}_choice_of_100"] = choice(clip, real, [scene.caption for scene in val])
    prompts = [scene.caption for scene in data.distinct("prompts", n)]
    for name in names:
        folder = folder_name(name, data)
        backbone = postdiff.load(out / folder, device="cpu")
        vae, steps = backbone.pipe.vae, backbone.spec.settings["steps"]
        if name == "mini-sd":
            with torch.no_grad():
                decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(32)])
            numbers[f"{key(folder_name('autoencoder', data))}_psnr_db"] = round(psnr(decoded.clamp(-1, 1), x), 2)
        for t in {steps, 4} if not FAMILIES[backbone.spec.family].guided else {steps}:
            images = postdiff.sample(backbone, prompts, list(range(n)), postdiff.methods.dense(t), batch_size=32)
            numbers[f"{key(folder)}_T{t}_choice_of_100_n{n}"] = choice(clip, images, prompts)
            if t == steps:
                side = 8 * data.size
                rows = images[:64].reshape(8, 8, *images.shape[1:]).transpose(0, 2, 1, 3, 4).reshape(side, side, 3)
                picture = Image.fromarray(rows).resize((1024, 1024), Image.Resampling.NEAREST)
                picture.save(out / f"samples-{folder}.png", optimize=True)
    file.write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def key(name: str) -> str:
    return name.replace("-", "_")


def choice(clip: ClipEncoder, images: np.ndarray, captions: list[str]) -> float:
    image, text = torch.from_numpy(clip.images(images)), torch.from_numpy(clip.texts(captions))
    return round(choice_of_100(image, text, captions), 4)


def _worker(rank: int, world: int, port: int, stage: str, work: Path, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(SEED)
    STAGES[stage](work, PROCEDURAL[data])
    dist.destroy_process_group()


def claim(work: Path, data: Procedural) -> None:
    """Say in the work folder which data set its checkpoints are of. Raises ValueError if they are of another one."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "data"
    if file.exists() and file.read_text() != data.name:
        raise ValueError(f"--work {work} is of {file.read_text()}: expected a folder of its own for {data.name}")
    file.write_text(data.name)


def train(stage: str, work: Path, data: Procedural, workers: int) -> None:
    """Run a stage in processes of its own. Raises Stopped, with the last line of what they raised."""
    claim(work, data)
    if stage == "clip":
        drawn(data, "train", N_TRAIN, work), drawn(data, "val", N_VAL, work)
    if stage in DENOISERS:  # once, not in every process
        latents(work, data)
    if stage == "xl":
        conditioned_latents(work, data)
    port = 29500 + os.getpid() % 1000
    try:
        torch.multiprocessing.spawn(_worker, (workers, port, stage, work, data.name), nprocs=workers)
    except ProcessException as error:
        raise Stopped(str(error).strip().rpartition("\n")[2]) from error
