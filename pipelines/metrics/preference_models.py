"""The networks of preference.py: published weights in classes of transformers and open_clip, without their packages.

    PickScoreEncoder     yuvalkirstain/PickScore_v1: a CLIPModel
    HpsEncoder           xswu/HPSv2: an open_clip ViT-H-14
    ImageRewardEncoder   THUDM/ImageReward: BLIP, which reads image and prompt together, and a head

Each loads all of its weights and no others, and raises ValueError, naming the first, for one that lacks, is left over
or has another shape.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pipelines.metrics import preference
from pipelines.metrics.preference import Network

# What CLIP was trained with; open_clip's constants and both packages have the same.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HPS_MODEL = "ViT-H-14"  # open_clip's name of it
# ImageReward.pt holds no sizes. BLIP's ViT-L/16 (models/blip.py), and the text encoder of its med_config.json.
VISION: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "vocab_size": 30524,
}  # fmt: skip
HEAD = (1024, 128, 64, 16, 1)  # widths of the head's layers, with nothing but dropout between them
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072  # of rewards in the authors' data
WORDS = 35  # of a prompt, padded or cut to so many


def make_encoder(name: str, device: str) -> "PickScoreEncoder | HpsEncoder | ImageRewardEncoder":
    """The network that `name` names. Raises ValueError if its files are not those that are meant."""
    preference.check([name])
    network = preference.parse(name)
    if network.kind == "pickscore":
        return PickScoreEncoder(network, device)
    return HpsEncoder(network, device) if network.kind == "hps" else ImageRewardEncoder(network, device)


class PickScoreEncoder:
    """PickScore v1: exp(logit scale) x cosine of image and prompt (Kirstain et al., 2023; the README of
    github.com/yuvalkirstain/PickScore). Images are prepared by PIL, as they were when it was published."""

    def __init__(self, network: Network, device: str = "cpu"):
        from safetensors.torch import load_file
        from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.device = device
        self.processor = CLIPImageProcessorPil.from_pretrained(network.folder, local_files_only=True)
        self.tokenizer = CLIPTokenizer.from_pretrained(network.folder, local_files_only=True)
        model = CLIPModel(CLIPConfig.from_pretrained(network.folder, local_files_only=True))
        self.model = fit(model, load_file(network.weights), network.weights).to(device)

    def prepare(self, image: np.ndarray) -> Tensor:
        """What `encode` takes of an image, uint8 [H, W, 3]: resized, cropped and normalized, float32 [3, h, w]."""
        return self.processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]

    def encode(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Embeddings of length 1, float32 [N, D]."""
        with torch.no_grad():
            features = self.model.get_image_features(pixel_values=_batch(prepared, self.device)).pooler_output
        return F.normalize(features, dim=-1).cpu().numpy()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings as long as the logit scale, float32 [N, D]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        with torch.no_grad():
            features = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            return (self.model.logit_scale.exp() * F.normalize(features, dim=-1)).cpu().numpy()


class HpsEncoder:
    """HPSv2.1: the cosine of image and prompt (Wu et al., 2023; hpsv2/img_score.py of github.com/tgxs002/HPSv2).

    As there, an image is made a tensor first, then resized until its longer side fits, and padded with black; and a GPU
    runs the network under autocast, in float16. There the package rounds the score to float16 too, which this does not.
    """

    def __init__(self, network: Network, device: str = "cpu"):
        import open_clip

        self.device = device
        model = open_clip.CLIP(**open_clip.get_model_config(HPS_MODEL))
        held = unpickle(network.weights)
        weights = held.get("state_dict") if isinstance(held, dict) else None
        self.model = fit(model, weights, network.weights).to(device)
        self.size = int(model.visual.image_size[0])
        self.tokenizer = open_clip.get_tokenizer(HPS_MODEL)

    def prepare(self, image: np.ndarray) -> Tensor:
        """What `encode` takes of an image, uint8 [H, W, 3]: float32 [3, S, S]."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as T

        pixels = T.to_tensor(np.ascontiguousarray(image))
        longest = max(pixels.shape[1:])
        height, width = (round(side * self.size / longest) for side in pixels.shape[1:])
        if longest != self.size:
            pixels = T.resize(pixels, [height, width], InterpolationMode.BICUBIC)
        above, left = (self.size - height) // 2, (self.size - width) // 2
        pixels = F.pad(pixels, (left, self.size - width - left, above, self.size - height - above))
        return T.normalize(pixels, list(MEAN), list(STD))

    def encode(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Embeddings of length 1, float32 [N, D]."""
        with torch.no_grad(), self._autocast():
            features = self.model.encode_image(_batch(prepared, self.device), normalize=True)
        return features.float().cpu().numpy()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """As `encode`."""
        with torch.no_grad(), self._autocast():
            features = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
        return features.float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", enabled=self.device.startswith("cuda"))


class ImageRewardEncoder:
    """ImageReward v1.0 (Xu et al., 2023; ImageReward.py and models/BLIP of github.com/THUDM/ImageReward): the head's
    answer to the first token of BLIP's text encoder, which attends to the image, less a mean and over a deviation."""

    reads_prompts: ClassVar[bool] = True

    def __init__(self, network: Network, device: str = "cpu"):
        from transformers import BertTokenizer
        from transformers.models.bert.tokenization_bert import load_vocab

        self.device = device
        vocabulary = load_vocab(network.folder / "vocab.txt")
        if len(vocabulary) != TEXT["vocab_size"] - 2:
            raise ValueError(
                f"{network.folder / 'vocab.txt'} must hold bert-base-uncased's {TEXT['vocab_size'] - 2} words, got "
                f"{len(vocabulary)}"
            )
        self.tokenizer = BertTokenizer(vocabulary)
        self.tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        held = unpickle(network.weights)
        weights = {_renamed(key): value for key, value in held.items()} if isinstance(held, dict) else None
        self.model = fit(_Reward(), weights, network.weights).to(device)

    def prepare(self, image: np.ndarray) -> Tensor:
        """What `encode` takes of an image, uint8 [H, W, 3]: float32 [3, S, S]."""
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        size = VISION["image_size"]
        resize = Resize(size, interpolation=InterpolationMode.BICUBIC)
        return Compose([resize, CenterCrop(size), ToTensor(), Normalize(MEAN, STD)])(Image.fromarray(image))

    def encode(self, prepared: Sequence[Tensor], texts: Sequence[str]) -> np.ndarray:
        """Rewards of images, each with its own prompt: float32 [N, 1]."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        with torch.no_grad():
            rewards = self.model(_batch(prepared, self.device), ids, mask)
        return ((rewards - REWARD_MEAN) / REWARD_STD).cpu().numpy()


class _Reward(nn.Module):
    """BLIP's encoders and ImageReward's head: pixels [N, 3, S, S], token ids and mask [N, L] -> rewards [N, 1]."""

    def __init__(self):
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        # transformers' defaults are those of other checkpoints: 8 heads in the text encoder, an epsilon of 1e-5.
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        text = BlipTextConfig(**TEXT, encoder_hidden_size=VISION["hidden_size"], is_decoder=True)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (TEXT["hidden_size"], *HEAD)
        linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
        # Numbered as the original, whose dropouts stand behind the first three.
        self.mlp = nn.Sequential(*(part for layer in linear[:3] for part in (layer, nn.Identity())), *linear[3:])

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen)
        return self.mlp(read.last_hidden_state[:, 0].float())


# What the original calls the parts of the image encoder, and transformers' class, as its own converter has them.
_PARTS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_IN_BLOCK = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_PROJECTIONS = re.compile(r"blip\.(vision|text)_proj\.(weight|bias)")  # BLIP's own, which no reward is made of


def _renamed(key: str) -> str:
    """What `_Reward` calls the weight `key` of ImageReward.pt; "" for one that it does not use, and `key` itself for
    one that is not known, which is then left over."""
    if _PROJECTIONS.fullmatch(key):
        return ""
    if key.startswith("mlp.layers."):
        return f"mlp.{key.removeprefix('mlp.layers.')}"
    if key.startswith("blip.text_encoder."):
        return f"text.{key.removeprefix('blip.text_encoder.')}"
    if not key.startswith("blip.visual_encoder."):
        return key
    rest = key.removeprefix("blip.visual_encoder.")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", rest)
    if block and block[2] in _IN_BLOCK:
        return f"vision.encoder.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"
    part, _, end = (rest, "", "") if rest in _PARTS else rest.rpartition(".")
    return f"vision.{_PARTS[part]}{end and '.'}{end}" if part in _PARTS else key


def unpickle(file: Path) -> Any:
    """What a .pt file holds, if that is tensors and plain values; ValueError, in one line, if it is anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} must hold tensors alone, and torch cannot read it: {str(error)[:120]}") from None


def fit(model: nn.Module, weights: Any, file: Path) -> Any:
    """`model` with all of `weights`, for evaluation. Keys of `""` are of no use, and numbers of positions, which older
    files have beside the weights, must be 0, 1, 2, ...

    Raises: ValueError, naming the first, for a weight that lacks, is left over, has another shape, or is not finite.
    """
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{file} must hold a dictionary of tensors, got something else")
    positions = {key: value for key, value in weights.items() if key.endswith("embeddings.position_ids")}
    for key, value in positions.items():
        if not torch.equal(value.flatten(), torch.arange(value.numel())):
            raise ValueError(f"{file}: {key} must be 0, 1, 2, ..., got something else")
    own = model.state_dict()
    given = {key: value for key, value in weights.items() if key and key not in positions}
    if lacking := sorted(own.keys() - given.keys()):
        raise ValueError(f"{file} lacks {len(lacking)} of {len(own)} weights, the first {lacking[0]}")
    if surplus := sorted(given.keys() - own.keys()):
        raise ValueError(f"{file} has {len(surplus)} weights more than the network, the first {surplus[0]}")
    for key, value in given.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{file}: {key} must be {list(own[key].shape)}, got {list(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{file}: {key} is not finite")
    model.load_state_dict(given)
    return model.eval().requires_grad_(False)


def _batch(prepared: Sequence[Tensor], device: str) -> Tensor:
    return torch.stack(list(prepared)).to(device)
