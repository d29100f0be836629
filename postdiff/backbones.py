"""Backbones: pretrained pipelines by name, local folder, or hub id, each with the settings the paper runs it at.

Weights are safetensors, hub revisions are pinned, no code from a checkpoint is run, and safety checkers are off
(they would replace images, and so change what is measured).
"""

import copy
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download

from postdiff import minis
from postdiff.families import FAMILIES
from postdiff.solvers import SOLVERS

MINI = minis.MINI


@dataclass(frozen=True)
class Spec:
    """Where a backbone is and how it is run.

    source: folder or hub id; revision: commit of the hub repository, None for a folder.
    size: side of the images in pixels; vae_factor: pixels a latent cell; text_tokens: length of a padded prompt.
    guidance: w of classifier-free guidance.
    solver: the paper states none; these are ours, and part of every configuration's id.
    denoiser: the denoiser's config, where it is needed before (or without) the weights.
    settings: the paper's for its method (sec. 3.1, App. F), arguments of `methods.postdiff`.
    vae: another autoencoder's hub id and commit, or None for the checkpoint's own.
    """

    name: str
    source: str
    revision: str | None
    family: str
    size: int
    denoiser: dict
    settings: dict
    guidance: float = 7.5
    solver: str = "dpm"
    vae_factor: int = 8
    text_tokens: int = 77
    vae: tuple[str, str] | None = None

    @property
    def patch(self) -> int:
        """Latent cells a side of a transformer's token; a U-Net takes any size."""
        return self.denoiser.get("patch_size", 1)

    def latents(self, size: int) -> tuple[int, int]:
        """(h, w) of the latents of images of `size` pixels. Raises ValueError if there are none."""
        cell = self.vae_factor * self.patch
        if size <= 0 or size % cell:
            raise ValueError(f"size must be a positive multiple of {cell} pixels, got {size}")
        return (size // self.vae_factor,) * 2


# What differs from the defaults of diffusers' class.
SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}
TINY_UNET = {
    **SD15_UNET,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
}
SDXL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PIXART = {
    "sample_size": 128,
    "patch_size": 2,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "attention_bias": True,
}

# The paper's settings of each model (sec. 3.1; BK-SDM-Tiny: App. F). m is a share of the steps, so that it fits any T.
SETTINGS = {
    "sd": {"steps": 20, "beta": 0.5, "s": 0.5, "k": 2, "m": 0.75},
    "lcm": {"steps": 8, "beta": 0.5, "s": 0.5, "k": 1, "m": 0.5},
    "sdxl": {"steps": 20, "beta": 0.75, "s": 0.2, "k": 2, "m": 0.75},
    "pixart": {"steps": 20, "beta": 0.75, "s": 0.5, "k": 1, "m": 0.75},
}
TINY_SETTINGS = {**SETTINGS["sd"], "s": 0.2}
# w, and the solver where a checkpoint ships one that is not offered here (DEIS, PNDM).
GUIDANCE = {"sd": 7.5, "lcm": 7.5, "sdxl": 5.0, "pixart": 4.5}
SOLVER = {"sd": "dpm", "lcm": "lcm", "sdxl": "euler", "pixart": "dpm"}
# In a folder: how it is run, where that is not what its configs and family say: size, guidance, solver, settings.
RUN_KEYS = ("size", "guidance", "solver", "settings")
RUN = "postdiff.json"

# fmt: off
_SDXL = ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", "sdxl", 1024)
HUB = {
    spec.name: spec
    for spec in (
        Spec("sd15",  # the paper's SD1.5
             "Lykon/dreamshaper-7", "9b481047f77996efa025e75e03941dbf51f506ad",
             "sd", 768, SD15_UNET, SETTINGS["sd"]),
        Spec("sd15-original",
             "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
             "sd", 512, SD15_UNET, SETTINGS["sd"]),
        Spec("lcm",
             "SimianLuo/LCM_Dreamshaper_v7", "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
             "lcm", 768, {**SD15_UNET, "sample_size": 96, "time_cond_proj_dim": 256}, SETTINGS["lcm"], solver="lcm"),
        Spec("sdxl", *_SDXL, SDXL_UNET, SETTINGS["sdxl"], guidance=5.0, solver="euler"),
        Spec("sdxl-fp16-vae",  # its own autoencoder must decode in fp32
             *_SDXL, SDXL_UNET, SETTINGS["sdxl"], guidance=5.0, solver="euler",
             vae=("madebyollin/sdxl-vae-fp16-fix", "207b116dae70ace3637169f1ddd2434b91b3a8cd")),
        Spec("pixart",
             "PixArt-alpha/PixArt-XL-2-1024-MS", "b89adadeccd9ead2adcb9fa2825d3fabec48d404",
             "pixart", 1024, PIXART, SETTINGS["pixart"], guidance=4.5, text_tokens=120),
        Spec("bk-sdm-tiny",
             "nota-ai/bk-sdm-tiny", "0364108e53b7f7f4d2585e817a0b7a83dc261cfa",
             "sd", 512, TINY_UNET, TINY_SETTINGS),
    )
}
# fmt: on
MINIS = minis.NAMES
NAMES = (*MINIS, *HUB)


@dataclass(frozen=True)
class Backbone:
    """A loaded pipeline. `pipe` is the untouched diffusers pipeline.

    float32_vae: the autoencoder that decodes where the pipeline's own would overflow (SDXL's in float16).
    """

    spec: Spec
    pipe: Any
    float32_vae: Any = None

    @property
    def decoder(self) -> Any:
        return self.float32_vae or self.pipe.vae

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipe, FAMILIES[self.spec.family].denoiser)

    @property
    def device(self) -> torch.device:
        # The pipeline's own looks through all modules: 1.5 ms.
        return self.pipe.device if self._weight is None else self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.dtype if self._weight is None else self._weight.dtype

    @property
    def _weight(self) -> torch.nn.Parameter | None:
        return None if self.denoiser is None else next(self.denoiser.parameters(), None)


def resolve(where: str | Path) -> Spec:
    """The spec of a name, a folder, or `ORG/REPOSITORY@COMMIT`, without loading weights.

    Of a repository that has no name here, the configs (a few kB) are fetched.

    Raises: ValueError if it is none of these, or holds no pipeline of a known family; OSError if the hub has it not.
    """
    if where in HUB:
        return HUB[where]
    if where in MINIS:
        return _folder_spec(str(where), minis.folder(str(where)))
    if Path(where).is_dir():
        return _folder_spec(str(where), Path(where))
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", str(where))
    if hub:
        folder = snapshot_download(hub[1], revision=hub[2], allow_patterns=["*.json", "*/*.json"])
        return replace(_folder_spec(str(where), Path(folder)), source=hub[1], revision=hub[2])
    raise ValueError(
        f"unknown model {str(where)!r}: expected one of {', '.join(NAMES)}, a folder, or ORG/REPOSITORY@COMMIT "
        "(40 hex digits)"
    )


def _folder_spec(name: str, folder: Path) -> Spec:
    def read(part: str) -> dict:
        return json.loads((folder / part).read_text()) if (folder / part).is_file() else {}

    kind = read("model_index.json").get("_class_name")
    family = next((name for name, rules in FAMILIES.items() if rules.pipeline.__name__ == kind), None)
    if family is None:
        known = ", ".join(rules.pipeline.__name__ for rules in FAMILIES.values())
        raise ValueError(f"{folder} must hold one of {known} (model_index.json), got {kind}")
    denoiser, vae = read(f"{FAMILIES[family].denoiser}/config.json"), read("vae/config.json")
    if "sample_size" not in denoiser or "block_out_channels" not in vae:
        raise ValueError(f"{folder} must hold the configs of {FAMILIES[family].denoiser} and vae; it lacks one")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    tokens = read("tokenizer/tokenizer_config.json").get("model_max_length", 77)
    if family == "pixart":
        tokens = min(tokens, 120)  # T5's tokenizer allows 512, PixArt was trained with 120
    shipped = read("scheduler/scheduler_config.json").get("_class_name")
    classes = {name: {kind.__name__ for kind in SOLVERS[name].__mro__} for name in FAMILIES[family].solvers}
    solver = next((name for name, kinds in classes.items() if shipped in kinds), SOLVER[family])
    spec = Spec(
        name, str(folder), None, family, denoiser["sample_size"] * factor, denoiser, SETTINGS[family],
        GUIDANCE[family], solver, factor, tokens,
    )  # fmt: skip
    run = read(RUN)
    if extra := run.keys() - set(RUN_KEYS):
        raise ValueError(f"{folder / RUN} may say {', '.join(RUN_KEYS)}, got {', '.join(sorted(extra))}")
    return replace(spec, **{**run, "settings": {**spec.settings, **run.get("settings", {})}})


def write_run(spec: Spec, folder: Path, **changes) -> None:
    """Make `folder` run as `spec` does: for models that were made from it, or in a form its configs do not tell."""
    run = {key: getattr(spec, key) for key in RUN_KEYS}
    (folder / RUN).write_text(json.dumps({**run, **changes}, indent=2) + "\n")


def fingerprint(spec: Spec) -> str:
    """What the weights are: the pinned commit(s), or 12 hex digits of a folder's configs and safetensors."""
    if spec.revision:
        return spec.revision if spec.vae is None else f"{spec.revision}+{spec.vae[1]}"
    digest = sha256()
    for file in sorted(Path(spec.source).rglob("*")):
        if file.suffix in (".json", ".safetensors", ".txt", ".model") and file.name != RUN:
            stat = file.stat()
            digest.update(file.name.encode() + digest_of(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:12]


@cache
def digest_of(file: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a file, read once while its size and time of change stay."""
    with open(file, "rb") as opened:
        return file_digest(opened, "sha256").digest()


def load(
    where: str | Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    parts: Literal["all", "text", "denoiser"] = "all",
) -> Backbone:
    """Load a backbone by name (`postdiff models` lists them), folder, or `ORG/REPOSITORY@COMMIT`.

    Args:
        device: a torch device; the GPU if there is one.
        dtype: float16 on a GPU, float32 on a CPU.
        parts: `text` leaves out denoiser and autoencoder (for `encode`), `denoiser` leaves out the text encoders (for
            `sample` with `embeddings`): the two need never be in memory together.

    Raises: ValueError if `where` is none of these, or the checkpoint is not what its row promises.
    """
    spec = resolve(where)
    rules = FAMILIES[spec.family]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    options = {"dtype": dtype, "use_safetensors": True}
    components = dict(rules.options)
    if spec.vae and parts != "text":
        components["vae"] = AutoencoderKL.from_pretrained(spec.vae[0], revision=spec.vae[1], **options)
    left_out = {"all": (), "text": (rules.denoiser, "vae"), "denoiser": rules.text_parts}[parts]
    components |= dict.fromkeys(left_out)
    pipe = rules.pipeline.from_pretrained(spec.source, revision=spec.revision, **options, **components)
    check(spec, pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    return Backbone(spec, pipe, float32_vae(spec, pipe.vae))


def float32_vae(spec: Spec, vae: Any) -> Any:
    """A copy of `vae` in float32 if it is of float16 and would overflow so (SDXL's own asks for it), else None.

    The pipelines cast theirs before each batch and back after it; one copy is cast once.
    """
    if not FAMILIES[spec.family].upcast_vae or vae is None or vae.dtype != torch.float16 or not vae.config.force_upcast:
        return None
    return torch.nn.Module.to(copy.deepcopy(vae), dtype=torch.float32)


# Of a denoiser's config: what its cost depends on.
_SIZES = (
    "in_channels", "out_channels", "block_out_channels", "down_block_types", "mid_block_type", "layers_per_block",
    "cross_attention_dim", "attention_head_dim", "transformer_layers_per_block", "time_cond_proj_dim",
    "projection_class_embeddings_input_dim", "num_layers", "num_attention_heads", "caption_channels", "patch_size",
)  # fmt: skip


def check(spec: Spec, pipe) -> None:
    """Raise ValueError if what is loaded of `pipe` is not what `spec` says (costs are computed from the spec alone), or
    is of a kind that would run, and give wrong images."""
    rules = FAMILIES[spec.family]
    denoiser, vae, pairs = getattr(pipe, rules.denoiser), pipe.vae, {}
    if denoiser is not None:
        with torch.device("meta"):
            expected = rules.model.from_config(spec.denoiser).config
        pairs = {key: (expected[key], denoiser.config.get(key)) for key in _SIZES if key in expected}
    if vae is not None:
        pairs["vae_factor"] = spec.vae_factor, pipe.vae_scale_factor
        if vae.config.get("latents_mean") is not None:
            raise ValueError(f"{spec.name} has latents with a mean of their own (latents_mean), which is not written")
    if pipe.tokenizer and spec.family != "pixart":  # PixArt's pipeline pads to the length it is told
        pairs["text_tokens"] = spec.text_tokens, pipe.tokenizer.model_max_length
    if "beta_schedule" not in pipe.scheduler.config:
        kind = type(pipe.scheduler).__name__
        raise ValueError(f"{spec.name} must have a noise schedule of betas; {kind} has none")
    alike = {key: [json.dumps(value) for value in pair] for key, pair in pairs.items()}  # tuples, and lists from JSON
    wrong = [f"{key} {a}, got {b}" for key, (a, b) in alike.items() if a != b]
    if wrong:
        raise ValueError(f"{spec.name} is not the kind of model that is expected here: {'; '.join(wrong)}")
