"""The training loop of the mini models: data-parallel over processes, checkpointed, resumable, logged."""

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

SEED = 20261122
CHECKPOINT_SECONDS = 120


class Trainer:
    """AdamW, warm-up and cosine, clipping, EMA, gradient averaging, checkpoints, a CSV of losses."""

    def __init__(self, stage: str, model: torch.nn.Module, steps: int, lr: float, work: Path, ema: float = 0.999):
        self.stage, self.model, self.steps, self.lr, self.work, self.decay = stage, model, steps, lr, work, ema
        self.params = [p for p in model.parameters() if p.requires_grad]
        groups = [[p for p in self.params if p.ndim > 1], [p for p in self.params if p.ndim <= 1]]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = {k: v.clone() for k, v in model.state_dict().items()}
        self.step = 0
        self.file = work / f"{stage}.pt"
        if self.file.exists():
            saved = torch.load(self.file, weights_only=True)
            model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema, self.step = saved["ema"], saved["step"]

    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        return float(self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * self.step / self.steps))))

    def run(self, loss_of, validate=None, every: int = 250) -> None:
        """Take the steps left. `loss_of(step, rng) -> (loss, {name: number})`; rng differs by step and rank."""
        rank, saved_at, seen = dist.get_rank(), time.monotonic(), []
        bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, disable=rank > 0, mininterval=10)
        parent = os.getppid()
        while self.step < self.steps:
            if os.getppid() != parent:  # a killed launcher must not leave its workers training on
                raise SystemExit("the process that started this worker is gone")
            torch.manual_seed(SEED + 1_000_003 * rank + self.step)
            rng = np.random.default_rng([SEED, rank, self.step])
            loss, numbers = loss_of(self.step, rng)
            self.optimizer.zero_grad(set_to_none=False)
            loss.backward()
            self._average_gradients()
            norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.step()
            self.step += 1
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            for k, v in self.model.state_dict().items():
                self.ema[k].lerp_(v, 1 - decay) if v.is_floating_point() else self.ema[k].copy_(v)
            seen.append({"loss": float(loss.detach()), "grad_norm": float(norm), **numbers})
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
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
        }
        torch.save(state, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)
