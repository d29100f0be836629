"""Loading: a checkpoint's weights, each component by itself, so that what a file lacks is an error.

Weights are safetensors, hub revisions are pinned, no code from a checkpoint is run, and safety checkers are off
(they would replace images, and so change what is measured).
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from postdiff.arguments import as_dtype, printable
from postdiff.models import lora, single_file
from postdiff.models.additions import has_weights
from postdiff.models.checkpoints import fetch_configs, is_function, resolve
from postdiff.models.configs import check_denoiser, check_vae, in_memory
from postdiff.models.families import FAMILIES
from postdiff.models.family import class_of
from postdiff.models.schedulers import check_noise_schedule
from postdiff.models.spec import Spec
from postdiff.offloading import offloaded


@dataclass(frozen=True)
class Backbone:
    """A loaded pipeline. `pipe` is the untouched diffusers pipeline.

    float32_vae: the autoencoder that decodes where the pipeline's own would overflow (SDXL's in float16).
    compiled: the denoiser runs compiled by torch, part by part, whatever the plan (`postdiff.compiling`).
    """

    spec: Spec
    pipe: Any
    float32_vae: Any = None
    compiled: bool = False

    @property
    def decoder(self) -> torch.nn.Module:
        return self.pipe.vae if self.float32_vae is None else self.float32_vae

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipe, FAMILIES[self.spec.family].denoiser)

    @property
    def device(self) -> torch.device:
        """Where it computes: with offloading that is not where its weights lie."""
        # The pipeline's own looks through all modules: 1.5 ms.
        if self._weight is None or offloaded(self.denoiser):
            return self.pipe._execution_device
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        # Layerwise casting stores weights in 8 bits, and computes in another dtype: diffusers knows which. It looks
        # through all modules too.
        stored = None if self._weight is None else self._weight.dtype
        return self.pipe.dtype if stored is None else stored if stored.itemsize > 1 else self.denoiser.dtype

    @property
    def _weight(self) -> torch.nn.Parameter | None:
        return None if self.denoiser is None else next(self.denoiser.parameters(), None)


def load(
    name: str | Path,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    parts: Literal["all", "text", "denoiser"] = "all",
    channels_last: bool = False,
    compiled: bool = False,
) -> Backbone:
    """Load a pretrained pipeline by name (`postdiff models` lists them), folder, `ORG/REPOSITORY@COMMIT`, or function,
    with what is loaded beside it.

    Args:
        name: of a backbone, a folder in diffusers' format, a repository of the hub with a commit of 40 hex digits, or
            `pipeline:MODULE:FUNCTION`: a function without arguments that returns a pipeline, in any dtype, or
            `postdiff.wrap` of one. It is called, and what it returns is loaded whole, whatever `parts` says. After each
            but the last may stand `+lora=FILE.safetensors:SCALE` (several; added to the weights in this order),
            `+vae=` a folder or ORG/REPOSITORY@COMMIT in place of the autoencoder, `+variant=fp16`; a checkpoint in one
            file of the original layout is `FILE.safetensors+config=MODEL`, whose configs it is read by.
        device: a torch device; by default the GPU, if there is one.
        dtype: float32, float16 or bfloat16, of torch or by name; float16 on a GPU, float32 on a CPU by default.
        parts: `text` leaves out denoiser and autoencoder (for `encode`), `denoiser` leaves out the text encoders (for
            `sample` with `embeddings`): the two need never be in memory together.
        channels_last: denoiser and autoencoder keep the channels of a pixel side by side in memory, which convolutions
            of half precision are faster in on most GPUs.
        compiled: the denoiser runs compiled by torch: slower for the first images, minutes for a large model.
            Both change the last bits of an image.

    Raises: ValueError, before any weights are read, if `name` is none of these or would not be run as it was made to
        (`resolve`); ValueError if the weights are not those that its configs tell.
    """
    if is_function(name):
        from postdiff.models import pipeline_functions

        return pipeline_functions.load(str(name), device, dtype, channels_last, compiled)
    spec = resolve(name)
    rules = FAMILIES[spec.family]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    default_dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    dtype = default_dtype if dtype is None else as_dtype(dtype)
    images, words = {rules.denoiser: rules.model, "vae": "AutoencoderKL"}, rules.text_encoders
    classes = {"all": {**images, **words}, "text": words, "denoiser": images}
    left_out = {"all": (), "text": tuple(images), "denoiser": (*words, *rules.tokenizers)}
    components: dict[str, Any] = {**rules.options, **dict.fromkeys(left_out[parts])}
    pipeline = class_of(rules.pipeline)
    with _quiet():
        if spec.vae and parts != "text":
            components["vae"] = _vae(*spec.vae, dtype)
        folder = _fetch(spec, components) if spec.revision else Path(spec.source)
        missing = {part: kind for part, kind in classes[parts].items() if part not in components}
        if spec.file:
            components |= single_file.components(spec, folder, missing, dtype)
        else:
            components |= {part: _component(folder / part, kind, dtype, spec.variant) for part, kind in missing.items()}
        with as_value_error(f"{spec.name} cannot be loaded as {rules.pipeline}"):
            if spec.scheduler:
                # Of the class that its own config names, as the solver was chosen; model_index.json may name another.
                components["scheduler"] = class_of(spec.scheduler["_class_name"]).from_pretrained(folder / "scheduler")
            pipe = pipeline.from_pretrained(folder, use_safetensors=True, **components)
        check(spec, pipe)
        lora.fuse(spec, pipe)
    pipe.set_progress_bar_config(disable=True)
    spec = replace(spec, scheduler={"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config})
    pipe.to(device)
    backbone = Backbone(spec, pipe, float32_vae(spec, pipe.vae), compiled)
    if channels_last and parts != "text":
        for model in (backbone.denoiser, backbone.decoder):
            model.to(memory_format=torch.channels_last)
    return backbone


def float32_vae(spec: Spec, vae: Any) -> Any:
    """A copy of `vae` in float32 if it is of float16 and would overflow so (SDXL's own asks for it), else None.

    The pipelines cast theirs before each batch and back after it; one copy is cast once.
    Raises: ValueError if it is offloaded: its copy would stay where it is.
    """
    if not overflows(spec, vae):
        return None
    if offloaded(vae):
        raise ValueError(
            f"the autoencoder of {spec.name} overflows in float16 and is offloaded: expected it in float32 or bfloat16 "
            "(`postdiff.accelerate` casts it as the pipeline does)"
        )
    return torch.nn.Module.to(copy.deepcopy(vae), dtype=torch.float32)


def overflows(spec: Spec, vae: Any) -> bool:
    """Would `vae` overflow in its dtype, so that the pipeline casts it to float32 where it decodes?"""
    asks = FAMILIES[spec.family].upcast_vae and vae is not None and vae.config.force_upcast
    return bool(asks and vae.dtype == torch.float16)


def _fetch(spec: Spec, components: dict[str, Any]) -> Path:
    """The folder into which a hub's pipeline is fetched, without what is among `components` (None: left out).

    Of a single file's model the configs and tokenizers alone.

    Raises: ValueError if its weights are not there as safetensors; OSError if the hub cannot be reached.
    """
    if spec.file:
        return fetch_configs(spec.source, spec.revision or "", ("*.json", "*/*.json", "*/*.txt", "*/*.model"))
    for variant in (spec.variant,) if spec.variant else (None, "fp16"):
        try:
            fetched = class_of(FAMILIES[spec.family].pipeline).download(
                spec.source, revision=spec.revision, variant=variant, use_safetensors=True, **components
            )
            return Path(fetched)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
    variant = f" of the variant {spec.variant}" if spec.variant else ""
    raise ValueError(f"{spec.source} must hold its weights{variant} as safetensors: {_convert(spec.source)}")


def _convert(source: str) -> str:
    load = f"diffusers.DiffusionPipeline.from_pretrained({source!r})"
    return f"convert them with `{load}.save_pretrained(FOLDER, safe_serialization=True)`"


def _vae(source: str, revision: str | None, dtype: torch.dtype) -> torch.nn.Module:
    """Another autoencoder than a pipeline's own: from a folder, or a hub's repository at a commit."""
    if revision is None:
        return _component(Path(source), "AutoencoderKL", dtype)
    options = {"dtype": dtype, "use_safetensors": True}
    return class_of("AutoencoderKL").from_pretrained(source, revision=revision, **options)


def _component(folder: Path, kind: str, dtype: torch.dtype, variant: str | None = None) -> torch.nn.Module:
    """A model of diffusers, or a text encoder of transformers, from its folder.

    Raises: ValueError if its weights are not there as safetensors, or lack a key, have one too many, or one of another
        shape: the libraries fill in random numbers and say so in a log.
    """
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    library = "transformers" if kind.startswith(("CLIP", "T5")) else "diffusers"
    if library == "transformers":
        # A checkpoint's own choice of attention could name a kernel on the hub, which is code.
        options |= {"attn_implementation": "sdpa", "ignore_mismatched_sizes": True}
    model_class = class_of(kind, library)
    if variant := variant or _variant(folder):
        options["variant"] = variant
    with as_value_error(f"{folder} cannot be loaded as {kind}"):
        model, info = model_class.from_pretrained(folder, **options)
    for fault, keys in (
        ("lack", info["missing_keys"]),
        ("have, beside what its config tells,", info["unexpected_keys"]),
        ("have, in another shape than its config tells,", [key for key, *_ in info["mismatched_keys"]]),
    ):
        if keys:
            examples = ", ".join(map(printable, sorted(keys)[:3]))
            raise ValueError(
                f"the weights in {folder} {fault} {len(keys)} tensors: {examples}{', ...' * (len(keys) > 3)}"
            )
    return model


@contextmanager
def as_value_error(failure: str) -> Iterator[None]:
    """Raise ValueError, `what` and the first sentence of the cause, for whatever a library raises: settings that do not
    go together and torn files end as errors of every kind."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        cause = printable(" ".join(str(error).split()).split(". ")[0])
        raise ValueError(f"{failure}: {type(error).__name__}: {cause}") from error


def _variant(folder: Path) -> str | None:
    """None if a component's weights are there as such, fp16 if they are there as that alone (`variant="fp16"`).

    Raises: ValueError if neither is, with how to convert what is.
    """
    for variant in (None, "fp16"):
        if has_weights(folder, variant):
            return variant
    names = {file.name for file in folder.glob("*") if file.is_file()}
    unusable = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pth", ".safetensors")))
    if not unusable:
        raise ValueError(f"{folder} must hold weights (.safetensors), got none")
    listed = printable(", ".join(unusable))
    raise ValueError(f"{folder} must hold its weights as safetensors, got {listed}: {_convert(str(folder.parent))}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings of weights, which are errors here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


def outline(spec: Spec) -> torch.nn.Module:
    """The denoiser of `spec` on torch's meta device: all of it but the weights.

    Raises: ValueError if its config asks for what is not passed on, or is none of its class.
    """
    rules = FAMILIES[spec.family]
    check_denoiser(rules, spec.denoiser, spec.name)
    with as_value_error(f"{rules.denoiser} of {spec.name} cannot be built from its config"), torch.device("meta"):
        return class_of(rules.model).from_config(spec.denoiser).eval()


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
        check_denoiser(rules, in_memory(denoiser), spec.name)
        expected = outline(spec).config
        pairs = {key: (expected[key], denoiser.config.get(key)) for key in _SIZES if key in expected}
    if vae is not None:
        pairs["vae_factor"] = spec.vae_factor, pipe.vae_scale_factor
    if pipe.tokenizer and not rules.most_tokens:  # else the pipeline pads to the length it is told
        pairs["text_tokens"] = spec.text_tokens, pipe.tokenizer.model_max_length
    alike = {key: [json.dumps(value) for value in pair] for key, pair in pairs.items()}  # tuples, and lists from JSON
    wrong = [f"{key} {a}, got {b}" for key, (a, b) in alike.items() if a != b]
    if wrong:
        raise ValueError(f"{spec.name} is not the kind of model that is expected here: {'; '.join(wrong)}")
    if vae is not None:
        check_vae(vae.config, rules.latent_channels(spec.denoiser), spec.name)
    check_noise_schedule(spec.name, type(pipe.scheduler).__name__, pipe.scheduler.config)
