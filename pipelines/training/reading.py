"""Training of mini-CLIP-reads, the mini-CLIP that tells left from right, and how often it and mini-CLIP are right.

A contrast alone never taught the order of words and of objects: mini-CLIP prefers its own caption to one with left and
right swapped on 52.1 % of real renders (jobs/results/README.md). So both towers first answer questions about the scene
from their embeddings, by one head that they share, which also brings an image and its caption together; then they
contrast each image with all captions of the batch and four changed ones of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipelines.data import changes, shapes
from pipelines.data.changes import CHANGES
from pipelines.data.procedural import SCENES, SHAPES, Procedural
from pipelines.data.shapes import Scene
from pipelines.metrics.encoders import ClipEncoder
from pipelines.training import mini
from pipelines.training.accuracy import Row, row
from pipelines.training.encoders import contrastive_loss
from pipelines.training.judges import degraded
from pipelines.training.loop import Trainer, half_precision, load_ema, to_tensor, tokenise
from pipelines.training.texts import Reader

STAGE = "clip-reads"
BATCH = 64  # scenes a process and step, drawn anew: none is seen twice
STEPS, TAUGHT = 1500, 700  # of both together; of them, those before the contrast
TRAINED_ON = {"mini-clip": SHAPES, "mini-clip-reads": SHAPES, "mini-clip-scenes": SCENES}
FIRST = 13_000_000  # scenes of `train`: the judges share none
WATCHED, MEASURED = 50_000, 100_000  # first scenes of `val` that are watched in training, and measured after it


def reader(data: Procedural) -> Reader:
    """A CLIP, and the head that reads a data set's questions in an embedding of either of its towers."""
    clip = mini.reading_clip(mini.tokenizer(data))
    return Reader(clip, clip.text_projection.shape[1], data.questions)


def hard_loss(image: torch.Tensor, text: torch.Tensor, wrong: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each image's own caption among it and its changed ones: [N, D], [N, D], [N, K, D], log scale."""
    captions = F.normalize(torch.cat([text[:, None], wrong], 1), dim=-1)
    logits = scale.clamp(max=4.6).exp() * (captions @ F.normalize(image, dim=-1)[:, :, None])[..., 0]
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def seen(images: torch.Tensor) -> torch.Tensor:
    """Images [N, 3, side, side] at the tower's size, smaller ones enlarged as Pillow does in open_clip's own transform:
    one axis, then the other, no value beyond the range after either.

    A pixel's channels lie side by side: a CPU's convolutions, so few channels wide, take two thirds of the time so.
    """
    for size in ((images.shape[-2], mini.READING_SIZE), (mini.READING_SIZE, mini.READING_SIZE)):
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def train(work: Path, data: Procedural) -> None:
    _train(work, data, STEPS, TAUGHT, FIRST, 2e-3)


def train_on(work: Path, data: Procedural, steps: int = 500) -> None:
    """A finished CLIP contrasted further, on other scenes. The head was left behind: it learns to read anew."""
    _train(work, data, steps, 0, FIRST + 1_000_000, 1e-3, on=True)


def _train(work: Path, data: Procedural, steps: int, taught: int, start: int, lr: float, on: bool = False) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    words = mini.tokenizer(data)
    model, probe = reader(data), reader(data)
    held = held_out(data, WATCHED, 256)
    shown = seen(to_tensor(data.drawn(held)))

    def loss_of(step, rng):
        first = start + (step * world + rank) * BATCH
        scenes = [data.scene("train", first + i) for i in range(BATCH)]
        images = to_tensor(data.drawn(scenes))
        images = degraded(images, rng) if step % 2 else images
        right = torch.tensor([data.answers(scene.caption) for scene in scenes])
        captions = [scene.caption for scene in scenes]
        contrasted = step >= taught
        if contrasted:
            captions += [wrong for scene in scenes for wrong in changes.hard_negatives(data, scene, rng)]
        with half_precision():
            image = model.encoder.encode_image(seen(images)).float()
        text = model.encoder.encode_text(tokenise(words, captions))
        own, scale = text[:BATCH], model.encoder.logit_scale
        read = [model.loss(10 * F.normalize(embeddings, dim=-1), right) for embeddings in (image, own)]
        contrast, numbers = contrastive_loss(image, own, scale)
        numbers |= {"read_image": float(read[0].detach()), "read_text": float(read[1].detach())}
        if not contrasted:
            return read[0] + read[1] + 0 * contrast, numbers
        hard = hard_loss(image, own, text[BATCH:].view(BATCH, -1, text.shape[1]), scale)
        return contrast + hard + 0.2 * (read[0] + read[1]), {**numbers, "hard": float(hard.detach())}

    @torch.no_grad()
    def validate(ema):
        probe.load_state_dict(ema)
        probe.eval()
        image = torch.cat([probe.encoder.encode_image(part) for part in shown.split(64)])

        def texts(captions):
            return probe.encoder.encode_text(tokenise(words, captions)).numpy()

        shares = {kind: float(np.mean(right)) for kind, right in compared(data, held, image.numpy(), texts).items()}
        return {f"val_{kind.replace(' ', '_')}": round(share, 3) for kind, share in shares.items()}

    Trainer(STAGE, model, steps, lr, work, ema=0.99, on=on).run(loss_of, validate)


STAGES = {STAGE: train, f"{STAGE}-on": train_on}  # of jobs/train_mini.py


def held_out(data: Procedural, first: int, n: int) -> list[Scene]:
    """The first `n` scenes of `val` from `first` on whose captions are held out: no model was trained on them."""
    scenes = (data.scene("val", index) for index in count(first))
    return list(islice((scene for scene in scenes if shapes.is_held_out(scene.caption)), n))


def compared(
    data: Procedural, scenes: Sequence[Scene], images: np.ndarray, texts: Callable[[list[str]], np.ndarray]
) -> dict[str, np.ndarray]:
    """{kind of change: does its own caption suit the render better than the changed one? of the scenes it can change}.

    images: embeddings [N, D] of the scenes' renders. texts: captions -> [N, D].
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    images, own = unit(images), unit(texts([scene.caption for scene in scenes]))
    right: dict[str, np.ndarray] = {}
    for kind, change in CHANGES.items():
        rng = np.random.default_rng(0)
        wrong = {i: changed for i, scene in enumerate(scenes) if (changed := change(data, scene, rng))}
        if not (rows := list(wrong)):
            right[kind] = np.zeros(0, bool)
            continue
        against = unit(texts(list(wrong.values())))
        right[kind] = (images[rows] * own[rows]).sum(1) > (images[rows] * against).sum(1)
    return right


def accuracy(folder: Path, n: int = 1000) -> Iterator[Row]:
    """How often each mini-CLIP of `folder` scores a real render's own caption above a changed one, by kind of change:
    on `n` renders each of held-out captions, with Wilson's 95 % intervals."""
    for name, data in TRAINED_ON.items():
        scenes = held_out(data, MEASURED, 6 * n)  # of which a fifth or more are of two objects side by side
        clip = ClipEncoder(str(folder / name))
        images = np.concatenate([clip.images(data.drawn(scenes[i : i + 100])) for i in range(0, len(scenes), 100)])
        for kind, right in compared(data, scenes, images, clip.texts).items():
            yield row(f"{name}: {kind}", right[:n])


def folder_name(data: Procedural) -> str:
    """What the CLIP that reads a data set's renders is called; of Shapes it is not the one that scores by default."""
    return "mini-clip-reads" if data is SHAPES else data.clip


def export(work: Path, out: Path, data: Procedural) -> None:
    """The trained CLIP as a folder of open_clip's in `out`, fp16; the head that read is left behind."""
    words, name = mini.tokenizer(data), folder_name(data)
    model = load_ema(reader(data), work, STAGE).encoder
    mini.save_clip(model, mini.reading_clip_config(words, name), words, out / name)


def restored(out: Path, data: Procedural) -> Reader:
    """The CLIP of `out`, and a head that has read nothing yet."""
    model = reader(data)
    model.encoder.load_state_dict(ClipEncoder(str(out / folder_name(data))).model.state_dict())
    return model
