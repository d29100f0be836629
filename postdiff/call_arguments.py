"""What becomes of each argument of a pipeline's call under a plan: the table of docs/own_pipeline.md is made of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from postdiff.arguments import shown


@dataclass(frozen=True)
class Argument:
    """An argument of diffusers' pipelines.

    note: how it is honoured, or why it is refused.
    only: the values with which it asks for nothing; any other is refused. () where it is honoured.
    """

    note: str
    only: tuple[Any, ...] = ()


_ENCODED = "the pipeline's own `encode_prompt` takes it"
_NONE = (None,)
ARGUMENTS = {
    "prompt": Argument(_ENCODED),
    "prompt_2": Argument(_ENCODED),
    "negative_prompt": Argument(f"{_ENCODED}; refused where no step is guided"),
    "negative_prompt_2": Argument(f"{_ENCODED}; refused where no step is guided"),
    "prompt_embeds": Argument(_ENCODED),
    "pooled_prompt_embeds": Argument(_ENCODED),
    "prompt_attention_mask": Argument(_ENCODED),
    "negative_prompt_embeds": Argument(f"{_ENCODED}; refused where no step is guided"),
    "negative_pooled_prompt_embeds": Argument(f"{_ENCODED}; refused where no step is guided"),
    "negative_prompt_attention_mask": Argument(f"{_ENCODED}; refused where no step is guided"),
    "num_images_per_prompt": Argument(_ENCODED),
    "clip_skip": Argument(_ENCODED),
    "clean_caption": Argument(_ENCODED),
    "max_sequence_length": Argument(_ENCODED),
    "height": Argument("with `width`, or neither; the pipeline's default"),
    "width": Argument("with `height`, or neither; the pipeline's default"),
    "use_resolution_binning": Argument("the image is drawn at the nearest bin, then resized and cropped"),
    "num_inference_steps": Argument(
        "the plan's length, which is the default; another is refused. A plan has a step for each run of the denoiser: "
        "PLMS takes T + 1 runs for T steps, Heun 2 T - 1, PNDM with Runge-Kutta steps T + 9"
    ),
    "guidance_scale": Argument(
        "the pipeline's default. 1 or less: every step runs the conditional half alone (LCM: from 1). More, given to a "
        "plan that guides no step, is refused"
    ),
    "guidance_rescale": Argument("at the steps that the plan guides; refused where there is none"),
    "generator": Argument("draws the initial noise and the solver's, at the grid of their steps; a dense plan's image "
                          "is the pipeline's. What else a plan draws depends on the image's initial noise alone"),
    "latents": Argument("standard normal [B, C, h, w] at the grid of the plan's first step; another shape is refused"),
    "original_size": Argument("told to the U-Net"),
    "crops_coords_top_left": Argument("told to the U-Net"),
    "target_size": Argument("told to the U-Net"),
    "negative_original_size": Argument("told to the U-Net, with `negative_target_size`; one image a call"),
    "negative_crops_coords_top_left": Argument("told to the U-Net, where both negative sizes are given"),
    "negative_target_size": Argument("told to the U-Net, with `negative_original_size`; one image a call"),
    "output_type": Argument("pil, np, pt or latent; another is refused"),
    "return_dict": Argument("the pipeline's class of output, or a tuple"),
    "callback_on_step_end": Argument(
        "called after each step; may return other latents, and set `pipe._interrupt`. The latents are at the grid of "
        "the next step"
    ),
    "callback_on_step_end_tensor_inputs": Argument(
        "`latents` alone: what is cached was computed from the text that there was"
    ),
    "callback": Argument("called every `callback_steps` steps, as the pipeline counts them"),
    "callback_steps": Argument("how often `callback` is called"),
    "timesteps": Argument(
        "falling, as many as the plan has steps, by DPM-Solver++, Euler and LCM; the scheduler of others takes none"
    ),
    "sigmas": Argument("falling, one more than the plan has steps, by Euler; the scheduler of others takes none"),
    "original_inference_steps": Argument("of which LCM's steps are chosen; with `timesteps`, which say them, refused"),
    "eta": Argument(
        "from 0 to 1 with DDIM, whose noise the generator draws, at the grid of its step; others would ignore it"
    ),
    "denoising_end": Argument("a plan ends at clean latents", _NONE),
    "ip_adapter_image": Argument("image embeddings are not passed on", _NONE),
    "ip_adapter_image_embeds": Argument("image embeddings are not passed on", _NONE),
    "cross_attention_kwargs": Argument("`scale` of a LoRA alone: nothing else is passed to attention processors"),
}  # fmt: skip


def refuse(values: Mapping[str, Any], given: Collection[str], pipeline: str) -> None:
    """Raise ValueError if a call asks for what a plan cannot honour.

    values: of all arguments by name. given: the names of those that the caller gave.
    """
    for name, value in values.items():
        if name not in ARGUMENTS:
            if name in given:
                raise ValueError(
                    f"{name} is not known of {pipeline}: expected one of its arguments, got {shown(value)}"
                )
            continue
        rule = ARGUMENTS[name]
        plain = value is None or isinstance(value, int | float | dict)
        if rule.only and not (plain and value in rule.only):
            expected = " or ".join(map(repr, rule.only))
            raise ValueError(f"{name} must be {expected}, got {shown(value)}: {rule.note}")


def table() -> str:
    """The rows of the docs' table."""
    rows = ["| argument | | how, or why not |", "|---|---|---|"]
    for name, rule in ARGUMENTS.items():
        rows.append(f"| `{name}` | {'refused' if rule.only else 'honoured'} | {rule.note} |")
    return "\n".join(rows) + "\n"
