"""Protocols by name: what published numbers differ by most, fixed together (--protocol).

What is not among them is the same for all: clean-fid's resizer and Inception in float32, images as they were made,
100 x cosine cut at 0 image by image. The paper tells none of this; `coco-30k` is the likeliest of its CLIP model and
number of prompts (CLIP scores of ViT-g-14 and none of ViT-L-14 fit what it printed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipelines.data import coco, prompts

if TYPE_CHECKING:
    from pipelines.options import Options, Own


@dataclass(frozen=True)
class Named:
    """limit: prompts of COCO 2014 val, in coco.py's order. matched: FID's reference is the images of those prompts
    alone, not all 40,504."""

    limit: int
    clip: str = "ViT-g-14/laion2b_s34b_b88k"
    matched: bool = False


PROTOCOLS = {
    "coco-30k": Named(30_000),
    "coco-30k-matched": Named(30_000, matched=True),
    "coco-10k": Named(10_000),
    "coco-5k": Named(5_000),  # the captions of MLPerf's SDXL benchmark
    "coco-5k-b32": Named(
        5_000, "ViT-B-32-quickgelu/openai"
    ),  # and its CLIP model; its FID is another (no antialiasing)
}


def name(options: Options, reference: Sequence[str]) -> str:
    """The protocol's name, "" where it is not wholly that: on fewer prompts, or without FID's references.

    Raises: ValueError if FID's references or its encoder are others.
    """
    if not options.protocol or options.limit != PROTOCOLS[options.protocol].limit or not reference:
        return ""
    if not options.matched and len(reference) != coco.VAL2014:
        raise ValueError(
            f"--protocol {options.protocol} needs all {coco.VAL2014} images of {coco.IMAGES} as --reference, "
            f"got {len(reference)}"
        )
    if not options.fid.endswith(".pt"):
        raise ValueError(f"--protocol {options.protocol} needs clean-fid's Inception (.pt) as --fid, got {options.fid}")
    return options.protocol


def apply(options: Own) -> Own:
    """`options` with those filled in that `options.protocol` fixes.

    Raises: ValueError if one was given another value, or the prompts are not COCO 2014's validation captions.
    """
    if options.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {options.protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    fixed = asdict(PROTOCOLS[options.protocol])
    for name, value in list(fixed.items()):
        given = getattr(options, name)
        if given and name not in options.given:  # a job's own default, as of one that looks at a few prompts
            fixed = {**fixed, name: given}
        elif given and given != value:
            raise ValueError(f"--protocol {options.protocol} fixes --{name} at {value}, got {given}")
    if not options.prompts.endswith(".json"):
        raise ValueError(f"--protocol {options.protocol} needs --prompts captions_val2014.json ({coco.SOURCE})")
    if options.shuffled:
        raise ValueError(f"--protocol {options.protocol} fixes the order of the prompts: --shuffled is not for it")
    if options.draw:
        raise ValueError(f"--protocol {options.protocol} fixes the prompts: --draw is not for it")
    listed = prompts.load_prompts(options.prompts)
    checksum = prompts.fingerprint(listed[: len(coco.first())])
    if (len(listed), checksum) != (coco.VAL2014, coco.FIRST_FINGERPRINT):
        raise ValueError(
            f"{options.prompts!r} is not COCO 2014's validation captions: expected {coco.VAL2014} images, the first "
            f"5,000 captions with checksum {coco.FIRST_FINGERPRINT}, got {len(listed)} and {checksum}; they are in "
            f"{coco.SOURCE}"
        )
    return replace(options, **fixed)
