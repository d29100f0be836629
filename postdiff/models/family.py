"""A family of models: what differs from one to the next. The loop, the plan and the cost model are the same for all.

A family is a class in a file of its own beside this one; `postdiff.models.families` has all of them by name.

Text and Conditions are dicts of tensors with one row an image; where guided, the unconditional half first:
    text        [B, L, D]  token embeddings
    pooled      [B, P]     SDXL: one embedding a prompt
    mask        [B, L]     PixArt: 1 where a token is, 0 where padding is
Conditions are what a denoiser takes beside latents, timestep and text: the image's size (SDXL, PixArt), w (LCM).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from postdiff.models.configs import check_widths
from postdiff.models.schedulers import GENERAL

if TYPE_CHECKING:
    import torch

    from postdiff.models.spec import Spec

Text = dict[str, "torch.Tensor"]
Conditions = dict[str, "torch.Tensor"]
Size = tuple[int, int]  # height, width
Arguments = Mapping[str, Any]  # of a pipeline's functions, by name


class Family:
    """One family. Classes are named, so that neither torch nor diffusers is imported before one is needed.

    pipeline: diffusers' class; denoiser: the pipeline's attribute; model: the denoiser's class, diffusers' too.
    output: the class of what a call of the pipeline returns. options: of the pipeline's `from_pretrained`.
    text_encoders: the pipeline's components that encode prompts, with their classes, of transformers; tokenizer: the
        class of their tokenizers. text_width: the key of their configs that says how wide embeddings are, and the one
        of the denoiser's config that must be as wide.
    most_tokens: a prompt is padded to so many, where the tokenizer takes more; None: to what the tokenizer takes.
    solvers: those offered; solver: the one that is taken where a checkpoint ships another. guidance: w.
    settings: the paper's for its method (sec. 3.1), arguments of `methods.postdiff`. m is a share of the steps, so that
        it fits any T.
    guided: classifier-free guidance runs two halves; else it was distilled into the model, which takes w.
    size_conditioned: the denoiser takes the size of the image.
    no_deep: why deep features cannot be cached, or "". no_lora: why its pipeline takes no LoRA, or "".
    fewest_steps: of a plan, where the pipeline's last step is another one below it.
    upcast_vae: decode in fp32 if the autoencoder's config asks for it.
    """

    pipeline: str
    output: str
    options: Mapping[str, Any] = {}
    denoiser: str
    model: str
    text_encoders: Mapping[str, str]
    tokenizer: str
    text_width: tuple[str, str]
    most_tokens: int | None = None
    solvers: tuple[str, ...] = GENERAL
    solver = "dpm"
    guidance: float = 7.5
    settings: Mapping[str, Any]
    guided = True
    size_conditioned = False
    no_deep = ""
    no_lora = ""
    fewest_steps = 1
    upcast_vae = False

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Raise ValueError, which names `where`, if a denoiser's config asks for other inputs than the family gives."""
        raise NotImplementedError

    def check_text(self, denoiser: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Check that text encoders, by component, give embeddings as wide as the denoiser takes. Raises ValueError."""
        check_widths(self, denoiser, encoders, name)

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """C of the latents [B, C, h, w] that a denoiser with this config takes."""
        return config.get("in_channels", 4)

    def text_shapes(self, config: Mapping[str, Any], tokens: int) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of Text for one row, for costs without weights."""
        raise NotImplementedError

    def encode(
        self, pipe: Any, prompts: Sequence[str] | None, guided: bool, text_tokens: int, asked: Arguments | None = None
    ) -> Text:
        """The text of `prompts`, as the pipeline itself encodes it; 2B rows where guided.

        asked: arguments of the pipeline's `encode_prompt`, in place of those that it is given here.
        """
        raise NotImplementedError

    def token_lengths(self, spec: Spec, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included, by the checkpoint's tokenizer.

        Raises: OSError if the tokenizer must come from the hub, and cannot.
        """
        from postdiff.models import checkpoints, pipeline_functions

        if checkpoints.is_function(spec.source):
            tokenizer = pipeline_functions.describe(spec.source).tokenizer
        else:
            tokenizer_class, options = class_of(self.tokenizer, "transformers"), {"revision": spec.revision or "main"}
            tokenizer = tokenizer_class.from_pretrained(spec.source, subfolder="tokenizer", **options)
        return [len(ids) for ids in tokenizer(list(texts)).input_ids]

    def conditions(self, text: Text, size: Size, guidance: float, config: Mapping[str, Any]) -> Conditions:
        """The denoiser's inputs beside latents, timestep and `text`; made once a batch, before the first step.

        Args:
            text: of the batch; its rows, dtype and device are those of the result.
            size: (height, width) of the image in pixels.
            guidance: w of classifier-free guidance.
            config: the denoiser's.
        """
        return {}

    def inputs(self, text: Text, conditions: Conditions) -> dict[str, Any]:
        """`text` and `conditions` by the names of the denoiser's arguments."""
        return {"encoder_hidden_states": text["text"]}

    def called_size(self, pipe: Any, size: Size, call: Arguments) -> Size:
        """(height, width) of the images that a call of the pipeline, with the arguments `call`, draws for `size`."""
        return size

    def called_conditions(self, pipe: Any, call: Arguments, text: Text, size: Size, images: int) -> Conditions | None:
        """The conditions that a call of the pipeline asks for, a row for each of `text`, which is of so many
        images, with both halves or one; None for those of `size`.

        Raises: ValueError if the pipeline would not give them to the images that they are for.
        """
        return None

    def predict(
        self, denoiser: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, text: Text, conditions: Conditions
    ) -> torch.Tensor:
        """What the denoiser predicts for latents `x` [rows, C, h, w] at timesteps `t` [rows]: of the shape of `x`."""
        output = denoiser(x, timestep=t, return_dict=False, **self.inputs(text, conditions))[0]
        # A model that learned its variance predicts it beside the noise.
        return output.chunk(2, dim=1)[0] if output.shape[1] == 2 * x.shape[1] else output

    def decode(self, vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] -> images [B, 3, H, W] in about [-1, 1], in the autoencoder's dtype."""
        return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]


def class_of(name: str, library: str = "diffusers") -> Any:
    """The class called `name` of diffusers or transformers, which are imported here: seconds, the first time."""
    return getattr(importlib.import_module(library), name)


def halves(uncond: torch.Tensor | None, cond: torch.Tensor) -> torch.Tensor:
    """2B rows, the unconditional half first; the conditional one alone where there is no other."""
    import torch

    return cond if uncond is None else torch.cat([uncond, cond])
