"""How a U-Net is fine-tuned for mixed resolution (App. F), checked before torch is imported."""

from dataclasses import dataclass

from postdiff.arguments import shown_size
from postdiff.models.spec import Spec

FAMILY = "sd"  # whose U-Nets are told the text alone


@dataclass(frozen=True)
class Settings:
    """`batch` images a step in all, `micro_batch` at a time on each process.

    The paper's (App. F): batch, steps, lr, beta, s. Ours, since it does not say: all others, AdamW's weight decay of
    0.01, gradients clipped to norm 1.

    beta, s: of the plan that is fine-tuned for. An image is seen at scale beta with probability s, at a timestep of the
    first s of the schedule (the noisiest); else at full size, at a timestep of the rest.
    """

    beta: float = 0.5
    s: float = 0.5
    steps: int = 15_000
    batch: int = 128
    micro_batch: int = 16
    lr: float = 1e-5
    warm_up: int = 500
    ema: float = 0.9999
    drop: float = 0.1  # share of captions that are left empty, for guidance
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1 or not 0 <= self.s < 1:
            raise ValueError(f"beta must be in (0, 1] and s in [0, 1), got {self.beta} and {self.s}")
        if min(self.steps, self.batch, self.micro_batch) < 1 or self.batch % self.micro_batch:
            raise ValueError(f"batch must be a multiple of micro_batch, got {self.batch} and {self.micro_batch}")
        if self.warm_up < 1 or not 0 < self.lr <= 1 or not 0 <= self.ema < 1 or not 0 <= self.drop <= 1:
            raise ValueError(
                "expected warm_up >= 1, lr in (0, 1], ema in [0, 1) and drop in [0, 1], got "
                f"{self.warm_up}, {self.lr}, {self.ema}, {self.drop}"
            )


def check_model(spec: Spec) -> None:
    """Raise ValueError if fine-tuning is not written for models like that of `spec`."""
    if spec.family != FAMILY:
        raise ValueError(f"fine-tuning is written for U-Nets of the family {FAMILY}, got {spec.family}")
    if spec.size[0] != spec.size[1]:
        raise ValueError(f"fine-tuning is on squares, got a model of {shown_size(spec.size)} px")
