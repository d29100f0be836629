"""Tiny networks of human preference with random weights, in the layout of the published files, and the originals'
arithmetic on them, written anew from what the originals' code says and without the classes that are tested."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from pipelines.metrics import preference_models
from postdiff.models.checkpoints import MINI

SIZE, HEADS = 32, 2
PUBLISHED = {name: getattr(preference_models, name) for name in ("HPS_MODEL", "VISION", "TEXT", "HEAD")}
MEAN, STD = torch.tensor(preference_models.MEAN), torch.tensor(preference_models.STD)
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "image_size": SIZE, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "max_position_embeddings": 40, "layer_norm_eps": 1e-12, "vocab_size": 0,
}  # fmt: skip
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["a", "big", "small", "red", "blue", "star", "ring", "on", "snow", "above", "left", "of", "##s"],
]
HPS = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def shrink(patch, tmp: Path) -> None:
    """Let hps and imagereward be of tiny networks, as whose files say no sizes."""
    (tmp / "configs").mkdir()
    (tmp / "configs" / "tiny-hps.json").write_text(json.dumps(HPS))
    open_clip.add_model_config(tmp / "configs" / "tiny-hps.json")
    patch.setattr(preference_models, "HPS_MODEL", "tiny-hps")
    patch.setattr(preference_models, "VISION", VISION)
    patch.setattr(preference_models, "TEXT", TEXT | {"vocab_size": len(WORDS) + 2})
    patch.setattr(preference_models, "HEAD", (10, 8, 6, 4, 1))


def randomize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a size that makes each of them matter."""
    torch.manual_seed(0)
    return {key: torch.randn(value.shape) * 0.3 + ("norm" in key.lower()) for key, value in weights.items()}


def name_of(kind: str, folder: Path, file: str) -> str:
    return f"{kind}={folder}@sha256:{sha256((folder / file).read_bytes()).hexdigest()}"


def pickscore(folder: Path) -> str:
    tokenizer = MINI / "mini-sd" / "tokenizer"
    words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    common = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS, "projection_dim": 12}
    text = {"vocab_size": len(words), "hidden_size": 16, "eos_token_id": words["<|endoftext|>"], "bos_token_id": 0}
    vision = {"hidden_size": 16, "image_size": SIZE, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=common | text, vision_config=common | vision, projection_dim=12))
    model.load_state_dict(randomize(model.state_dict()) | {"logit_scale": torch.tensor(4.6)})
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    crop = {"crop_size": {"height": SIZE, "width": SIZE}, "size": {"shortest_edge": SIZE}}
    kept = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN.tolist(), "image_std": STD.tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(crop | kept | {"resample": 3}))
    return name_of("pickscore", folder, "model.safetensors")


def hps(folder: Path) -> str:
    folder.mkdir()
    weights = randomize(open_clip.create_model("tiny-hps", load_weights=False).state_dict())
    torch.save({"epoch": 1, "name": "x", "state_dict": weights}, folder / "HPS_v2.1_compressed.pt")
    return name_of("hps", folder, "HPS_v2.1_compressed.pt")


def imagereward(folder: Path) -> str:
    folder.mkdir()
    torch.save(reward_weights(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return name_of("imagereward", folder, "ImageReward.pt")


def reward_weights() -> dict[str, Tensor]:
    """Under the names of the original."""
    v, t, patches = VISION["hidden_size"], TEXT["hidden_size"], (SIZE // 16) ** 2
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name, inputs, outputs):
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    image, text = "blip.visual_encoder", "blip.text_encoder"
    shapes |= {f"{image}.cls_token": (1, 1, v), f"{image}.pos_embed": (1, patches + 1, v)}
    shapes |= {f"{image}.patch_embed.proj.weight": (v, 3, 16, 16), f"{image}.patch_embed.proj.bias": (v,)}
    for i in range(VISION["num_hidden_layers"]):
        at = f"{image}.blocks.{i}"
        norm(f"{at}.norm1", v), norm(f"{at}.norm2", v)
        linear(f"{at}.attn.qkv", v, 3 * v), linear(f"{at}.attn.proj", v, v)
        linear(f"{at}.mlp.fc1", v, VISION["intermediate_size"]), linear(f"{at}.mlp.fc2", VISION["intermediate_size"], v)
    norm(f"{image}.norm", v)
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (len(WORDS) + 2, t)
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (TEXT["max_position_embeddings"], t)
    norm(f"{text}.embeddings.LayerNorm", t)
    for i in range(TEXT["num_hidden_layers"]):
        at = f"{text}.encoder.layer.{i}"
        for attention, width in (("attention", t), ("crossattention", v)):
            linear(f"{at}.{attention}.self.query", t, t)
            linear(f"{at}.{attention}.self.key", width, t), linear(f"{at}.{attention}.self.value", width, t)
            linear(f"{at}.{attention}.output.dense", t, t), norm(f"{at}.{attention}.output.LayerNorm", t)
        linear(f"{at}.intermediate.dense", t, TEXT["intermediate_size"])
        linear(f"{at}.output.dense", TEXT["intermediate_size"], t), norm(f"{at}.output.LayerNorm", t)
    linear("blip.vision_proj", v, 5), linear("blip.text_proj", t, 5)
    for number, (a, b) in zip((0, 2, 4, 6, 7), ((t, 10), (10, 8), (8, 6), (6, 4), (4, 1)), strict=True):
        linear(f"mlp.layers.{number}", a, b)
    weights = randomize({key: torch.empty(shape) for key, shape in shapes.items()})
    return weights | {f"{text}.embeddings.position_ids": torch.arange(TEXT["max_position_embeddings"])[None]}


def cropped(image) -> Tensor:
    """The shorter side to SIZE, the middle of the longer one, normalized."""
    height, width = image.shape[:2]
    short = min(height, width)
    sized = Image.fromarray(image).resize((SIZE * width // short, SIZE * height // short), Image.Resampling.BICUBIC)
    left, top = (sized.width - SIZE) // 2, (sized.height - SIZE) // 2
    return pixels_of(sized.crop((left, top, left + SIZE, top + SIZE)))


def pixels_of(image: Image.Image) -> Tensor:
    flat = torch.tensor(list(image.getdata())).float().reshape(image.height, image.width, 3) / 255
    return ((flat - MEAN) / STD).permute(2, 0, 1)


def padded(image) -> Tensor:
    """A tensor first, its longer side to SIZE, black around the shorter one, normalized."""
    height, width = (round(side * SIZE / max(image.shape[:2])) for side in image.shape[:2])
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()[None] / 255
    sized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]
    canvas = torch.zeros(3, SIZE, SIZE)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[:, top : top + height, left : left + width] = sized
    return (canvas - MEAN[:, None, None]) / STD[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[L, D], [M, D], [M, D] -> [L, D], by heads; mask [M]: 1 for what is attended to."""
    q, k, v = (x.reshape(len(x), HEADS, -1).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (1 - mask.float()) * -10000
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


class Original:
    """ImageReward's own arithmetic on its own weights, an image and a prompt at a time."""

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def image(self, pixels: Tensor) -> Tensor:
        at, w = "blip.visual_encoder", self.weights
        patches = F.conv2d(pixels[None], w[f"{at}.patch_embed.proj.weight"], w[f"{at}.patch_embed.proj.bias"], 16)
        x = torch.cat([w[f"{at}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{at}.pos_embed"][0]
        for i in range(VISION["num_hidden_layers"]):
            block = f"{at}.blocks.{i}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{block}.attn.proj", attend(q, k, v))
            inner = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{at}.norm", x, 1e-6)

    def attention(self, name: str, x: Tensor, of: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self.linear(f"{name}.self.{part}", y) for part, y in (("query", x), ("key", of), ("value", of)))
        return self.norm(
            f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", attend(q, k, v, mask)) + x, 1e-12
        )

    def reward(self, pixels: Tensor, words: list[int]) -> float:
        """words: ids of a prompt, [CLS] to [SEP], without padding."""
        at, image = "blip.text_encoder", self.image(pixels)
        ids = torch.tensor([*words[:34], 3] if len(words) > 35 else words + [0] * (35 - len(words)))
        mask = (ids != 0).long()
        x = self.weights[f"{at}.embeddings.word_embeddings.weight"][ids]
        x = self.norm(
            f"{at}.embeddings.LayerNorm", x + self.weights[f"{at}.embeddings.position_embeddings.weight"][:35], 1e-12
        )
        for i in range(TEXT["num_hidden_layers"]):
            layer = f"{at}.encoder.layer.{i}"
            x = self.attention(f"{layer}.attention", x, x, mask)
            x = self.attention(f"{layer}.crossattention", x, image, None)
            inner = F.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", inner) + x, 1e-12)
        y = x[0]
        for number in (0, 2, 4, 6, 7):
            y = self.linear(f"mlp.layers.{number}", y)
        return float((y[0] - 0.16717362830052426) / 1.0333394966054072)
