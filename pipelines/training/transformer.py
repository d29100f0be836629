"""Training of mini-PixArt on latents: it has no weights in common with mini-SD, but learns its output."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipelines.data.procedural import Procedural
from pipelines.training import mini
from pipelines.training.denoisers import (
    Batch,
    batches,
    captions,
    distillation_loss,
    mini_sd,
    teacher_loss,
    trainable,
)
from pipelines.training.loop import Trainer, block_matrices, half_precision, load_ema
from pipelines.training.texts import Reader
from postdiff.models.families import FAMILIES

SIZES = {16: 40, 12: 70, 8: 150}  # images a batch at each side


def train_pixart(work: Path, data: Procedural, steps: int = 5600) -> None:
    """mini-PixArt: transformer and T5 together, told the image's size; it learns the noise and what mini-SD says."""
    t5 = mini.t5_encoder(mini.t5_tokenizer(data))
    text = load_ema(Reader(t5, mini.TEXT_WIDTH, data.questions), work, "t5").encoder
    model = torch.nn.ModuleDict({"transformer": mini.transformer(), "text": text})
    draw = batches(work, data, SIZES, low_until=250)
    teach("pixart", model, draw, distillation_loss, work, data, steps, 1.5e-3)


def refine_pixart(work: Path, data: Procedural, steps: int = 3000) -> None:
    """mini-PixArt trained on where forms are made: 70 % of the times from 100 to 600, and mini-SD's output alone.

    There its error was a quarter to a third above mini-SD's, and nothing above it beyond 800 (NOTES.md).
    """
    model = torch.nn.ModuleDict({"transformer": mini.transformer(), "text": mini.t5_encoder(mini.t5_tokenizer(data))})
    load_ema(model, work, "pixart")
    draw = batches(work, data, SIZES)

    def focused(step: int, rng: np.random.Generator) -> Batch:
        batch = draw(step, rng)
        batch.t = middle(batch.t)
        return batch

    teach("refine", model, focused, teacher_loss, work, data, steps, 1.2e-3)


def middle(t: torch.Tensor) -> torch.Tensor:
    """Uniform times in [0, 1000), 70 % of them moved to [100, 600)."""
    return torch.from_numpy(np.interp(t, [0, 100, 800, 1000], [0, 100, 600, 1000])).long()


def teach(
    stage: str, model: torch.nn.ModuleDict, draw: Callable, loss: Callable, work: Path, data: Procedural, steps: int,
    lr: float,
):  # fmt: skip
    """Train transformer and text encoder together, Muon for their blocks' matrices.

    The channels of the learned variance stay 0: no ODE solver reads them, nor does PixArt's pipeline.
    """
    trainable(model["transformer"])
    model.train().requires_grad_(True)
    pieces = mini.t5_tokenizer(data)
    teacher, known = mini_sd(work, data)
    ids, known_ids = captions(data, pieces), captions(data)

    def loss_of(step, rng):
        batch = draw(step, rng)
        tokens = ids[batch.rows]
        mask = (tokens != pieces.pad_token_id).long()
        size = data.size // mini.LATENT_SIDE * batch.x0.shape[-1]
        with half_precision():
            hidden = model["text"](tokens, attention_mask=mask).last_hidden_state
            text, rules = {"text": hidden, "mask": mask}, FAMILIES["pixart"]
            conditions = rules.conditions(text, (size, size), 1.0, model["transformer"].config)
            out = rules.predict(model["transformer"], batch.noisy, batch.t, text, conditions).float()
            words = known(known_ids[batch.rows]).last_hidden_state
        return loss(out, batch, teacher, words)

    Trainer(stage, model, steps, lr, work, matrices=block_matrices(model)).run(loss_of)
