"""The checkpoints of the hub that have a short name: where they are, at which commit, and how they are run."""

from __future__ import annotations

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
    )
}
# fmt: on
