"""The console script: `postdiff generate | cost | search | methods | models`."""

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from postdiff import backbones
from postdiff.methods import METHODS, settings_for, settings_of
from postdiff.plan import Plan, strip
from postdiff.planfile import load_plan

# Every setting of every method is a flag; a method takes those that its signature has.
SETTINGS = {
    "steps": "T, denoising steps",
    "beta": "scale of the low resolution",
    "s": "share of the steps at low resolution",
    "k": "DeepCache's interval",
    "m": "guidance ends at this step (20), or share of the steps (0.75)",
    "mode": "which cross-attention is cached",
    "branch": "DeepCache's skip branch",
    "size_condition": "the size that SDXL and PixArt are told at low resolution",
    "gate_step": "T-GATE: guidance ends at this step (10), or share of the steps (0.5)",
    "sp_interval": "T-GATE: self-attention is computed every so many steps before the gate",
    "fi_interval": "T-GATE: the same after the gate",
    "warm_up": "T-GATE: first steps, which compute all self-attention",
    "ratio": "ToMe: share of the tokens that are merged away",
    "sx": "ToMe: width of a cell that keeps one token to merge into",
    "sy": "ToMe: its height",
    "random": "ToMe: that token is drawn, not the upper left",
    "max_downsample": "ToMe: where the grid is at most so many times smaller than the latents'",
    "attention": "ToMe: around self-attention",
    "cross_attention": "ToMe: around cross-attention",
    "mlp": "ToMe: around the feed-forward layers",
    "match_steps": "CA-ToMe: steps that match tokens anew, as 0,5,10",
    "threshold": "CA-ToMe: cosine of two tokens that are merged; DiTFastAttn: how much a step's output may change",
    "factor": "ToDo: every so many rows and columns are keys and values, where the grid is the latents'",
    "factor_2": "ToDo: the same where the grid is half of that",
    "key_steps": "Faster Diffusion: steps that run the encoder, as 0,1,2,5",
    "prior_noise": "Faster Diffusion: so much of the initial noise is added late",
    "interval": "DuCa: every so many steps compute everything",
    "fresh_ratio": "DuCa: about what share of the tokens is refreshed between them",
    "score": "DuCa: what chooses those tokens",
    "soft": "DuCa: weight of the steps since a token was computed",
    "ahead": "Faster Diffusion: steps that reuse the encoder are one batch",
}

SEARCHES = {
    "block_caching": {"delta": "block caching: a block runs when its relative changes add up to more (0.5)"},
    "ca_tome": {},
    "ditfastattn": {
        "threshold": "DiTFastAttn: how much a step's output may change (0.0725)",
        "window": "DiTFastAttn: share of the tokens to either side that a window holds (0.125)",
    },
}


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _say_once()
        try:
            args.run(args)
        except (ValueError, OSError, ArithmeticError) as error:
            raise SystemExit(f"error: {error}") from None


def _say_once() -> Callable[..., None]:
    """What prints a warning as one line on stderr, each once: Python's own takes two, and a line of our source."""
    said: set[str] = set()

    def say(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="postdiff", description="Fewer denoising steps, or cheaper steps?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="a prompt and a method in, PNGs out")
    generate.add_argument("prompt", nargs="+", help="one or more texts")
    generate.add_argument("--backbone", default="mini-sd", help="a name, a folder, or ORG/REPOSITORY@COMMIT")
    generate.add_argument("--method", default="postdiff", help=", ".join(METHODS))
    generate.add_argument("--plan", dest="method", metavar="FILE", help="a plan's JSON file instead of a method")
    _add_settings(generate)
    generate.add_argument("--seed", type=int, default=0, help="of the first image; the next has the next seed")
    generate.add_argument("--n", type=int, default=1, help="images a prompt")
    generate.add_argument("--batch-size", type=int, default=4, help="images a forward pass, at most")
    generate.add_argument("--guidance", type=float)
    generate.add_argument("--solver", help="ddim, dpm, euler, unipc")
    generate.add_argument("--size", type=int, help="pixels")
    generate.add_argument("--out", type=Path, default=Path(), help="folder of the PNGs")
    generate.set_defaults(run=_generate)

    cost = commands.add_parser("cost", help="MACs and FLOPs of a method on a backbone, without weights")
    cost.add_argument("backbone", metavar="BACKBONE")
    cost.add_argument("method", metavar="METHOD", help="a method, or a plan's JSON file")
    _add_settings(cost)
    cost.add_argument("--size", type=int, help="pixels")
    cost.add_argument("--per-step", action="store_true")
    cost.add_argument("--json", action="store_true", help="integers for one image")
    cost.set_defaults(run=_cost)

    found = commands.add_parser("search", help="find a schedule for each module, and write the plan")
    found.add_argument("search", choices=list(SEARCHES), metavar="SEARCH", help=", ".join(SEARCHES))
    found.add_argument("prompt", nargs="+", help="calibration prompts, 6 to 8 of them")
    found.add_argument("--backbone", default="mini-sd", help="a name, a folder, or ORG/REPOSITORY@COMMIT")
    found.add_argument("--method", help="what is searched on top of (dense; of ca_tome: itself)")
    _add_settings(found)
    for name, says in {name: says for takes in SEARCHES.values() for name, says in takes.items()}.items():
        if name not in SETTINGS:
            found.add_argument(_flag(name), type=float, help=says)
    found.add_argument("--seed", type=int, default=0, help="of the first prompt; the next has the next seed")
    found.add_argument("--out", type=Path, default=Path("plan.json"), help="the plan's file")
    found.set_defaults(run=_search)

    commands.add_parser("methods", help="the methods and their settings").set_defaults(run=_methods)
    commands.add_parser("models", help="the backbones").set_defaults(run=_models)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    # Defaults: the paper's settings for the backbone (postdiff models), else the method's own.
    kinds = {p.name: p.annotation for method in METHODS.values() for p in inspect.signature(method).parameters.values()}
    for name, says in SETTINGS.items():
        kind: Any = kinds[name]
        if kind is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=says)
        elif choices := get_args(kind) if get_origin(kind) is Literal else None:
            parser.add_argument(_flag(name), choices=choices, help=says)
        elif get_origin(kind) is tuple:
            parser.add_argument(_flag(name), type=_numbers, help=says)
        else:
            parser.add_argument(_flag(name), type=kind if kind in (int, float) else _step_or_share, help=says)
    parser.add_argument("--plan-picture", type=Path, metavar="PNG", help="draw the plan as a strip of its steps")


def _step_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _plan(args: argparse.Namespace) -> Plan:
    """A plan's file, or the method with what was given, else the paper's settings for this backbone, else its own."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    from_file = args.method.endswith(".json")
    accepted = () if from_file else settings_of(args.method)
    extra = [_flag(name) for name in given if name not in accepted]
    if extra:
        takes = ", ".join(_flag(name) for name in accepted) or "no settings"
        raise ValueError(f"{args.method} does not take {', '.join(extra)}; it takes {takes}")
    if from_file:
        plan = load_plan(args.method)
    else:
        settings = settings_for(args.method, backbones.resolve(args.backbone).settings)
        plan = METHODS[args.method](**{**settings, **given})
    if args.plan_picture:
        from postdiff.picture import draw_plan

        draw_plan(plan).save(args.plan_picture)
    return plan


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _generate(args: argparse.Namespace) -> None:
    from PIL import Image
    from tqdm import tqdm

    from postdiff.families import adapt
    from postdiff.loading import load
    from postdiff.sampling import sample, settle

    for flag in ("n", "batch_size"):
        if getattr(args, flag) < 1:
            raise ValueError(f"{_flag(flag)} must be 1 or more, got {getattr(args, flag)}")
    plan = _plan(args)
    prompts = [prompt for prompt in args.prompt for _ in range(args.n)]
    seeds = [args.seed + i for i in range(len(prompts))]
    # A typo is told before any weights are read.
    spec = backbones.resolve(args.backbone)
    settled = settle(spec, args.guidance, args.solver, args.size)
    plan = adapt(plan, spec.family)
    args.out.mkdir(parents=True, exist_ok=True)
    backbone = load(args.backbone)
    batches = ceil(len(prompts) / args.batch_size)
    with tqdm(total=batches * len(plan), desc=plan.name, unit="step") as bar:
        images = sample(
            backbone, prompts, seeds, plan,
            guidance=args.guidance, solver=args.solver, size=args.size,
            batch_size=ceil(len(prompts) / batches), on_step=lambda i: bar.update(),
        )  # fmt: skip
    # Named by seed, plan, and what else makes the image another: prompts are data, and never part of a path.
    others = [backbones.fingerprint(spec), plan.id, *settled]
    for prompt, seed, image in zip(prompts, seeds, images, strict=True):
        digest = sha256(json.dumps([*others, prompt]).encode()).hexdigest()[:6]
        file = args.out / f"{plan.name}-{digest}-seed{seed}.png"
        Image.fromarray(image).save(file)
        print(file)


def _search(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from postdiff import search
    from postdiff.cost import costs
    from postdiff.loading import load
    from postdiff.planfile import save_plan

    own = SEARCHES[args.search]
    others = {name for takes in SEARCHES.values() for name in takes} - {*own, *SETTINGS}
    if extra := [_flag(name) for name in sorted(others) if getattr(args, name) is not None]:
        takes = ", ".join(map(_flag, own)) or "no settings"
        raise ValueError(f"{args.search} does not take {', '.join(extra)}; it takes {takes}")
    given = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    for name in own:  # the search's, not its method's
        setattr(args, name, None)
    args.method = args.method or ("ca_tome" if args.search == "ca_tome" else "dense")
    plan = _plan(args)
    if not args.out.parent.is_dir():
        raise ValueError(f"--out must be in a folder that is there, got {args.out}")
    backbone = load(args.backbone)
    seeds = [args.seed + i for i in range(len(args.prompt))]
    with tqdm(total=len(plan), desc=args.search, unit="step") as bar:
        found = getattr(search, args.search)(
            backbone, args.prompt, seeds, plan, on_step=lambda i: bar.update(), **given
        )  # fmt: skip
    save_plan(found, args.out, backbone=args.backbone, search=args.search, prompts=len(args.prompt), **given)
    before, after = costs([METHODS["dense"](len(plan)), found], backbone.spec)
    print(strip(found))
    print(f"{args.out}: {after.flops / before.flops:.1%} of the FLOPs of {len(plan)} dense steps")


def _cost(args: argparse.Namespace) -> None:
    from postdiff.cost import cost

    plan = _plan(args)
    price = cost(plan, backbones.resolve(args.backbone), args.size)
    if args.json:
        total = {name: getattr(price, name) for name in ("macs_paper", "macs_printed", "flops")}
        steps = [{"step": i, **vars(step)} for i, step in enumerate(price.steps)]
        print(json.dumps({**total, "steps": steps} if args.per_step else total))
        return
    print(f"{args.backbone}, {plan.name}, {len(plan)} steps, one image")
    print(strip(plan))
    if args.per_step:
        print(f"\n  {'step':>4}{'scale':>7}{'halves':>8}{'G MACs (paper)':>16}{'GFLOPs':>12}")
        for i, (step, of) in enumerate(zip(price.steps, plan.steps, strict=True)):
            halves = 2 if of.guided else 1
            print(f"  {i:>4}{of.scale:>7.2f}{halves:>8}{step.macs_paper / 1e9:>16.3f}{step.flops / 1e9:>12.3f}")
    unit, letter = (1e12, "T") if price.macs_paper >= 1e11 else (1e9, "G")
    print(
        f"\n  macs_paper    {price.macs_paper / unit:10.4f} {letter}   linear, convolution, norm: the paper's 'FLOPs'"
    )
    if price.macs_printed != price.macs_paper:
        note = "as the paper's tables subtract cross-attention"
        print(f"  macs_printed  {price.macs_printed / unit:10.4f} {letter}   {note}")
    print(f"  flops         {price.flops / unit:10.4f} {letter}   2 x MAC, attention included")


def _methods(args: argparse.Namespace) -> None:
    for name, method in METHODS.items():
        settings = ", ".join(str(p) for p in inspect.signature(method).parameters.values())
        print(f"{name}({settings.replace('postdiff.plan.', '')})\n    {inspect.getdoc(method)}")


def _models(args: argparse.Namespace) -> None:
    for name in backbones.NAMES:
        spec = backbones.resolve(name)
        where = f"{spec.source}@{spec.revision[:8]}" if spec.revision else "in this package"
        settings = " ".join(f"{key}={value:g}" for key, value in spec.settings.items())
        print(f"{name:<14}{spec.size:>5} px  w={spec.guidance}  {spec.solver:<6}{settings:<34} {where}")


if __name__ == "__main__":
    main()
