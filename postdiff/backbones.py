"""Backbones: pretrained pipelines by name, local folder, or hub id, each with the settings the paper runs it at.

Weights are safetensors, hub revisions are pinned, no code from a checkpoint is run, and safety checkers are off
(they would replace images, and so change what is measured).
"""

import json
import re
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

MINI = Path(__file__).parent / "mini"  # trained by jobs/train_mini.py


@dataclass(frozen=True)
class Spec:
    """Where a backbone is and how it is run.

    source: folder or hub id; revision: commit of the hub repository, None for a folder.
    size: side of the images in pixels; vae_factor: pixels a latent cell; text_tokens: length of a padded prompt.
    guidance: w of classifier-free guidance.
    solver: the paper states none; these are ours, and part of every configuration's id.
    denoiser: the denoiser's config, where it is needed before (or without) the weights.
    """

    name: str
    source: str
    revision: str | None
    size: int
    vae_factor: int
    text_tokens: int
    guidance: float
    solver: str
    denoiser: dict

    def latents(self, size: int) -> tuple[int, int]:
        """(h, w) of the latents of images of `size` pixels. Raises ValueError if there are none."""
        if size <= 0 or size % self.vae_factor:
            raise ValueError(f"size must be a positive multiple of {self.vae_factor} pixels, got {size}")
        return (size // self.vae_factor,) * 2


SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}  # the rest are diffusers' defaults for this class

HUB = {
    "sd15": Spec(  # the paper's SD1.5
        "sd15", "Lykon/dreamshaper-7", "9b481047f77996efa025e75e03941dbf51f506ad", 768, 8, 77, 7.5, "dpm", SD15_UNET
    ),
    "sd15-original": Spec(
        "sd15-original",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        512,
        8,
        77,
        7.5,
        "dpm",
        SD15_UNET,
    ),
}
NAMES = ("mini-sd", *HUB)


@dataclass(frozen=True)
class Backbone:
    """A loaded pipeline. `pipe` is the untouched diffusers pipeline."""

    spec: Spec
    pipe: StableDiffusionPipeline

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        return self.pipe.device


def resolve(where: str | Path) -> Spec:
    """The spec of a name, a folder, or `ORG/REPOSITORY@COMMIT`, without loading weights.

    Raises: ValueError if it is none of these, or a folder that holds no Stable Diffusion pipeline.
    """
    if where in HUB:
        return HUB[where]
    if where == "mini-sd":  # FID, CLIP score and choice of 100 are best at w = 2 (NOTES.md); at 7.5 it is overdriven
        return replace(_folder_spec("mini-sd", MINI / "mini-sd"), guidance=2.0)
    if Path(where).is_dir():
        return _folder_spec(str(where), Path(where))
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", str(where))
    if hub:
        return Spec(str(where), hub[1], hub[2], 512, 8, 77, 7.5, "dpm", SD15_UNET)
    raise ValueError(
        f"unknown model {str(where)!r}: expected one of {', '.join(NAMES)}, a folder, or ORG/REPOSITORY@COMMIT "
        "(40 hex digits)"
    )


def _folder_spec(name: str, folder: Path) -> Spec:
    index = folder / "model_index.json"
    kind = json.loads(index.read_text())["_class_name"] if index.is_file() else None
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder} must hold a StableDiffusionPipeline (model_index.json), got {kind}")
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    size, tokens = unet["sample_size"] * factor, text["max_position_embeddings"]
    return Spec(name, str(folder), None, size, factor, tokens, 7.5, "dpm", unet)


def fingerprint(spec: Spec) -> str:
    """What the weights are: the pinned commit, or 12 hex digits of a folder's configs and safetensors."""
    if spec.revision:
        return spec.revision
    digest = sha256()
    for file in sorted(Path(spec.source).rglob("*")):
        if file.suffix in (".json", ".safetensors", ".txt"):
            with open(file, "rb") as opened:
                digest.update(file.name.encode() + file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


def load(where: str | Path, device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
    """Load a backbone by name (`postdiff models` lists them), folder, or `ORG/REPOSITORY@COMMIT`.

    Args:
        device: a torch device; the GPU if there is one.
        dtype: float16 on a GPU, float32 on a CPU.

    Raises: ValueError if `where` is none of these, or the checkpoint is not what its row or id promises.
    """
    spec = resolve(where)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    pipe = StableDiffusionPipeline.from_pretrained(
        spec.source,
        revision=spec.revision,
        dtype=dtype,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    check(spec, pipe)
    pipe.set_progress_bar_config(disable=True)
    return Backbone(spec, pipe.to(device))


def check(spec: Spec, pipe: StableDiffusionPipeline) -> None:
    """Raise ValueError if `pipe` is not what `spec` says: costs are computed from the spec alone."""
    with torch.device("meta"):
        expected = UNet2DConditionModel.from_config(spec.denoiser).config
    sizes = ("in_channels", "block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim")
    pairs = {key: (expected[key], pipe.unet.config[key]) for key in (*sizes, "attention_head_dim")}
    pairs["vae_factor"] = spec.vae_factor, pipe.vae_scale_factor
    pairs["text_tokens"] = spec.text_tokens, pipe.tokenizer.model_max_length
    if "@" in spec.name:  # a named row may run a checkpoint at another size than its config's, as the paper does
        pairs["size"] = spec.size, pipe.unet.config["sample_size"] * pipe.vae_scale_factor
    alike = {key: [json.dumps(value) for value in pair] for key, pair in pairs.items()}  # tuples, and lists from JSON
    wrong = [f"{key} {a}, got {b}" for key, (a, b) in alike.items() if a != b]
    if wrong:
        raise ValueError(f"{spec.name} is not the kind of model that is expected here: {'; '.join(wrong)}")
