"""Encoders: ours equal clean-fid's own on the same TorchScript file; mini-CLIP knows its captions."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data import shapes
from pipelines.data.procedural import SHAPES
from pipelines.metrics import encoders
from pipelines.metrics.encoders import ClipEncoder, InceptionEncoder
from pipelines.metrics.metric import METRICS
from pipelines.training import mini
from postdiff.models.checkpoints import MINI


class StandIn(torch.nn.Module):
    """The interface of clean-fid's Inception: `layers` takes [N, 3, 299, 299] and gives 2048 features an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 512, 31, stride=67), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
        )

    def forward(self, x):
        return self.layers(x)


def test_inception_features_equal_clean_fids(tmp_path):
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    weights = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(StandIn()).save(weights)
    images = np.stack([shapes.render(shapes.scene("val", i)) for i in range(6)])
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    model = InceptionV3W(str(tmp_path), download=False, resize_inside=False)
    theirs = get_folder_features(
        str(tmp_path / "images"), model, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    ours = InceptionEncoder(weights).images(images)
    assert ours.shape == (6, 2048)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_mini_clip_chooses_the_caption_of_a_scene():
    clip = ClipEncoder("mini-clip")
    scenes = SHAPES.distinct("val", 100)
    image = clip.images(np.stack([shapes.render(scene) for scene in scenes]))
    text = clip.texts([scene.caption for scene in scenes])
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    assert ((image @ text.T).argmax(1) == np.arange(100)).mean() >= 0.9


def test_the_shipped_tokenizers_are_what_the_code_makes_in_any_process(tmp_path):
    mini.tokenizer().save_pretrained(tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    for shipped in ("mini-sd/tokenizer", "mini-clip"):
        assert json.loads((MINI / shipped / "tokenizer.json").read_text())["model"] == made["model"]


def test_an_encoder_is_named_by_its_weights(tmp_path):
    shutil.copytree(MINI / "mini-clip", tmp_path / "mini-clip")
    before = encoders.fingerprint(str(tmp_path / "mini-clip"))
    assert before == encoders.fingerprint("mini-clip")
    weights = bytearray((tmp_path / "mini-clip" / "open_clip_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "mini-clip" / "open_clip_model.safetensors").write_bytes(weights)
    assert encoders.fingerprint(str(tmp_path / "mini-clip")) != before
    assert encoders.fingerprint("ViT-L-14/openai") == "ViT-L-14-openai"


def test_unknown_encoders_are_told(tmp_path):
    with pytest.raises(
        ValueError,
        match="expected mini-clip, mini-clip-scenes, mini-clip-reads, a folder, or open_clip's MODEL/WEIGHTS",
    ):
        ClipEncoder("maxi-clip")
    with pytest.raises(ValueError, match="no Inception weights at"):
        InceptionEncoder(tmp_path / "missing.pt")


@pytest.mark.slow
def test_fid_of_real_renders_of_the_prompts_is_near_nothing_at_any_number_of_them():
    """Once captions may come again, and references are held-out ones too: it was 1.84 at 1,000, and 4.60 at 2,000."""
    clip = ClipEncoder("mini-clip")
    reference, prompts = (
        np.concatenate([clip.images(np.stack([shapes.render(shapes.scene(split, i)) for i in range(start, start + 50)]))
                        for start in range(0, 2000, 50)])
        for split in ("reference", "prompts")
    )  # fmt: skip
    for n in (256, 1000, 2000):
        own = METRICS["fid"].unbiased(METRICS["fid"].score(prompts[:n], reference))
        assert abs(own.value) < 0.3, (n, own)
