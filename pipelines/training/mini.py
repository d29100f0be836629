"""The architectures of the mini models, and the folders that they are saved as; jobs/train_mini.py trains them."""

import json
import shutil
import tempfile
from pathlib import Path

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pipelines.data.procedural import SHAPES, Procedural

UNETS = {"shapes": (32, 64, 128, 128), "scenes": (48, 64, 96, 96)}  # widths of mini-SD's, by level
LATENT_SIDE = 16  # of either data set's images: a step costs the same
LATENT_CHANNELS = 8
TEXT_WIDTH = 96
TEXT_LAYERS = {"shapes": 2, "scenes": 4}
AUTOENCODERS = {"shapes": (24, 48, 64), "scenes": (16, 24, 48, 128)}  # widths, by level: a quarter and an eighth a side


def tokenizer(data: Procedural = SHAPES) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned on a data set's words: each is one token, any other is spelled."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [letter + "</w>" for letter in alphabet]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,
        min_frequency=1,
        # Merges of equal count are taken in the order of their letters' ids. Without this, letters at a word's end get
        # theirs in the order of a hash table, another one in every process.
        special_tokens=alphabet + endings[::-1],  # backwards, which is how the weights that are shipped learned them
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(data.vocabulary(), trainer)
    with tempfile.TemporaryDirectory() as folder:
        learner.model.save(folder)
        lines = (Path(folder) / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    tokens = [
        *alphabet,
        *endings,
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]  # the end token is highest
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=data.tokens)


def autoencoder(data: Procedural = SHAPES) -> AutoencoderKL:
    widths = AUTOENCODERS[data.name]
    model = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=data.size,
    )
    return start_as_identity(model)


def start_as_identity(model: torch.nn.Module) -> torch.nn.Module:
    """Zero the last convolution of every residual block: the net starts shallow and learns faster."""
    zero(*(module for name, module in model.named_modules() if name.endswith("conv2")))
    return model


def zero(*layers: torch.nn.Module) -> None:
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def text_encoder(words: CLIPTokenizer, width: int = TEXT_WIDTH, layers: int = 2, kind=CLIPTextModel):
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=words.model_max_length,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return kind(config)


def _unet(**config) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        **config,
    )
    return start_as_identity(model)


def unet(data: Procedural = SHAPES, **config) -> UNet2DConditionModel:
    """SD1.5's topology: 4 levels of 2 layers, cross-attention in the first three, 12 skips, 16 cross-attentions."""
    return _unet(
        block_out_channels=UNETS[data.name],
        attention_head_dim=(1, 2, 4, 4),  # diffusers' name for the number of heads
        cross_attention_dim=TEXT_WIDTH,
        **config,
    )


def unet_lcm(data: Procedural = SHAPES) -> UNet2DConditionModel:
    """mini-SD's, told its guidance as LCM is. The new weights are 0, so that it starts as mini-SD."""
    model = unet(data, time_cond_proj_dim=64)
    torch.nn.init.zeros_(model.time_embedding.cond_proj.weight)
    return model


def unet_tiny(data: Procedural = SHAPES) -> UNet2DConditionModel:
    """BK-SDM-Tiny's topology: 3 levels of 1 layer, cross-attention in each, no mid block, 6 skips."""
    return _unet(
        block_out_channels=UNETS[data.name][:3],
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=TEXT_WIDTH,
    )


XL_WIDTHS = (TEXT_WIDTH, 64)  # of the two text encoders


def unet_xl(data: Procedural = SHAPES) -> UNet2DConditionModel:
    """SDXL's topology: 3 levels, no attention in the first, ever deeper below; text, pooled text, size and crop in."""
    model = _unet(
        block_out_channels=UNETS[data.name][:3],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=sum(XL_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=XL_WIDTHS[1] + 6 * 16,
    )
    deeper = [layer for name, layer in model.named_modules() if name.endswith("transformer_blocks.1")]
    outputs = [(block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]) for block in deeper]
    zero(model.add_embedding.linear_2, *(layer for layers in outputs for layer in layers))  # what mini-SD does not have
    return model


def transformer() -> PixArtTransformer2DModel:
    """PixArt-alpha's: patches of 2, adaLN-single, learned variance, and told the size of the image.

    `sample_size` 128 is what makes PixArt's pipeline tell it; the images are of 64 px (`height=64, width=64`).
    """
    model = PixArtTransformer2DModel(
        sample_size=128,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=32,
        cross_attention_dim=192,
        caption_channels=TEXT_WIDTH,
        attention_bias=True,
    )
    # As PixArt starts: cross-attention adds nothing, nor does the output.
    zero(*(block.attn2.to_out[0] for block in model.transformer_blocks), model.proj_out)
    return model


def t5_tokenizer(data: Procedural = SHAPES) -> T5Tokenizer:
    """T5's unigram pieces: each of a data set's words is one, any other is spelled."""
    words = [f"▁{word}" for word in data.vocabulary()]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789.,'-"]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    scores += [(word, -1.0) for word in words] + [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=data.tokens)


def t5_encoder(pieces: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(pieces),
        d_model=TEXT_WIDTH,
        d_kv=24,
        d_ff=4 * TEXT_WIDTH,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=16,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def clip_config(words: CLIPTokenizer, width: int = 24) -> dict:
    """A ResNet CLIP in open_clip's terms. `width` is the ResNet's first width."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SHAPES.size, "layers": [1, 1, 1, 1], "width": width, "patch_size": None},
        "text_cfg": {
            "context_length": words.model_max_length,
            "vocab_size": len(words),
            "hf_tokenizer_name": "mini-clip",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def clip(words: CLIPTokenizer, width: int = 24) -> open_clip.CLIP:
    config = clip_config(words, width)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


READING_SIZE = 128


def reading_clip_config(words: CLIPTokenizer, name: str = "mini-clip-reads") -> dict:
    """Likewise, for a CLIP that tells left from right: open_clip's ResNet ends in a 32nd of the image's side, which of
    64 px is 2x2, so it is shown images enlarged twice; and its text tower is deeper, as wide as mini-SD's."""
    config = clip_config(words, width=16)
    config["vision_cfg"]["image_size"] = READING_SIZE
    config["text_cfg"] |= {"hf_tokenizer_name": name, "width": TEXT_WIDTH, "layers": 4}
    return config


def reading_clip(words: CLIPTokenizer) -> open_clip.CLIP:
    config = reading_clip_config(words)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


def save_clip(model: open_clip.CLIP, config: dict, words: CLIPTokenizer, folder: Path) -> None:
    """A folder that `open_clip.create_model("local-dir:FOLDER")` loads. `config`: what the model was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    words.save_pretrained(folder)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _dpm() -> DPMSolverMultistepScheduler:
    """The solver that `postdiff` and the jobs use by default; the others read the same schedule from its config."""
    solver = DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="leading")
    solver.register_to_config(clip_sample=False)  # as in SD1.5: DDIM made from this config must not clip latents
    return solver


def stable_diffusion(vae, text, denoiser, words: CLIPTokenizer) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae, text, words, denoiser, _dpm(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def consistency_model(vae, text, denoiser, words: CLIPTokenizer) -> LatentConsistencyModelPipeline:
    return LatentConsistencyModelPipeline(
        vae, text, words, denoiser, LCMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(vae, texts: tuple, denoiser, words: CLIPTokenizer) -> StableDiffusionXLPipeline:
    solver = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading")
    solver.register_to_config(clip_sample=False)
    return StableDiffusionXLPipeline(vae, *texts, words, words, denoiser, solver, add_watermarker=False)


def pixart(vae, text: T5EncoderModel, denoiser: PixArtTransformer2DModel, pieces: T5Tokenizer) -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(pieces, text, vae, denoiser, _dpm())


def second_text_encoder(words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return text_encoder(words, XL_WIDTHS[1], layers=3, kind=CLIPTextModelWithProjection)


def save(pipe, folder: Path) -> None:
    """A folder that the pipeline's own `from_pretrained(FOLDER)` loads: safetensors, fp16."""
    shutil.rmtree(folder, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
