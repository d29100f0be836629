"""Fine-tuning a U-Net for mixed resolution (App. F): the timesteps of the low-resolution phase see small images."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler
from tqdm import tqdm

import postdiff
from pipelines.data.pairs import Pairs
from pipelines.engine.files import check_folder
from pipelines.training.finetune_settings import FAMILY, Settings, check_model
from postdiff.models.checkpoints import fingerprint, resolve, write_run
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec
from postdiff.resolution import latent_size


def make(name: str, pairs: Pairs, settings: Settings, out: Path, checkpoint_every: int = 500) -> None:
    """Fine-tune the backbone `name` into the folder `out`, which `postdiff.load` takes; checkpoints go to OUT-work.

    Raises: ValueError, before weights are read, if `out` cannot be that folder; FloatingPointError, and `out` is not
    written, if the training diverges.
    """
    first = PartialState().is_main_process
    work = checkpoints_of(out, run_of(resolve(name), pairs, settings))
    # Onto the CPU: before each process knows its own GPU, "cuda" is the first one for all.
    backbone = postdiff.load(name, device="cpu", dtype=torch.float32)
    with tqdm(total=settings.steps, desc=f"fine-tune {name}", unit="step", disable=not first) as bar:

        def show(step: int, loss: float) -> None:
            bar.n = step
            bar.set_postfix(loss=f"{loss:.4f}", skipped=len(pairs.skipped))

        backbone.pipe.unet = finetune(backbone, pairs, settings, work, checkpoint_every, show)
    if first:
        backbone.pipe.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
        own = {**backbone.spec.settings, "beta": settings.beta, "s": settings.s}
        write_run(backbone.spec, out, settings=own)  # the last file: where it is, the folder is whole
    PartialState().wait_for_everyone()


def run_of(spec: Spec, pairs: Pairs, settings: Settings) -> dict:
    """What a checkpoint is of: all that the weights depend on."""
    inputs = {"weights": fingerprint(spec), "pairs": f"{len(pairs)} of {pairs.name}"}
    return {**asdict(settings), **inputs, "processes": PartialState().num_processes}


def checkpoints_of(out: Path, run: dict) -> Path:
    """The folder of the checkpoints of `out`. Leaves nothing behind.

    Raises: ValueError if `out` is no folder of its own that can be written: one that holds something is taken only
    where this `run` began it.
    """
    whole = out.absolute().resolve()
    if Path.cwd().is_relative_to(whole):
        raise ValueError(f"--out must be a new folder, got {str(out)!r}, in which this job runs")
    if model := next((at for at in whole.parents if (at / "model_index.json").is_file()), None):
        raise ValueError(f"--out must be no part of a model, got {str(out)!r} inside {str(model)!r}")
    work = whole.with_name(f"{whole.name}-work")
    for folder in (whole, work):
        try:
            check_folder(folder)
        except OSError as error:
            raise ValueError(f"--out must be a folder that can be written, got {str(folder)!r}: {error}") from None
    began = _checkpoint(work / "checkpoint.pt")
    if began is not None:
        _check_run(work / "checkpoint.pt", began["run"], run)
    elif whole.is_dir() and any(whole.iterdir()):
        raise ValueError(f"--out must be a new folder, got {str(out)!r}, which is not empty")
    return work


def finetune(
    backbone: postdiff.Backbone,
    pairs: Pairs,
    settings: Settings,
    work: Path,
    checkpoint_every: int = 500,
    on_step: Callable[[int, float], None] | None = None,
) -> torch.nn.Module:
    """Train the denoiser of `backbone`, and return it with the averaged (EMA) weights.

    Checkpoints go to `work`/checkpoint.pt; a run goes on from it, and ends with the same weights: what a step sees
    depends on the seed, its number and the process alone. (Not so under fp16, whose loss scale begins anew, nor where
    addresses answer at one time and not at another.)

    Raises: ValueError if the checkpoint is of another run, or the family is not SD's; FloatingPointError if the loss or
    a weight is no finite number: the checkpoints before are kept, and none is written of that.
    """
    check_model(backbone.spec)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    per_process = settings.batch // (settings.micro_batch * accelerator.num_processes)
    if per_process * settings.micro_batch * accelerator.num_processes != settings.batch:
        raise ValueError(f"batch {settings.batch} must divide among {accelerator.num_processes} processes")
    pipe = backbone.pipe.to(accelerator.device)
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    model = pipe.unet.float().train().requires_grad_(True)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    run = run_of(backbone.spec, pairs, settings)
    start = _resume(work / "checkpoint.pt", model, average, optimizer, run)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    for step in range(start, settings.steps):
        total = 0.0
        for micro in range(per_process):
            last = micro + 1 == per_process
            order = (step * per_process + micro) * accelerator.num_processes + accelerator.process_index
            with accelerator.accumulate(wrapped) if last else accelerator.no_sync(wrapped):
                loss = _loss(backbone, wrapped, pairs, schedule, settings, order)
                accelerator.backward(loss / per_process)
            total += float(loss.detach()) / per_process
        if not math.isfinite(total):
            raise diverged(step + 1, total)
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / settings.warm_up)
        optimizer.step()
        optimizer.zero_grad()
        _average(average, model, min(settings.ema, (1 + step) / (10 + step)))
        if on_step:
            on_step(step + 1, total)
        if accelerator.is_main_process and ((step + 1) % checkpoint_every == 0 or step + 1 == settings.steps):
            if not all(value.isfinite().all() for value in average.values()):
                raise diverged(step + 1, total, "and not all weights are finite")
            _save(work / "checkpoint.pt", model, average, optimizer, run, step + 1)
    model.load_state_dict(average)
    return model.eval().requires_grad_(False)


def diverged(step: int, loss: float, also: str = "") -> FloatingPointError:
    message = f"the training diverged: the loss of step {step} is {loss:g}{f', {also}' if also else ''}"
    return FloatingPointError(f"{message}; nothing is written of it (a lower --lr may do)")


def draw_low(settings: Settings, order: int) -> bool:
    """Is micro-batch `order` of the low-resolution phase? Stratified: in any run of them a share s is."""
    return int((order + 1) * settings.s) > int(order * settings.s)


def timesteps(settings: Settings, low: bool, n: int, total: int, generator: torch.Generator) -> torch.Tensor:
    """[n] of the phase: the noisiest round(s * total) timesteps at low resolution, the others at full."""
    border = total - round(settings.s * total)
    first, end = (border, total) if low else (0, border)
    return torch.randint(first, end, (n,), generator=generator)


def _loss(backbone, model, pairs: Pairs, schedule, settings: Settings, order: int) -> torch.Tensor:
    pipe, device, n = backbone.pipe, backbone.device, settings.micro_batch
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + order)
    low = draw_low(settings, order)
    full = backbone.spec.latents(backbone.spec.size)
    pixels = latent_size(full, settings.beta if low else 1.0)[0] * backbone.spec.vae_factor  # the sampler's own grid
    images, captions = pairs.batch(order, n, pixels, settings.seed)
    dropped = torch.rand(n, generator=generator) < settings.drop
    texts = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, pipe.vae.dtype) / 127.5 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(x).latent_dist
        sampled = torch.randn(posterior.mean.shape, generator=generator).to(x)
        clean = ((posterior.mean + posterior.std * sampled) * pipe.vae.config.scaling_factor).float()
        words = FAMILIES[FAMILY].encode(pipe, texts, False, backbone.spec.text_tokens)["text"].float()
    t = timesteps(settings, low, n, schedule.config.num_train_timesteps, generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    noisy = schedule.add_noise(clean, noise, t)
    kind = schedule.config.prediction_type
    wanted = noise if kind == "epsilon" else schedule.get_velocity(clean, noise, t) if kind != "sample" else clean
    out = model(noisy, t, words, return_dict=False)[0]
    return F.mse_loss(out.float(), wanted)


@torch.no_grad()
def _average(average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)


def _save(file: Path, model, average, optimizer, run: dict, step: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "ema": average, "optimizer": optimizer.state_dict(), "step": step}
    torch.save({**state, "run": run}, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def _resume(file: Path, model, average, optimizer, run: dict) -> int:
    saved = _checkpoint(file)
    if saved is None:
        return 0
    _check_run(file, saved["run"], run)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["ema"].items():
        average[name].copy_(value)
    return saved["step"]


def _checkpoint(file: Path) -> dict | None:
    """What `_save` wrote, its tensors read when they are used; None if there is none. Raises ValueError if it is
    something else."""
    if not file.exists():
        return None
    try:
        saved = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        if not {"model", "ema", "optimizer", "step", "run"} <= saved.keys():
            raise ValueError(f"it holds {', '.join(map(str, saved))}")
    except Exception as error:  # of a broken archive torch raises what it likes
        raise ValueError(f"{file} must be a checkpoint of jobs/finetune.py: {type(error).__name__}: {error}") from None
    return saved


def _check_run(file: Path, saved: dict, run: dict) -> None:
    differ = {name: (saved.get(name), value) for name, value in run.items() if saved.get(name) != value}
    if differ:
        raise ValueError(f"{file} is of another run (there, here): {differ}; use another folder")
