"""Backbones: pretrained pipelines by name, local folder, or hub id, each with the settings the paper runs it at.

Weights are safetensors, hub revisions are pinned, no code from a checkpoint is run, and safety checkers are off
(they would replace images, and so change what is measured).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postdiff import arguments
from postdiff.methods import METHODS
from postdiff.models import minis
from postdiff.models.configs import (
    check_components,
    check_denoiser,
    check_vae,
    read_json,
    regular_files,
    text_tokens,
)
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.schedulers import check_noise_schedule, distilled, replaced, solver_of, train_steps
from postdiff.models.spec import Spec, spec_of

if TYPE_CHECKING:
    from postdiff.models.pipeline_functions import Described

MINI = minis.MINI


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

# The same transformer, that was fine-tuned to T5's longer prompts and SDXL's autoencoder, and is told no size: as the
# configs of those have it that were saved from the hub's commit e102b35 (terminusresearch/pixart-900m-1024-ft-v0.6).
PIXART_SIGMA = {**PIXART, "interpolation_scale": 2, "use_additional_conditions": False}
TINY_SETTINGS = {**FAMILIES["sd"].settings, "s": 0.2}  # BK-SDM-Tiny: App. F
# In a folder: how it is run, where that is not what its configs and family say: size, guidance, solver, settings.
RUN_KEYS = ("size", "guidance", "solver", "settings")
RUN = "postdiff.json"

# fmt: off
_SDXL = ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", "sdxl", 1024)
HUB = {
    spec.name: spec
    for spec in (
        spec_of("sd15",  # the paper's SD1.5
                "Lykon/dreamshaper-7", "9b481047f77996efa025e75e03941dbf51f506ad", "sd", 768, SD15_UNET),
        spec_of("sd15-original",
                "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
                "sd", 512, SD15_UNET),
        spec_of("lcm",
                "SimianLuo/LCM_Dreamshaper_v7", "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
                "lcm", 768, {**SD15_UNET, "sample_size": 96, "time_cond_proj_dim": 256}),
        spec_of("sdxl", *_SDXL, SDXL_UNET),
        spec_of("sdxl-fp16-vae",  # its own autoencoder must decode in fp32
                *_SDXL, SDXL_UNET,
                vae=("madebyollin/sdxl-vae-fp16-fix", "207b116dae70ace3637169f1ddd2434b91b3a8cd")),
        spec_of("pixart",
                "PixArt-alpha/PixArt-XL-2-1024-MS", "b89adadeccd9ead2adcb9fa2825d3fabec48d404", "pixart", 1024, PIXART),
        spec_of("pixart-sigma",
                "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "e102b3591cc82e97071b8b4cb90d834d0c487207",
                "pixart-sigma", 1024, PIXART_SIGMA),
        spec_of("bk-sdm-tiny",
                "nota-ai/bk-sdm-tiny", "0364108e53b7f7f4d2585e817a0b7a83dc261cfa",
                "sd", 512, TINY_UNET, settings=TINY_SETTINGS),
    )
}
# fmt: on
MINIS = minis.NAMES
FUNCTION = "pipeline:"  # begins the name of a function that returns a pipeline, pipeline:MODULE:FUNCTION
NAMES = (*MINIS, *HUB)


def resolve(where: str | Path) -> Spec:
    """The spec of a name, a folder, `ORG/REPOSITORY@COMMIT`, or `pipeline:MODULE:FUNCTION`, without loading weights.

    The function is called, once a process, and what it returns is let go. Of a repository that has no name here, the
    configs (a few kB) are fetched. Warns (UserWarning) if a folder ships a scheduler that is not offered and does not
    say which solver is meant.

    Raises: ValueError if it is none of these, holds no pipeline of a known family, or one that would not be run as it
        was made to (`postdiff.models.configs`, `postdiff.models.schedulers`); OSError if the hub has it not.
    """
    if not isinstance(where, str | Path):
        raise ValueError(f"a model must be a name or a path, got {type(where).__name__}")
    if is_function(where):
        return _described(str(where)).spec
    if where in HUB:
        return HUB[where]
    if where in MINIS:
        return folder_spec(str(where), minis.folder(str(where)))
    if Path(where).is_dir():
        return folder_spec(str(where), Path(where))
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", str(where))
    if hub:
        return replace(folder_spec(str(where), _configs(*hub.groups())), source=hub[1], revision=hub[2])
    if Path(where).is_file():
        raise ValueError(
            f"a model must be a folder in diffusers' format, got the file {str(where)!r}: convert it with "
            f"`diffusers.StableDiffusionPipeline.from_single_file({str(where)!r}).save_pretrained(FOLDER)`, or "
            "StableDiffusionXLPipeline"
        )
    raise ValueError(
        f"unknown model {str(where)!r}: expected one of {', '.join(NAMES)}, a folder, ORG/REPOSITORY@COMMIT "
        f"(40 hex digits), or {FUNCTION}MODULE:FUNCTION{arguments.meant(where, NAMES)}"
    )


def is_function(where: Any) -> bool:
    """Does `where` name a function that returns a pipeline?"""
    return isinstance(where, str) and where.startswith(FUNCTION)


def _described(name: str) -> Described:
    from postdiff.models import pipeline_functions

    return pipeline_functions.describe(name)


def _configs(source: str, revision: str) -> Path:
    """The folder into which a hub's configs are fetched, without a line a retry. Raises OSError if it has them not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=["*.json", "*/*.json"]))
    except OSError as error:
        raise OSError(f"{source} cannot be fetched: {error}") from error
    finally:
        logging.set_verbosity(before)


def folder_spec(name: str, folder: Path) -> Spec:
    """The spec of a pipeline's folder, from its configs. Raises and warns as `resolve` does."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    family = next((name for name, rules in FAMILIES.items() if rules.pipeline == kind), None)
    if family is None:
        known = ", ".join(rules.pipeline for rules in FAMILIES.values())
        raise ValueError(
            f"{folder} must hold one of {known} (model_index.json), got {kind if kind is None else repr(kind)}"
        )
    rules = FAMILIES[family]
    regular_files(folder)
    check_components(folder, index, rules)
    missing = [part for part in (rules.denoiser, "vae") if not (folder / part / "config.json").is_file()]
    if missing:
        raise ValueError(f"{folder} must hold the configs of {rules.denoiser} and vae; it lacks {missing[0]}'s")
    parts = rules.denoiser, "vae", *rules.text_encoders
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    lengths = [
        read_json(folder / part / "tokenizer_config.json").get("model_max_length", Spec.text_tokens)
        for part in rules.tokenizers
    ]
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    shipped = scheduler.setdefault("_class_name", index["scheduler"][1])
    spec = spec_from(name, str(folder), family, configs, lengths, scheduler)
    run = read_json(folder / RUN) if (folder / RUN).exists() else {}
    spec = _as_it_says(spec, folder / RUN, run)
    _check_run(spec, (shipped, index["scheduler"][1]), scheduler, folder / RUN, "solver" in run)
    return spec


def spec_from(
    name: str,
    source: str,
    family: str,
    configs: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[Any],
    scheduler: Mapping[str, Any],
) -> Spec:
    """The spec of a pipeline of `family`, from the configs of its parts, checked.

    configs: of the denoiser, `vae` and the text encoders, if they are there. lengths: `model_max_length` of each
        tokenizer, if they are. scheduler: its config, with its class as `_class_name`.
    Raises: ValueError, which names `name`, if it would not be run as it was made to.
    """
    rules = FAMILIES[family]
    denoiser, vae = dict(configs[rules.denoiser]), configs["vae"]
    check_denoiser(rules, denoiser, name)
    check_vae(vae, rules.latent_channels(denoiser), name)
    encoders = {part: configs[part] for part in rules.text_encoders if part in configs}
    if encoders:
        rules.check_text(denoiser, encoders, name)
    side, factor = denoiser.get("sample_size"), 2 ** (len(vae["block_out_channels"]) - 1)
    if type(side) is not int or side < 1:
        raise ValueError(f"sample_size of {rules.denoiser} of {name} must be a whole number of 1 or more, got {side!r}")
    kind = scheduler["_class_name"]
    check_noise_schedule(name, kind, scheduler)
    tokens = {"text_tokens": text_tokens(lengths, rules, encoders, source or name)} if lengths else {}
    return spec_of(
        name, source, None, family, side * factor, denoiser,
        solver=solver_of(kind, scheduler, rules.solvers) or rules.solver, vae_factor=factor,
        train_steps=train_steps(name, scheduler), scheduler=dict(scheduler), **tokens,
    )  # fmt: skip


def _check_run(spec: Spec, kinds: Sequence[str], scheduler: dict[str, Any], file: Path, solver_given: bool) -> None:
    """Raise ValueError if the scheduler is one of distilled models and the family guides; warn if it is replaced.

    kinds: the scheduler's class as its own config has it, and as the pipeline's index. solver_given: in `file`.
    """
    rules = FAMILIES[spec.family]
    for kind in kinds:
        certain = kind in ("LCMScheduler", "TCDScheduler")
        if rules.guided and (certain or not solver_given) and (reason := distilled(kind, scheduler)):
            advice = "" if certain else f'; if it is not, say the solver in {file}: {{"solver": "euler"}}'
            raise ValueError(f"{spec.name} must run guided, as models of {rules.pipeline} do here: {reason}{advice}")
    if not solver_given and (difference := replaced(spec.name, kinds[0], scheduler, spec.solver)):
        warnings.warn(f"{difference}; choose with solver={'|'.join(rules.solvers)}", stacklevel=4)


def _as_it_says(spec: Spec, file: Path, run: dict[str, Any]) -> Spec:
    """`spec` as `run`, what the folder's postdiff.json says, has it."""
    if extra := run.keys() - set(RUN_KEYS):
        raise ValueError(f"{file} may say {', '.join(RUN_KEYS)}, got {arguments.printable(', '.join(sorted(extra)))}")
    settings = run.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"settings in {file} must be an object, got {settings!r}")
    try:
        size = arguments.size(run.get("size", spec.size))
    except ValueError:
        raise ValueError(f"size in {file} must be a whole number of pixels, got {run['size']!r}") from None
    spec = replace(spec, **{**run, "size": size, "settings": {**spec.settings, **settings}})
    guidance, offered = spec.guidance, FAMILIES[spec.family].solvers
    if type(guidance) not in (int, float) or not 1 <= guidance <= arguments.LARGEST_GUIDANCE:  # NaN is neither
        most, got = arguments.LARGEST_GUIDANCE, arguments.shown(guidance)
        raise ValueError(f"guidance in {file} must be a number from 1 to {most}, got {got}")
    if spec.solver not in offered:
        raise ValueError(f"solver in {file} must be one of {', '.join(offered)}, got {spec.solver!r}")
    steps = spec.settings["steps"]
    if type(steps) is not int or not 1 <= steps <= spec.train_steps:
        raise ValueError(f"steps in {file} must be from 1 to {spec.train_steps}, as in training, got {steps!r}")
    try:
        spec.latents(spec.size)
        adapt(METHODS["postdiff"](**spec.settings), spec.family)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} must say settings that postdiff takes: {error}") from None
    return spec


def write_run(spec: Spec, folder: Path, **changes) -> None:
    """Make `folder` run as `spec` does: for models that were made from it, or in a form its configs do not tell."""
    run = {key: getattr(spec, key) for key in RUN_KEYS} | {"size": arguments.one_size(spec.size)}
    (folder / RUN).write_text(json.dumps({**run, **changes}, indent=2) + "\n")


def fingerprint(spec: Spec) -> str:
    """What the weights are: the pinned commit(s), or 12 hex digits of a folder's configs and safetensors, or of what a
    function's pipeline holds (`pipeline_identity`)."""
    if is_function(spec.source):
        return _described(spec.source).identity
    if not spec.source:
        raise ValueError(f"{spec.name} is in memory alone: expected a folder or a pinned commit, which say what it is")
    if spec.revision:
        return spec.revision if spec.vae is None else f"{spec.revision}+{spec.vae[1]}"
    digest = sha256()
    for file in regular_files(Path(spec.source)):
        if file.suffix in (".json", ".safetensors", ".txt", ".model") and file.name != RUN:
            is_now = file.stat()
            digest.update(file.name.encode() + digest_of(file, is_now.st_size, is_now.st_mtime_ns))
    return digest.hexdigest()[:12]


@cache
def digest_of(file: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a file, read once while its size and time of change stay."""
    with open(file, "rb") as opened:
        return file_digest(opened, "sha256").digest()
