"""The checkpoints of the hub that have a short name: where they are, at which commit, and how they are run.

No commit is made up. Those of the rows after BK-SDM-Tiny are such as several public repositories pin or have in their
cache of the hub; of what no commit could be had for, and of what no family here runs, `UNNAMED` says why.
"""

from __future__ import annotations

from dataclasses import dataclass

from postdiff.models.families import FAMILIES
from postdiff.models.spec import spec_of

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
# SD2.1 at 768 px. SD-Turbo's config, saved from its commit b261bac, is this at 64 cells and without upcast_attention.
SD21_UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
# SDXL's U-Net with fewer transformer blocks, none of them in the middle, as ComfyUI's table of models has them
# (model_detection.py: SSD_1B, Segmind_Vega); from the innermost level outwards in reverse_transformer_layers_per_block.
_THIN_SDXL = {**SDXL_UNET, "mid_block_type": "UNetMidBlock2D"}
SSD_1B_UNET = {
    **_THIN_SDXL,
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
VEGA_UNET = {
    **_THIN_SDXL,
    "transformer_layers_per_block": (1, (1, 1), (2, 2)),
    "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
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
        spec_of("sd21",
                "stabilityai/stable-diffusion-2-1", "5cae40e6a2745ae2b01ad92ae5043f95f23644d6", "sd", 768, SD21_UNET),
        spec_of("sd21-base",
                "stabilityai/stable-diffusion-2-1-base", "5ede9e4bf3e3fd1cb0ef2f7a3fff13ee514fdf06",
                "sd", 512, {**SD21_UNET, "sample_size": 64, "upcast_attention": False}),
        spec_of("ssd-1b", "segmind/SSD-1B", "60987f37e94cd59c36b1cba832b9f97b57395a10", "sdxl", 1024, SSD_1B_UNET),
        spec_of("vega", "segmind/Segmind-Vega", "7714c4363e5856ff974a4f4b068e8691f26d0b40", "sdxl", 1024, VEGA_UNET),
        spec_of("pixart-512",
                "PixArt-alpha/PixArt-XL-2-512x512", "50f702106901db6d0f8b67eb88e814c56ded2692",
                "pixart", 512, {**PIXART, "sample_size": 64}),
    )
}
# fmt: on
# Of these the paper says PostDiff's settings. Of the others nobody does: theirs are their family's, to be calibrated.
PAPERS = ("sd15", "sd15-original", "lcm", "sdxl", "sdxl-fp16-vae", "pixart", "bk-sdm-tiny")


@dataclass(frozen=True)
class Unnamed:
    """A checkpoint of the hub that no name runs. source: repository, with the commit where one is known."""

    source: str
    why: str


_FEW_STEPS = "it was distilled to few steps without guidance, and every step of {} is guided here"
_LORA = f"it is a LoRA; {_FEW_STEPS}"
UNNAMED = {
    "pixart-256": Unnamed(
        "PixArt-alpha/PixArt-XL-2-256x256",
        "no commit of it could be had here: give PixArt-alpha/PixArt-XL-2-256x256@COMMIT",
    ),
    "sd-turbo": Unnamed("stabilityai/sd-turbo@b261bac6fd2cf515557d5d0707481eafa0485ec2", _FEW_STEPS.format("SD2.1")),
    "sdxl-turbo": Unnamed("stabilityai/sdxl-turbo@71153311d3dbb46851df1931d3ca6e939de83304", _FEW_STEPS.format("SDXL")),
    "sdxl-lightning": Unnamed(
        "ByteDance/SDXL-Lightning@c9a24f48e1c025556787b0c58dd67a091ece2e44", _LORA.format("SDXL")
    ),
    "hyper-sd": Unnamed("ByteDance/Hyper-SD@bc08d970a87c74c71209491d64e3525845698863", _LORA.format("SD and SDXL")),
    "lcm-lora": Unnamed(
        "latent-consistency/lcm-lora-sdv1-5@cf2fced511dbe7e26c8d1d397e728fbab875db4b", _LORA.format("SD")
    ),
    "lcm-sdxl": Unnamed(
        "latent-consistency/lcm-sdxl", "it is a U-Net alone, that is told w; SDXL's family here tells it none"
    ),
    "sdxl-refiner": Unnamed(
        "stabilityai/stable-diffusion-xl-refiner-1.0@5d4cfe854c9a9a87939ff3653551c2b3c99a4356",
        "it starts from an image, and is told an aesthetic score: its pipeline is StableDiffusionXLImg2ImgPipeline",
    ),
    "kolors": Unnamed(
        "Kwai-Kolors/Kolors-diffusers@7e091c75199e910a26cd1b51ed52c28de5db3711",
        "its text encoder is ChatGLM, which no family here has: its pipeline is KolorsPipeline",
    ),
}
