"""One reader of image files: what a person sees, or one line with its name; nothing is run and no memory filled."""

import io
import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import EPS, bomb
from PIL import Image

from pipelines.data import images, pairs
from pipelines.stages import features

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def packed(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1"])
def test_a_plain_file_is_read_as_pillow_reads_it(kind, mode):
    try:
        data = packed(PICTURE.convert(mode), kind)
    except (OSError, ValueError):  # there is no such file
        return
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data), expected)
    assert images.open_picture(data, "x").notes == ()


def test_sixteen_bits_are_not_white():
    ramp = Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16))
    read = images.open_picture(packed(ramp, "PNG"), "x")
    pixels = np.asarray(read.rgb)
    assert pixels.mean() == pytest.approx(127.5, abs=0.5)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert read.notes == ("of 16 bits",)


def test_what_is_transparent_is_on_white_and_opaque_alpha_changes_nothing():
    half = PICTURE.copy()
    half.putalpha(Image.fromarray(np.full((24, 40), 128, np.uint8)))
    read = images.open_picture(packed(half, "PNG"), "x")
    assert read.notes == ("transparent (on white)",)
    expected = np.asarray(PICTURE).astype(float) * 128 / 255 + 255 * 127 / 255
    assert np.abs(np.asarray(read.rgb) - expected).max() <= 1
    half.putalpha(255)
    np.testing.assert_array_equal(images.decode(packed(half, "PNG")), np.asarray(PICTURE))


def test_a_turned_photograph_is_upright():
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: 90 degrees clockwise puts it right
    data = packed(PICTURE, "PNG", exif=exif)
    read = images.open_picture(data, "x")
    np.testing.assert_array_equal(np.asarray(read.rgb), np.rot90(np.asarray(PICTURE), -1))
    assert read.notes == ("turned (EXIF)",)


def test_of_an_animation_the_first_picture_is_read():
    other = Image.new("RGB", PICTURE.size, "red")
    read = images.open_picture(packed(other, "WEBP", save_all=True, append_images=[PICTURE], lossless=True), "x")
    np.testing.assert_array_equal(np.asarray(read.rgb), np.asarray(other))
    assert read.notes == ("of several pictures (the first)",)


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "EPS": EPS,
    "bomb": bomb(),
    **{f"truncated {kind}": packed(PICTURE, kind)[:-40] for kind in ("PNG", "JPEG", "WEBP", "TIFF")},
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_is_named_in_one_line(monkeypatch, what):
    monkeypatch.setattr(subprocess, "Popen", None)  # Ghostscript, which Pillow starts for an EPS
    with pytest.raises(ValueError, match=r"^'photos/7\.png' cannot be read as an image: ") as told:
        images.open_picture(BROKEN[what], "photos/7.png")
    assert str(told.value).isprintable()


def test_a_folder_is_searched_whole_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "cat" / ".hidden").mkdir(parents=True)
    shown = ["a.png", "B.JPG", "c.webp", "d.tif", "e.TIFF", "f.bmp", "cat/g.jpeg"]
    for name in (*shown, "._a.png", ".hidden.png", "cat/.hidden/x.png", "notes.txt", "more.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path, tmp_path / "cat" / "loop")
    os.mkfifo(tmp_path / "pipe.png")
    files, left_out = images.find(tmp_path)
    assert sorted(str(file.relative_to(tmp_path)) for file in files) == sorted(shown)
    assert left_out == {"hidden": 3, ".txt": 2, "without a suffix": 1, ".png that is no file": 1}


# References are named by their contents, and all are told.


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "c.tif", "cat/d.bmp"]):
        Image.fromarray(np.asarray(PICTURE) // (i + 1)).save(folder / name)
    return folder


def test_all_references_are_used_and_told(photos):
    (photos / "notes.txt").write_text("x")
    files, told = features.reference_files(photos)
    assert len(files) == 4
    assert told == f"4 images of {str(photos)!r}, 40x24; left out: 1 .txt"


def test_a_broken_reference_is_named_before_any_work(photos):
    (photos / "cat" / "z.webp").write_bytes(BROKEN["truncated WEBP"])
    with pytest.raises(ValueError, match=r"1 of 5 .*z\.webp' cannot be read as an image"):
        features.reference_files(photos)


def test_a_set_of_references_is_named_by_its_contents(photos, tmp_path):
    before = features.reference_name(features.reference_files(photos)[0])
    copied = shutil.copytree(photos, tmp_path / "elsewhere")  # on another machine, at another time
    os.utime(copied / "a.png", (1, 1))
    assert features.reference_name(features.reference_files(copied)[0]) == before
    last = copied / "cat" / "d.bmp"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1  # the same name and size
    last.write_bytes(data)
    assert features.reference_name(features.reference_files(copied)[0]) != before
    assert features.reference_name(["reference/0", "reference/1"]) == features.reference_name(
        ["reference/0", "reference/1"]
    )
    assert features.reference_name(["reference/0", "reference/1"]) != features.reference_name(
        ["reference/0", "reference/2"]
    )


def test_references_and_training_see_the_same_pixels(tmp_path):
    for name, image in {
        "deep": Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)),
        "clear": Image.new("RGBA", (64, 64), (255, 0, 0, 100)),
    }.items():
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    found = pairs.open_pairs(str(tmp_path))
    for i in range(2):
        picture, caption = found.read(i)
        np.testing.assert_array_equal(np.asarray(picture), features.real_image(str(tmp_path / f"{caption}.png")))


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "link/x.png"])
def test_metadata_leads_nowhere_out_of_its_folder(tmp_path, name):
    folder = tmp_path / "photos"
    folder.mkdir()
    PICTURE.save(tmp_path / "x.png")
    os.symlink(tmp_path, folder / "link")
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "{name}", "text": "a"}}\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl', line 1: the file '.*' leads out of"):
        pairs.open_pairs(str(folder))
