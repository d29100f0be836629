"""FID and CLIP score from a store equal clean-fid's and torchmetrics' on the same images as PNG files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data import prompts, shapes
from pipelines.data.procedural import SHAPES
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.metrics.encoders import ClipEncoder
from pipelines.stages import features, generation, scores

N = 48
ID = "0123456789ab"


class Few(torch.nn.Module):
    """In the shape of clean-fid's Inception, but of 16 features: with fewer images than features, clean-fid's root of
    a singular matrix is not exact."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 31, stride=67), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with a store of noisy Shapes, its images and its references as PNG; the scores from the store."""
    root = tmp_path_factory.mktemp("agreement")
    weights = str(root / "inception-2015-12-05.pt")
    torch.jit.script(Few()).save(weights)
    rng = np.random.default_rng(0)
    listed = prompts.load_prompts("shapes", N)
    scenes = SHAPES.distinct("prompts", N)
    noise = rng.normal(0, 5, (N, 64, 64, 3))
    images = (np.stack([shapes.render(scene) for scene in scenes]) + noise).clip(0, 255).astype(np.uint8)
    store, half = Store(str(root / "store")), N // 2
    for part in range(2):
        at = slice(part * half, (part + 1) * half)
        columns = {
            "prompt_id": [prompt.id for prompt in listed[at]],
            "prompt": [prompt.text for prompt in listed[at]],
            "seed": range(half),
            "configuration": [ID] * half,
            "plan": [""] * half,
            "image": [{"bytes": records.encode_image(image), "path": ""} for image in images[at]],
        }
        name, own = f"images/{ID}/0000{part}-of-00002.parquet", prompts.fingerprint(listed[at])
        store.put(name, records.to_parquet(records.IMAGES, columns, name, own))
        timings = generation.timings_name(name)
        store.put(timings, records.to_json({"seconds": [0.1] * half}, timings))
    reference = [f"reference/{i}" for i in range(N)]
    units = features.prompt_units("mini-clip", [tuple(listed[:half]), tuple(listed[half:])])
    units += features.reference_units(weights, reference)
    names = sorted(store.names("images"))
    units += [*features.image_units("mini-clip", names), *features.image_units(weights, names)]
    extract, where = features.Extractor(store), features.folder
    for unit in units:
        extract(unit.task)
    ids = tuple(prompt.id for prompt in listed)
    inputs = (
        scores.Input("fid", where(weights, ID), where(weights, features.reference_name(reference))),
        scores.Input("clip", where("mini-clip", ID), where("mini-clip", "prompts")),
    )
    there = tuple(sorted(store.names("features")))
    made_of = tuple(prompts.fingerprint(part) for part in (listed[:half], listed[half:]))
    task = scores.Scoring(store, ID, ids, tuple(names), made_of, inputs, there)
    with pytest.raises(ValueError, match=rf"of {N} images, expected those of {N + 1} prompts in their order"):
        scores.score(replace(task, prompts=(*ids, "another")))
    for folder, pictures in (("images", images), ("reference", [features.real_image(key) for key in reference])):
        (root / folder).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / folder / f"{i:05}.png")
    scored = scores.score(task)
    assert scores.read(store, task.name) == scored
    return root, [prompt.text for prompt in listed], scored.intervals


def test_fid_equals_clean_fids_on_exported_pngs(scored):
    from cleanfid.fid import frechet_distance, get_folder_features

    root, _, ours = scored
    few = Few().eval()

    def model(resized):  # clean-fid's wrapper of its Inception, which insists on 2,048 features
        return few.layers((resized - 128) / 128)

    images, reference = (
        get_folder_features(
            str(root / folder), model, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
        )
        for folder in ("images", "reference")
    )
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (images, reference)]
    assert ours["fid"].value == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-4)
    assert ours["fid"].value > 1e-3  # else they would agree on nothing


def test_the_clip_score_equals_torchmetrics_on_exported_pngs(scored):
    from torchmetrics.multimodal import CLIPScore

    root, texts, ours = scored
    encoder = ClipEncoder("mini-clip")

    class Model(torch.nn.Module):
        """mini-CLIP as torchmetrics calls transformers' CLIP."""

        config = None

        def get_image_features(self, pixels):
            return encoder.model.encode_image(pixels)

        def get_text_features(self, tokens, mask):
            return encoder.model.encode_text(tokens)

    def processor(images=None, text=None, **_):
        if images is not None:
            pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
            return {"pixel_values": torch.stack([encoder.preprocess(picture) for picture in pictures])}
        tokens = encoder.tokenizer(text)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    theirs = CLIPScore(lambda: (Model(), processor))
    for file, text in zip(sorted((root / "images").iterdir()), texts, strict=True):
        theirs.update(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1), text)
    assert ours["clip"].value == pytest.approx(float(theirs.compute()), rel=1e-4)
    # Ours is cut at 0 image by image (Hessel et al.), theirs on the mean: these images have no score below 0.
    assert 90 < ours["clip"].value < 99
