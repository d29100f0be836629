"""Training of the denoisers' text encoders before they meet the denoiser: they learn to read.

As Stable Diffusion's came from CLIP, whose contrast however never taught a mini model the order of words
(pipelines/training/reading.py). So they answer questions about the scene, what stands where, from the caption alone.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import T5Tokenizer

from pipelines.data.procedural import Procedural
from pipelines.training import mini
from pipelines.training.loop import Trainer, tokenise

BATCH = 96  # captions a process and step, drawn anew
FIRST = 17_000_000  # scenes of `train`: nothing else is trained on them


class Reader(torch.nn.Module):
    """An encoder, and the linear head that answers a data set's questions from its embeddings [N, width]."""

    def __init__(self, encoder: torch.nn.Module, width: int, questions: dict[str, int]):
        super().__init__()
        self.encoder, self.answers = encoder, list(questions.values())
        self.head = torch.nn.Linear(width, sum(self.answers))

    def loss(self, embeddings: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the answers, summed over an embedding's questions: [N, D], int64 [N, questions] -> []."""
        parts = self.head(embeddings).split(self.answers, 1)
        losses = [F.cross_entropy(part, right[:, i], ignore_index=-1, reduction="sum") for i, part in enumerate(parts)]
        return torch.stack(losses).sum() / len(embeddings)

    def right(self, embeddings: torch.Tensor, right: torch.Tensor) -> float:
        """The share of the questions that have an answer and are answered rightly."""
        given = torch.stack([part.argmax(1) for part in self.head(embeddings).split(self.answers, 1)], 1)
        return float((given == right)[right >= 0].float().mean())


def train_text(work: Path, data: Procedural, steps: int = 1200) -> None:
    """mini-SD's CLIP text encoder reads by its pooled output: the end token, which sees all words."""
    words = mini.tokenizer(data)

    def pooled(encoder, ids):
        return encoder(ids).pooler_output

    _train("text", mini.text_encoder(words, layers=mini.TEXT_LAYERS[data.name]), words, pooled, work, data, steps)


def train_t5(work: Path, data: Procedural, steps: int = 1200) -> None:
    """mini-PixArt's T5 likewise; it has no pooled output, so it reads by the mean of its tokens."""
    pieces = mini.t5_tokenizer(data)
    _train("t5", mini.t5_encoder(pieces), pieces, mean_of_tokens(pieces), work, data, steps)


def mean_of_tokens(pieces: T5Tokenizer) -> Callable:
    def pooled(encoder, ids):
        mask = ids != pieces.pad_token_id
        hidden = encoder(ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return pooled


def _train(stage: str, encoder, words, pooled: Callable, work: Path, data: Procedural, steps: int) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = Reader(encoder, mini.TEXT_WIDTH, data.questions)
    probe = deepcopy(model)
    ids, right = _captions(data, words, "val", range(512))

    def loss_of(step, rng):
        first = FIRST + (step * world + rank) * BATCH
        own, answers = _captions(data, words, "train", range(first, first + BATCH))
        return model.loss(pooled(model.encoder, own), answers), {}

    @torch.no_grad()
    def validate(ema):
        probe.load_state_dict(ema)
        return {"val_read": round(probe.right(pooled(probe.encoder, ids), right), 4)}

    Trainer(stage, model, steps, 2e-3, work, ema=0.99).run(loss_of, validate)


def _captions(data: Procedural, words, split: str, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions as ids [N, L], and the right answers [N, questions]."""
    scenes = [data.scene(split, i) for i in indices]
    answers = torch.tensor([data.answers(scene.caption) for scene in scenes])
    return tokenise(words, [scene.caption for scene in scenes]), answers
