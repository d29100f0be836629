"""The architectures of the mini models, and the folders that they are saved as; jobs/train_mini.py trains them."""

import json
import shutil
import tempfile
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines import shapes

IMAGE_SIZE = 64
LATENT_CHANNELS = 8
TEXT_TOKENS = 20  # the longest caption is 14 words
TEXT_WIDTH = 96


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned on Shapes' words: each of them is one token, any other is spelled."""
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
    learner.train_from_iterator(shapes.vocabulary(), trainer)
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
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_TOKENS)


def autoencoder() -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
    )
    return start_as_identity(model)


def start_as_identity(model: torch.nn.Module) -> torch.nn.Module:
    """Zero the last convolution of every residual block: the net starts shallow and learns faster."""
    for name, module in model.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return model


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config)


def unet() -> UNet2DConditionModel:
    """SD1.5's topology: 4 levels of 2 layers, cross-attention in the first three, 12 skips, 16 cross-attentions."""
    model = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 128, 128),
        attention_head_dim=(1, 2, 4, 4),  # diffusers' name for the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )
    return start_as_identity(model)


def clip_config(words: CLIPTokenizer, width: int = 24) -> dict:
    """A ResNet CLIP in open_clip's terms. `width` is the ResNet's first width."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": width, "patch_size": None},
        "text_cfg": {
            "context_length": TEXT_TOKENS,
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


def save_clip(model: open_clip.CLIP, words: CLIPTokenizer, folder: Path) -> None:
    """A folder that `open_clip.create_model("local-dir:FOLDER")` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": clip_config(words), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    words.save_pretrained(folder)


def save_stable_diffusion(vae, text, denoiser, words: CLIPTokenizer, folder: Path) -> None:
    """A folder that `StableDiffusionPipeline.from_pretrained(FOLDER)` loads."""
    # The solver that `postdiff` and the jobs use by default; the others read the same schedule from its config.
    solver = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    solver.register_to_config(clip_sample=False)  # as in SD1.5: DDIM made from this config must not clip latents
    pipe = StableDiffusionPipeline(
        vae, text, words, denoiser, solver, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
