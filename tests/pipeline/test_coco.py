"""COCO's captions as fixed lists, on a tiny data set in its format."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import command_line, evaluation, protocols
from pipelines.data import coco, prompts, shapes
from pipelines.evaluation import Protocol
from pipelines.metrics import encoders
from pipelines.options import Options, settled
from pipelines.protocols import PROTOCOLS
from pipelines.stages import features

REAL = Path(__file__).parents[3] / "shared" / "data" / "coco2014" / "captions_5k.tsv"


@pytest.fixture
def tiny(tmp_path):
    """40 images of 5 captions each; MLPerf's captions 70 and 277 are the last of images 7 and 3."""
    ids = {image: [10**9 + 5 * image + i for i in range(5)] for image in range(40)}
    ids[7][4], ids[3][4] = 70, 277
    rows = [{"id": id, "image_id": image, "caption": f"caption {id}"} for image in ids for id in ids[image]]
    np.random.default_rng(0).shuffle(rows)
    files = [{"id": image, "file_name": f"COCO_val2014_{image:012}.jpg"} for image in ids]
    (tmp_path / "images").mkdir()
    for file in files:
        Image.new("RGB", (8, 8), (file["id"], 0, 0)).save(tmp_path / "images" / file["file_name"])
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": rows, "images": files}))
    return tmp_path


def test_one_caption_an_image_in_an_order_that_does_not_change(tiny):
    listed = prompts.load_prompts(str(tiny / "captions.json"))
    assert len(listed) == 40
    assert [prompt.id for prompt in listed[:2]] == ["70", "277"]
    images = [(int(prompt.id) - 10**9) // 5 for prompt in listed[2:]]
    assert sorted(images) == [i for i in range(40) if i not in (3, 7)]
    assert all((int(prompt.id) - 10**9) % 5 == 0 for prompt in listed[2:])  # the first caption of each
    assert images != sorted(images)
    value = json.loads((tiny / "captions.json").read_text())
    value["annotations"].reverse()
    (tiny / "again.json").write_text(json.dumps(value))
    assert prompts.load_prompts(str(tiny / "again.json")) == listed
    assert prompts.load_prompts(str(tiny / "captions.json"), 10) == listed[:10]


def test_the_matched_references_are_the_images_of_the_prompts(tiny):
    listed = prompts.load_prompts(str(tiny / "captions.json"), 5)
    found = coco.images(tiny / "captions.json", tiny / "images", listed)
    assert [file.name for file in found[:2]] == ["COCO_val2014_000000000007.jpg", "COCO_val2014_000000000003.jpg"]
    assert len(found) == 5
    found[1].unlink()
    with pytest.raises(ValueError, match=r"1 of the 5 images .* the first 'COCO_val2014_000000000003.jpg'"):
        coco.images(tiny / "captions.json", tiny / "images", listed)


def test_an_image_whose_id_is_0_is_missed_as_any_other(tiny):
    listed = prompts.load_prompts(str(tiny / "captions.json"))
    value = json.loads((tiny / "captions.json").read_text())
    value["images"] = [image for image in value["images"] if image["id"] != 0]
    (tiny / "captions.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="has captions of image 0, which its images lack"):
        coco.images(tiny / "captions.json", tiny / "images", listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("images"), "an object with a list 'images', got an object of annotations"),
        (lambda value: value["images"].pop(7), "has captions of image 7, which its images lack"),
        (lambda value: value["images"][7].update(file_name="../captions.json"), "image 7: the file .* leads out of"),
        (lambda value: value["images"][7].update(file_name="/etc/passwd"), "image 7: the file .* leads out of"),
        (lambda value: value["images"][7].update(file_name=None), "image 7: a file name must be text"),
    ],
)
def test_matched_images_stay_in_their_folder(tiny, change, message):
    listed = prompts.load_prompts(str(tiny / "captions.json"), 5)
    value = json.loads((tiny / "captions.json").read_text())
    change(value)
    (tiny / "captions.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        coco.images(tiny / "captions.json", tiny / "images", listed)


def read(*args) -> Options:
    return settled(command_line.read(command_line.Parser("a job"), Options, args))


def test_a_protocol_of_coco(tiny):
    def protocol(*args) -> evaluation.Protocol:
        return evaluation.protocol(read(*args, "--clip", "mini-clip", "--fid", "mini-clip"))

    base = ["--prompts", str(tiny / "captions.json"), "--reference", str(tiny / "images")]
    assert len(protocol(*base, "--limit", "6").reference) == 40
    assert len(protocol(*base, "--limit", "6", "--matched").reference) == 6
    with pytest.raises(ValueError, match="--matched needs --prompts, COCO's annotations"):
        protocol("--matched")


def test_a_protocol_is_called_by_its_name_only_where_it_is_that(monkeypatch):
    monkeypatch.setattr(coco, "VAL2014", 3)
    args = Options(protocol="coco-5k", limit=5000, matched=False, fid="inception.pt")
    assert protocols.name(args, ["1", "2", "3"]) == "coco-5k"
    assert protocols.name(args, []) == ""
    assert protocols.name(replace(args, limit=2500), ["1", "2", "3"]) == ""  # --scale 0.5
    assert protocols.name(replace(args, protocol=None), ["1"]) == ""
    with pytest.raises(ValueError, match=r"needs all 3 images of .* as --reference, got 2"):
        protocols.name(args, ["1", "2"])
    with pytest.raises(ValueError, match="needs clean-fid's Inception"):
        protocols.name(replace(args, fid="mini-clip"), ["1", "2", "3"])


def test_a_named_protocol_fixes_what_it_names(tiny, monkeypatch):
    file = str(tiny / "captions.json")

    def settle(*args):
        return read("--protocol", *args, *([] if "--prompts" in args else ["--prompts", file]))

    with pytest.raises(ValueError, match=r"expected 40504 images, the first 5,000 captions .* got 40 and"):
        settle("coco-30k")
    monkeypatch.setattr(coco, "VAL2014", 40)
    monkeypatch.setattr(coco, "FIRST_FINGERPRINT", prompts.fingerprint(prompts.load_prompts(file)))
    args = settle("coco-30k-matched")
    assert (args.limit, args.clip, args.matched) == (30_000, "ViT-g-14/laion2b_s34b_b88k", True)
    assert not settle("coco-10k").matched
    assert evaluation._reference(args, []) == []  # of a job that measures no FID
    of_few = replace(Options(limit=32, protocol="coco-30k-matched", prompts=file), given=frozenset({"protocol"}))
    assert protocols.apply(of_few).limit == 32  # a job's own default
    for given, message in (
        (["coco-1"], "unknown protocol 'coco-1': expected one of coco-30k"),
        (["coco-5k", "--limit", "100"], "--protocol coco-5k fixes --limit at 5000, got 100"),
        (["coco-5k", "--clip", "mini-clip"], "fixes --clip at ViT-g-14/laion2b_s34b_b88k, got mini-clip"),
        (["coco-5k", "--shuffled"], "--shuffled is not for it"),
        (["coco-5k", "--prompts", "shapes"], "needs --prompts captions_val2014.json"),
    ):
        with pytest.raises(ValueError, match=message):
            settle(*given)


def test_the_models_of_the_named_protocols_are_open_clips():
    for named in PROTOCOLS.values():
        assert encoders.fingerprint(named.clip) == named.clip.replace("/", "-")


def test_a_protocol_is_named_by_all_that_it_measures():
    base = Protocol("a file", tuple(prompts.load_prompts("shapes", 4)), 2, (), "mini-clip", "mini-clip")
    changed = [
        replace(base, prompts=base.prompts[:3]),
        replace(base, reference=("reference/0", "reference/1")),
        replace(base, clip="ViT-B-32/openai"),
    ]
    assert len({of.facts()["protocol"] for of in (base, *changed)}) == 4
    moved = replace(base, source="elsewhere", prompts_per_shard=1, name="coco-5k").facts()["protocol"]
    assert moved == base.facts()["protocol"].replace("custom", "coco-5k")


def test_a_shuffled_file_is_a_fixed_draw(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"caption {i}" for i in range(100)))
    few, many = (prompts.load_prompts(str(tmp_path / "p.txt"), n, shuffled=True) for n in (10, 30))
    assert many[:10] == few
    assert [p.id for p in few] != [str(i) for i in range(10)]
    assert {p.id for p in prompts.load_prompts(str(tmp_path / "p.txt"), shuffled=True)} == {str(i) for i in range(100)}


def test_the_shipped_ids_are_mlperfs(tmp_path):
    assert len(coco.first()) == 5000
    if not REAL.exists():
        pytest.skip(f"real captions are not here: {REAL}")
    with open(REAL, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    annotations = [{"id": int(r["id"]), "image_id": int(r["image_id"]), "caption": r["caption"]} for r in rows]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations[::-1], "images": []}))
    of = [prompts.fingerprint(prompts.load_prompts(str(file))) for file in (REAL, tmp_path / "captions.json")]
    assert of == [coco.FIRST_FINGERPRINT] * 2


def test_a_protocol_given_no_prompts_is_refused(tiny):
    with pytest.raises(ValueError, match="--protocol coco-5k fixes --limit at 5000, got 1"):
        read("--protocol", "coco-5k", "--limit", "1")


def test_a_reference_set_has_one_name_on_every_machine(tiny):
    files = sorted(str(file) for file in (tiny / "images").iterdir())
    before = features.reference_name(files)
    os.utime(files[0], (1, 1))  # unpacked at another time
    assert features.reference_name(files) == before
    renamed = shutil.copy(files[0], str(tiny / "another name.jpg"))
    assert features.reference_name([renamed, *files[1:]]) == before
    assert features.reference_name(files[1:]) != before
    assert features.reference_name([*files[1:], files[0]]) != before  # features are in the files' order


def test_a_reference_set_is_named_by_the_contents_of_every_file(tmp_path):
    """Neither its name, nor its size, nor the first picture tells that a later picture is another."""
    files = [tmp_path / f"{i}.bmp" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(file)
    keys, size = [str(file) for file in files], files[1].stat().st_size
    before = features.reference_name(keys)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(files[1])
    os.utime(files[1], (1, 1))
    assert files[1].stat().st_size == size
    assert features.reference_name(keys) != before


def test_a_reference_set_of_shapes_is_named_by_its_scenes_and_their_program(tmp_path, monkeypatch):
    keys = ["reference/0", "reference/1"]
    before = features.reference_name(keys)
    assert features.reference_name(keys) == before
    assert features.reference_name([*keys, "reference/2"]) != before
    changed = shutil.copy(shapes.__file__, tmp_path)
    Path(changed).write_text(Path(changed).read_text() + "\n")
    monkeypatch.setattr(shapes, "__file__", changed)
    assert features.reference_name(keys) != before
