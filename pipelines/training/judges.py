"""Training of the judges that read scenes (pipelines/metrics/judge.py), and how often they are right."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file

from pipelines.data.procedural import Procedural
from pipelines.data.shapes import Scene
from pipelines.metrics.detectors import Detector
from pipelines.metrics.judge import JUDGES, NAMES, answers
from pipelines.metrics.judge_models import JudgeEncoder, architectures
from pipelines.training.accuracy import Row, row
from pipelines.training.loop import Trainer, half_precision, load_ema, to_tensor

BATCH = 48  # scenes a process and step, drawn anew: none is seen twice
STEPS = {"convolutional": 1800, "transformer": 1600}
STEPS_OF_DETECTORS = 400
FIRST = {"convolutional": 5_000_000, "transformer": 9_000_000}  # scenes of `train`: the judges share none


def train(name: str, work: Path, data: Procedural) -> None:
    """Cross-entropy over all questions that a scene's caption answers, or of a detector its own loss."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model, probe = (architectures(data)[name](data) for _ in range(2))
    held_images, held_answers, _ = _scenes(data, "val", 30_000, 256)
    sizes = list(data.questions.values())
    steps = STEPS_OF_DETECTORS if isinstance(model, Detector) else STEPS[name]

    def loss_of(step, rng):
        images, right, scenes = _scenes(data, "train", FIRST[name] + (step * world + rank) * BATCH, BATCH)
        images = degraded(images, rng) if step % 2 else images
        if not isinstance(model, Detector):
            return asked_loss(model(images), right, sizes), {}
        with half_precision():
            read = model.read(images)
        return model.loss(read, scenes), {}

    @torch.no_grad()
    def validate(ema):
        probe.load_state_dict(ema)
        parts = probe.eval()(held_images).split(sizes, 1)
        right = torch.stack([part.argmax(1) for part in parts], 1) == held_answers
        return {"val_accuracy": round(float(right[held_answers >= 0].float().mean()), 4)}

    Trainer(f"judge-{name}", model, steps, 2e-3, work, ema=0.99).run(loss_of, validate)


def asked_loss(logits: torch.Tensor, right: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Cross-entropy, a mean over those that are asked a question, summed over questions: [N, sum of sizes], int64
    [N, questions] -> []. A batch may ask nothing of a second object, and a mean over nothing is not a number."""
    parts = logits.split(sizes, 1)
    losses = [F.cross_entropy(part, right[:, i], ignore_index=-1, reduction="sum") for i, part in enumerate(parts)]
    return (torch.stack(losses) / (right >= 0).sum(0).clamp(min=1)).sum()


STAGES = {f"judge-{name}": partial(train, name) for name in NAMES}  # of jobs/train_mini.py


def _scenes(data: Procedural, split: str, first: int, n: int) -> tuple[torch.Tensor, torch.Tensor, list[Scene]]:
    """Images [n, 3, size, size] in [-1, 1] and the right answers, int64 [n, questions], of n scenes from `first` on."""
    scenes = [data.scene(split, first + i) for i in range(n)]
    return to_tensor(data.drawn(scenes)), torch.tensor([data.answers(scene.caption) for scene in scenes]), scenes


def degraded(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What a generator may do to an image: blur and noise, of a strength that is drawn for each."""
    blur, noise = (torch.from_numpy(rng.random((len(images), 1, 1, 1), np.float32)) for _ in range(2))
    images = torch.lerp(images, _blurred(images), 0.8 * blur)
    return images + 0.05 * noise * torch.from_numpy(rng.standard_normal(images.shape, np.float32))


def _blurred(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def export(work: Path, folder: Path, data: Procedural) -> None:
    """The trained judges as fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judges.json").write_text(json.dumps({"data": data.name}) + "\n")
    for name, make in architectures(data).items():
        state = load_ema(make(data), work, f"judge-{name}").state_dict()
        weights = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")


def accuracy(folder: Path, n: int = 1000) -> Iterator[Row]:
    """How often each judge is right on `n` real renders that no judge was trained on, with Wilson's 95 % intervals: as
    they are, blurred (a mean over 3x3 pixels) and noisy (standard deviation 0.05 of the range from -1 to 1)."""
    judges = JudgeEncoder(folder)
    data = judges.data
    scenes = [data.scene("val", 40_000 + i) for i in range(n)]
    drawn = to_tensor(data.drawn(scenes))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(drawn.shape, np.float32))
    shown = {"": drawn, ", blurred": _blurred(drawn), ", noisy": drawn + 0.05 * noise}
    right = np.array([data.answers(scene.caption) for scene in scenes])
    kinds = [question.rstrip("0123456789") for question in data.questions]
    for how, images in shown.items():
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        features = np.concatenate([judges.images(part) for part in np.array_split(pixels, n // 50)])
        given = answers(features, data)
        by_judge = dict(zip(NAMES, given == right, strict=True)) | {"agreement": given[0] == given[JUDGES - 1]}
        for who, correct in by_judge.items():
            for kind in dict.fromkeys(kinds):
                columns = [i for i, own in enumerate(kinds) if own == kind]
                asked_for = right[:, columns] >= 0
                yield row(f"{folder.name} {who}: {kind}{how}", correct[:, columns][asked_for])
