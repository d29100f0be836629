"""A pipeline's weights under the names of the original code of Stable Diffusion and SDXL, in one file."""

import re

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
FIXED = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2", "mid_block.attentions.0": "middle_block.1",
}  # fmt: skip
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm": "ln_",
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def unet(model):
    """{original name: tensor} of a U-Net."""
    blocks, named = model.config.layers_per_block + 1, {}
    for key, tensor in model.state_dict().items():
        resnet = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.resnets\.(\d+)\.(\w+)\.(\w+)", key)
        attention = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.(.*)", key)
        sampler = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.\w+samplers\.0\.conv\.(\w+)", key)
        if resnet and resnet[1] == "mid_block":
            new = f"middle_block.{2 * int(resnet[3])}.{RESNET[resnet[4]]}.{resnet[5]}"
        elif match := resnet or attention or sampler:
            index = int(match[2]) * blocks
            if sampler:
                attends = bool(getattr(getattr(model, match[1])[int(match[2])], "attentions", None))
                down = f"input_blocks.{index + blocks}.0.op"
                up = f"output_blocks.{index + blocks - 1}.{1 + attends}.conv"
                new = f"{down if match[1] == 'down_blocks' else up}.{match[3]}"
            else:
                index += int(match[3]) + (match[1] == "down_blocks")
                side = "input_blocks" if match[1] == "down_blocks" else "output_blocks"
                inner = f"0.{RESNET[match[4]]}.{match[5]}" if resnet else f"1.{match[4]}"
                new = f"{side}.{index}.{inner}"
        else:
            old = next(name for name in FIXED if key.startswith(f"{name}."))
            new = FIXED[old] + key.removeprefix(old)
        named[f"model.diffusion_model.{new}"] = tensor
    return named


def vae(model):
    last, named = len(model.config.block_out_channels) - 1, {}
    for key, tensor in model.state_dict().items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
        new = new.replace("down_blocks", "down").replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.block\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        new = re.sub(r"(down|up)samplers\.0", r"\1sample", new).replace("conv_norm_out", "norm_out")
        named[f"first_stage_model.{new}"] = tensor
    return named


def clip(model, prefix):
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": t for key, t in model.state_dict().items()}


def open_clip(model, prefix):
    named, state = {}, dict(model.state_dict())
    for key, tensor in state.items():
        key = key.removeprefix("text_model.")
        if match := re.fullmatch(r"(encoder\.layers\.\d+)\.self_attn\.q_proj\.(\w+)", key):
            three = [state[next(k for k in state if k.endswith(key.replace("q_proj", part)))]
                     for part in ("q_proj", "k_proj", "v_proj")]  # fmt: skip
            layer = match[1].replace("encoder.layers", "transformer.resblocks")
            named[f"{prefix}{layer}.attn.in_proj_{match[2]}"] = torch.cat(three)
        elif "k_proj" in key or "v_proj" in key:
            continue
        elif key == "text_projection.weight":
            named[f"{prefix}text_projection"] = tensor.T.contiguous()
        else:
            for old, new in OPEN_CLIP.items():
                key = key.replace(old, new)
            named[f"{prefix}{key}"] = tensor
    return named


def tensors(pipe):
    named = {**unet(pipe.unet), **vae(pipe.vae)}
    if getattr(pipe, "text_encoder_2", None) is None:
        return {**named, **clip(pipe.text_encoder, "cond_stage_model.transformer.")}
    first = clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
    return {**named, **first, **open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")}


def write(pipe, file, **changes):
    """changes: tensors by name; None leaves one out."""
    named = {key: tensor for key, tensor in {**tensors(pipe), **changes}.items() if tensor is not None}
    save_file({key: tensor.contiguous().clone() for key, tensor in named.items()}, file)
    return file
