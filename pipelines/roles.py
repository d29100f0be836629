"""What plays each of the paper's data sets: which prompts, how many, which reference images, in which store."""

import argparse

from pipelines import prompts
from pipelines.exhibits import APPENDIX_J
from pipelines.figures import COLUMNS
from pipelines.options import settle_options
from pipelines.store import below
from postdiff import published

# COCO 2014's validation captions, as is usual (the paper does not say), and App. E and J.
PROMPTS = {"coco2014": 30_000, "imagenet21k_recaption": 10_000, APPENDIX_J: 24}


def share(args: argparse.Namespace) -> int:
    """How many prompts `--scale` leaves of those that --prompts and --limit name."""
    return max(4, round(args.scale * len(prompts.of_options(args))))


def of_dataset(args: argparse.Namespace, dataset: str) -> argparse.Namespace:
    """The options of a data set of the paper: COCO is --prompts and --reference, the other is --recaption's."""
    other = {"out": below(args.out, dataset), "protocol": None, "matched": False}
    mini, most = args.models == "mini", PROMPTS[dataset]
    limit = most if args.limit is None else args.limit
    if dataset == APPENDIX_J:
        own = {**other, "shuffled": False, "prompts": "shapes" if mini else str(published.APPENDIX_J),
               "limit": COLUMNS if mini else None,
               "batch_size": min(args.batch_size, 8), "given": args.given - {"batch_size"}}  # fmt: skip
    elif dataset == "coco2014":
        own = {} if mini else {"limit": limit}
    else:
        own = {**other, "shuffled": True, "reference": args.recaption_reference, "prompts": args.recaption}
        own |= {"prompts": "shapes-recaption"} if mini else {"limit": min(limit, most)}
        if limit > most:  # the paper's number is not the one that was given: of a shorter file it is all
            own["given"] = args.given - {"limit"}
    found = argparse.Namespace(**(vars(args) | own))
    if not mini and found.prompts in (None, "shapes"):
        option = "--prompts" if dataset == "coco2014" else "--recaption"
        raise ValueError(f"--models real needs {option}, a file of captions ({dataset}'s are the paper's)")
    found = settle_options(found)
    if dataset != APPENDIX_J:
        found.limit = share(found)
    return found
