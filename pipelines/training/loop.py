"""How mini models are trained: the loop (data-parallel, checkpointed, resumable, logged), and its data."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from pipelines.data.procedural import Procedural

SEED = 20261122
CHECKPOINT_SECONDS = 120
N_TRAIN, N_VAL = 40_000, 512


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton and Schulz, for matrices and kernels (https://kellerjordan.github.io/posts/muon).

    A kernel [out, in, h, w] is the matrix [out, in h w]. As `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but in
    float32 where bfloat16 would be emulated (8.1 s a step of mini-PixArt; NOTES.md), and matrices of one shape at once.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                alike.setdefault(p.flatten(1).shape, []).append(p)
            for shape, same in alike.items():
                grads = torch.stack([p.grad.flatten(1) for p in same])
                for p in same:
                    self.state[p].setdefault("momentum", torch.zeros_like(p))
                    self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                mean = torch.stack([self.state[p]["momentum"].flatten(1) for p in same])
                with half_precision():
                    updates = orthogonal(torch.lerp(grads, mean, group["momentum"])).float()
                for p, update in zip(same, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


def orthogonal(m: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrices `m` [..., rows, columns], singular values brought near 1 (0.7 to 1.2), singular vectors kept."""
    x = m if m.shape[-2] <= m.shape[-1] else m.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x if m.shape[-2] <= m.shape[-1] else x.mT


def block_matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of linear layers and convolutions inside a network's blocks: what Muon is for, unlike embeddings.
    Frozen ones are left out."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    inside = {name: p for name, p in learned.items() if "block" in name or "layers" in name}
    return [p for name, p in inside.items() if name.endswith("weight") and "_bias" not in name]


class Trainer:
    """AdamW, warm-up and cosine, clipping, EMA, gradient averaging, checkpoints, a CSV of losses.

    `matrices` are parameters that Muon trains instead. on: weights that were restored from a finished model are trained
    on, with a schedule of their own.
    """

    def __init__(
        self,
        stage: str,
        model: torch.nn.Module,
        steps: int,
        lr: float,
        work: Path,
        ema: float = 0.999,
        matrices: Sequence[torch.nn.Parameter] = (),
        on: bool = False,
    ):
        self.stage, self.model, self.steps, self.lr, self.work, self.decay = stage, model, steps, lr, work, ema
        self.params = [p for p in model.parameters() if p.requires_grad]
        muons = {id(p) for p in matrices}
        others = [p for p in self.params if id(p) not in muons]
        groups = [[p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]]
        adamw = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.optimizers = [adamw, *([Muon(matrices, lr)] if matrices else [])]
        self.ema = {k: v.clone() for k, v in model.state_dict().items()}
        self.step = 0
        self.file, self.on = work / f"{stage}.pt", on
        if on and not self.file.exists():
            raise SystemExit(f"error: expected weights to train on, found no {self.file} (train_mini.py restore)")
        if self.file.exists():
            saved = torch.load(self.file, weights_only=True)
            restored = "optimizers" not in saved
            if restored and not on:
                raise SystemExit(f"error: {self.file} was restored from finished weights, which cannot be resumed")
            if not restored and saved.get("on", False) != on:
                raise SystemExit(
                    f"error: {self.file} is of another schedule: expected one that was begun by this stage"
                )
            model.load_state_dict(saved["ema" if restored else "model"])
            self.ema = saved["ema"]
            if not restored:
                for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
                self.step = saved["step"]

    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        return float(self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * self.step / self.steps))))

    def run(self, loss_of, validate=None, every: int = 250) -> None:
        """Take the steps left. `loss_of(step, rng) -> (loss, {name: number})`; rng differs by step and rank."""
        rank, saved_at, seen = dist.get_rank(), time.monotonic(), []
        bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, disable=rank > 0, mininterval=10)
        launcher = multiprocessing.parent_process()  # None where the trainer runs in the process that was started
        while self.step < self.steps:
            if launcher and not launcher.is_alive():  # a killed launcher must not leave its workers training on
                raise SystemExit("the process that started this worker is gone")
            seen.append(self._take_step(loss_of, rank))
            bar.update()
            if rank == 0 and self.step % 50 == 0:
                mean = {
                    k: round(float(np.mean([s[k] for s in seen if k in s])), 5) for k in {k for s in seen for k in s}
                }
                self._log(mean)
                bar.set_postfix(mean)
                seen = []
            if validate and rank == 0 and (self.step % every == 0 or self.step == self.steps):
                self._log(validate(self.ema))
            if rank == 0 and (time.monotonic() - saved_at > CHECKPOINT_SECONDS or self.step == self.steps):
                self._save()
                saved_at = time.monotonic()
        dist.barrier()

    def _take_step(self, loss_of, rank: int) -> dict[str, float]:
        """One step of the optimizers and of the average. Raises FloatingPointError where the loss is not finite."""
        torch.manual_seed(SEED + 1_000_003 * rank + self.step)
        rng = np.random.default_rng([SEED, rank, self.step])
        loss, numbers = loss_of(self.step, rng)
        self.model.zero_grad(set_to_none=False)
        loss.backward()
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            raise FloatingPointError(
                f"{self.stage} diverged: the loss of step {self.step + 1} is {float(loss.detach()):g}, the norm of its "
                f"gradient {float(norm):g}; nothing is written of it"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for k, v in self.model.state_dict().items():
            self.ema[k].lerp_(v, 1 - decay) if v.is_floating_point() else self.ema[k].copy_(v)
        return {"loss": float(loss.detach()), "grad_norm": float(norm), **numbers}

    def _average_gradients(self) -> None:
        flat = torch.cat([p.grad.reshape(-1) for p in self.params])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, g in zip(self.params, flat.split([p.numel() for p in self.params]), strict=True):
            p.grad.copy_(g.view_as(p))

    def _log(self, numbers: dict) -> None:
        line = {"step": self.step, "time": time.strftime("%H:%M:%S"), **numbers}
        with open(self.work / f"{self.stage}.csv", "a") as f:
            f.write(" ".join(f"{k}={v}" for k, v in line.items()) + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
            "step": self.step,
            "on": self.on,
        }
        torch.save(state, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)


def drawn(data: Procedural, split: str, n: int, work: Path) -> tuple[np.ndarray, list[str]]:
    """The first `n` scenes of `split`: uint8 [n, size, size, 3] (memory-mapped) and their captions."""
    file = work / f"{split}-{n}.npy"
    scenes = [data.scene(split, i) for i in range(n)]
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        images = np.stack([data.render(s) for s in tqdm(scenes, desc=f"draw {split}")])
        np.save(file.with_suffix(".tmp.npy"), images)
        os.replace(file.with_suffix(".tmp.npy"), file)
    return np.load(file, mmap_mode="r"), [s.caption for s in scenes]


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokenise(words, captions: list[str]) -> torch.Tensor:
    return words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def half_precision() -> torch.autocast:
    """A context of bfloat16 where the processor multiplies in it (AMX, AVX-512), of nothing where it is emulated."""
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies)


def load_ema(model: torch.nn.Module, work: Path, stage: str) -> torch.nn.Module:
    file = work / f"{stage}.pt"
    if not file.exists():
        raise FileNotFoundError(f"{stage} is not trained yet: expected {file}; run jobs/train_mini.py {stage}")
    model.load_state_dict(torch.load(file, weights_only=True)["ema"])
    return model.eval().requires_grad_(False)
