"""Protocols by name: what published numbers differ by most, fixed together (--protocol).

What is not among them is the same for all: clean-fid's resizer and Inception in float32, images as they were made,
100 x cosine cut at 0 image by image. The paper tells none of this; `coco-30k` is the likeliest of its CLIP model and
number of prompts (CLIP scores of ViT-g-14 and none of ViT-L-14 fit what it printed).
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipelines.data import coco, prompts


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


def name(args: argparse.Namespace, reference: Sequence[str]) -> str:
    """The protocol's name, "" where it is not wholly that: on fewer prompts, or without FID's references.

    Raises: ValueError if FID's references or its encoder are others.
    """
    if not args.protocol or args.limit != PROTOCOLS[args.protocol].limit or not reference:
        return ""
    if not args.matched and len(reference) != coco.VAL2014:
        raise ValueError(
            f"--protocol {args.protocol} needs all {coco.VAL2014} images of {coco.IMAGES} as --reference, "
            f"got {len(reference)}"
        )
    if not args.fid.endswith(".pt"):
        raise ValueError(f"--protocol {args.protocol} needs clean-fid's Inception (.pt) as --fid, got {args.fid}")
    return args.protocol


def apply(args: argparse.Namespace) -> None:
    """Fill the options that `args.protocol` fixes.

    Raises: ValueError if one was given another value, or the prompts are not COCO 2014's validation captions.
    """
    if args.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {args.protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    for name, value in asdict(PROTOCOLS[args.protocol]).items():
        given = getattr(args, name)
        if given is not None and given is not False and given != value:
            raise ValueError(f"--protocol {args.protocol} fixes --{name} at {value}, got {given}")
        setattr(args, name, value)
    if not args.prompts.endswith(".json"):
        raise ValueError(f"--protocol {args.protocol} needs --prompts captions_val2014.json ({coco.SOURCE})")
    if args.shuffled:
        raise ValueError(f"--protocol {args.protocol} fixes the order of the prompts: --shuffled is not for it")
    listed = prompts.load_prompts(args.prompts)
    found = prompts.fingerprint(listed[: len(coco.first())])
    if (len(listed), found) != (coco.VAL2014, coco.FIRST_FINGERPRINT):
        raise ValueError(
            f"{args.prompts!r} is not COCO 2014's validation captions: expected {coco.VAL2014} images, the first 5,000 "
            f"captions with checksum {coco.FIRST_FINGERPRINT}, got {len(listed)} and {found}; they are in {coco.SOURCE}"
        )
