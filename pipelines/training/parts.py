"""What the denoisers of a data set stand on while there is none yet: its autoencoder, and a text encoder that reads.

`train_mini.py export` writes them as fp16 safetensors, and `restore` makes checkpoints of them, from which the stages
of the denoisers start. Finished models hold their own.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipelines.data.procedural import Procedural
from pipelines.training import mini
from pipelines.training.denoisers import clip_text
from pipelines.training.loop import load_ema
from pipelines.training.texts import Reader


def modules(data: Procedural) -> Mapping[str, torch.nn.Module]:
    """{stage: the module that it trains}, untrained."""
    return {"autoencoder": mini.autoencoder(data), "text": Reader(clip_text(data), mini.TEXT_WIDTH, data.questions)}


def folder(out: Path, data: Procedural) -> Path:
    return out / f"mini-parts-{data.name}"


def export(work: Path, out: Path, data: Procedural) -> None:
    """Write the EMA weights of both stages' checkpoints. Raises FileNotFoundError if one is not trained yet."""
    folder(out, data).mkdir(parents=True, exist_ok=True)
    for stage, module in modules(data).items():
        weights = {key: value.half().contiguous() for key, value in load_ema(module, work, stage).state_dict().items()}
        save_file(weights, folder(out, data) / f"{stage}.safetensors")


def restore(work: Path, out: Path, data: Procedural) -> None:
    """Write checkpoints as far as `load_ema` reads them. Raises RuntimeError for weights of another architecture."""
    for stage, module in modules(data).items():
        weights = load_file(folder(out, data) / f"{stage}.safetensors")
        module.load_state_dict({key: value.float() for key, value in weights.items()})
        torch.save({"ema": module.state_dict()}, work / f"{stage}.pt")
