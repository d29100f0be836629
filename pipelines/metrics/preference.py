"""Scores of human preference: which of two images of a prompt people would rather have, as three networks learned it.

PickScore v1 (Kirstain et al., 2023, "Pick-a-Pic"), HPSv2.1 (Wu et al., 2023, "Human Preference Score v2") and
ImageReward v1.0 (Xu et al., 2023, "ImageReward"). None of the scores compares with another, nor with CLIP's.

A network is named `KIND=FOLDER`, or `KIND=FOLDER@sha256:HEX` with the SHA-256 of its weights, wherever an encoder is
named. The folder holds the files that its publishers offer, under their names. Nothing here reads torch; the networks
are in preference_models.py.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.engine.identity import digest
from pipelines.metrics.intervals import Interval, mean_interval
from postdiff.models.checkpoints import digest_of


@dataclass(frozen=True)
class Kind:
    """weights: the file whose SHA-256 can be given, and must be if it is no safetensors. files: {repository of the
    Hugging Face hub: those of its files that are read}."""

    weights: str
    files: Mapping[str, Sequence[str]]

    @property
    def repository(self) -> str:
        """Whose weights they are."""
        return next(iter(self.files))


KINDS = {
    "pickscore": Kind(
        "model.safetensors",
        {
            "yuvalkirstain/PickScore_v1": ("config.json", "model.safetensors"),
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("preprocessor_config.json", "tokenizer.json"),
        },
    ),
    "hps": Kind("HPS_v2.1_compressed.pt", {"xswu/HPSv2": ("HPS_v2.1_compressed.pt",)}),
    "imagereward": Kind(
        "ImageReward.pt", {"THUDM/ImageReward": ("ImageReward.pt",), "google-bert/bert-base-uncased": ("vocab.txt",)}
    ),
}
_NAME = re.compile(rf"({'|'.join(KINDS)})=(.+?)(?:@sha256:([0-9a-fA-F]{{64}}))?")


@dataclass(frozen=True)
class Network:
    """What a name says. sha256: of the weights, in lower case; empty if it is not said."""

    kind: str
    folder: Path
    sha256: str

    @property
    def weights(self) -> Path:
        return self.folder / KINDS[self.kind].weights


def parse(name: str) -> Network:
    """Raises ValueError, in one line, for what names no network."""
    match = _NAME.fullmatch(name)
    if not match or "@sha256:" in match[2]:
        raise ValueError(f"must be {', '.join(f'{kind}=FOLDER[@sha256:64 digits]' for kind in KINDS)}, got {name!r}")
    return Network(match[1], Path(match[2]), (match[3] or "").lower())


def argument(text: str) -> str:
    """For argparse: a network's name, as it stands."""
    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def is_named(encoder: str) -> bool:
    """Whether an encoder's name is that of such a network."""
    return encoder.partition("=")[0] in KINDS


def name_of(kind: str, names: Sequence[str]) -> str:
    """The one of `names` that names a network of `kind`; empty if there is none."""
    return next((name for name in names if parse(name).kind == kind), "")


def check(names: Sequence[str]) -> None:
    """Raise ValueError, in one line, as `check_files` does, and if weights have not the SHA-256 that they are named
    with. One that torch unpickles must be named with it. Reads the weights of each once."""
    check_files(names)
    for network in map(parse, names):
        _check_digest(network)


def check_files(names: Sequence[str]) -> None:
    """Raise ValueError, in one line, if two are of one kind, or a file lacks. Reads none."""
    kinds = [parse(name).kind for name in names]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), ""):
        raise ValueError(f"--preference must name one network of a kind, got {kinds.count(twice)} of {twice}")
    for network in map(parse, names):
        _check_files(network)


def _check_files(network: Network) -> None:
    lacking = {
        repository: [file for file in files if not (network.folder / file).is_file()]
        for repository, files in KINDS[network.kind].files.items()
    }
    if any(lacking.values()):
        fetch = [
            f"hf download {repository} {' '.join(files)} --local-dir {network.folder}"
            for repository, files in lacking.items()
            if files
        ]
        files = ", ".join(file for files in lacking.values() for file in files)
        raise ValueError(f"{network.kind} needs {files} in {str(network.folder)!r}: {' && '.join(fetch)}")


def _check_digest(network: Network) -> None:
    got = _digest(network.weights).hex()
    if not network.sha256 and network.weights.suffix != ".safetensors":
        where = f"https://huggingface.co/{KINDS[network.kind].repository}/blob/main/{network.weights.name}"
        raise ValueError(
            f"{network.kind}={network.folder} must say the SHA-256 of {network.weights.name}, which is unpickled "
            f"({network.kind}=FOLDER@sha256:HEX, as {where} shows it); that of the file is {got}"
        )
    if network.sha256 not in ("", got):
        raise ValueError(f"{network.weights} must have the SHA-256 {network.sha256}, got {got}")


def _digest(file: Path) -> bytes:
    stat = file.stat()
    return digest_of(file, stat.st_size, stat.st_mtime_ns)


def fingerprint(name: str) -> str:
    """Names a network by all that it reads: `pickscore-1f2e3d4c`. Raises ValueError if a file lacks."""
    network = parse(name)
    _check_files(network)
    files = [network.folder / file for files in KINDS[network.kind].files.values() for file in files]
    return f"{network.kind}-{digest(b''.join(map(_digest, files)), 8)}"


def agreement(images: np.ndarray, texts: np.ndarray) -> Interval:
    """Mean of the scalar products of features of images and of their prompts, [N, D] each, with its 95 % interval over
    prompts (Student's t). Of HPSv2 both have length 1; of PickScore those of prompts are as long as its logit scale.

    Raises: ValueError if their shapes differ, or a number is not finite.
    """
    if images.shape != texts.shape:
        raise ValueError(f"one text an image: got features of shape {images.shape} and {texts.shape}")
    return mean_interval((images.astype(np.float64) * texts).sum(1))


def reward(images: np.ndarray, nothing: np.ndarray) -> Interval:
    """Mean of rewards, [N, 1], which ImageReward gave to images and their prompts, with its 95 % interval.

    Raises: ValueError if they are something else, or not finite.
    """
    if images.shape[1:] != (1,):
        raise ValueError(f"expected one reward an image, [N, 1], got features of shape {images.shape}")
    return mean_interval(images[:, 0].astype(np.float64))
