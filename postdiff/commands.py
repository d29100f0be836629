"""What each command of the console script does. All that can be wrong with it is told before weights are read, and
nothing is written until then.

Of this package only what needs neither torch nor diffusers is imported here: `--help` and most refusals need neither.
"""

import argparse
import inspect
import json
import os
import sys
import textwrap
from hashlib import sha256
from math import ceil
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import postdiff
from postdiff import arguments
from postdiff.limits import check_memory, warn_of_cut
from postdiff.mechanisms import ScheduledModules
from postdiff.methods import METHODS, settings_for, settings_of
from postdiff.models.anatomy import word_of
from postdiff.plan import Plan, strip
from postdiff.planfile import load_plan, save_plan
from postdiff.settings import CALLED, SEARCHES, SETTINGS, check_taken, default, written
from postdiff.terminal import doing, quiet_libraries

if TYPE_CHECKING:
    from postdiff.models.spec import Spec

SLOW = 3  # seconds after which loading says that it is going on


def generate(args: argparse.Namespace) -> None:
    plan = _plan(args.plan, args.method or "postdiff", args.backbone, _settings_given(args))
    from PIL import Image
    from tqdm import tqdm

    from postdiff import outputs
    from postdiff.models import checkpoints
    from postdiff.models.families import guided_by
    from postdiff.models.spec import settle

    spec = checkpoints.resolve(args.backbone)
    w = spec.guidance if args.guidance is None else arguments.number("guidance", args.guidance, "[0, inf)")
    plan, w = guided_by(plan, spec.family, w)
    settled = settle(spec, w, args.solver, args.size)
    images = len(args.prompt) * args.n
    batches = ceil(images / args.batch_size)
    batch_size = arguments.batch_size(ceil(images / batches))
    check_memory(spec, images, batch_size, settled.size)
    prompts = [prompt for prompt in args.prompt for _ in range(args.n)]
    seeds = [args.seed + i for i in range(images)]
    outputs.check_folder("--out", args.out, _image_name(plan, "", seeds[-1]))
    plan = _runnable(plan, spec)
    asked = {name: getattr(args, name) for name in CALLED if getattr(args, name) is not None}
    asked |= {name: arguments.size(asked[name]) for name in ("original_size", "target_size") if name in asked}
    from postdiff.asked import asked_by, check  # torch
    from postdiff.switching import make_solver

    called = asked_by(**asked)
    check(spec, plan, called, images)
    make_solver(settled.solver, spec.scheduler, plan, spec.name, called.details)  # raises where it cannot
    _draw(plan, args.plan_picture)
    backbone = _load(args.backbone)
    warn_of_cut([*args.prompt, *([args.negative] if args.negative else [])], backbone)
    with doing("generating"), tqdm(total=batches * len(plan), desc=plan.name, unit="step") as bar:
        arrays = postdiff.sample(
            backbone, prompts, seeds, plan,
            guidance=args.guidance, solver=args.solver, size=args.size,
            batch_size=batch_size, on_step=lambda *_: bar.update(), **asked,
        )  # fmt: skip
    # Named by seed, plan, and what else makes the image another: prompts are data, and never part of a path.
    identity = [checkpoints.fingerprint(spec), plan.id, *settled.settings.values(), *([asked] if asked else [])]
    args.out.mkdir(parents=True, exist_ok=True)
    files = []
    for prompt, seed, image in zip(prompts, seeds, arrays, strict=True):
        files.append(args.out / _image_name(plan, json.dumps([*identity, prompt]), seed))
        with outputs.whole(files[-1]) as part:
            Image.fromarray(image).save(part, "PNG")
    print(*files, sep="\n")  # when all are there: whoever reads may stop


def search(args: argparse.Namespace) -> None:
    """Search a schedule, and write the plan that has it."""
    accepted = SEARCHES[args.search]
    settings = {
        name: arguments.number(name, getattr(args, name), interval)
        for name, (_, _, interval) in accepted.items()
        if getattr(args, name) is not None
    }
    foreign = {name for takes in SEARCHES.values() for name in takes} - {*accepted, *SETTINGS}
    check_taken(args.search, [name for name in sorted(foreign) if getattr(args, name) is not None], accepted)
    method = args.method or ("ca_tome" if args.search == "ca_tome" else "dense")
    plan = _plan(None, method, args.backbone, {k: v for k, v in _settings_given(args).items() if k not in accepted})
    _check_searchable(args.search, plan)
    from tqdm import tqdm

    from postdiff import outputs
    from postdiff.models import checkpoints

    spec = checkpoints.resolve(args.backbone)
    outputs.check_file("--out", args.out)
    plan = _runnable(plan, spec)
    _draw(plan, args.plan_picture)
    backbone = _load(args.backbone)
    warn_of_cut(args.prompt, backbone)
    seeds = [args.seed + i for i in range(len(args.prompt))]
    run = getattr(postdiff.search, args.search)
    with doing("searching"), tqdm(total=len(plan), desc=args.search, unit="step") as bar:
        searched = run(backbone, args.prompt, seeds, plan, on_step=lambda i: bar.update(), **settings)
    notes = {"backbone": args.backbone, "search": args.search, "prompts": len(args.prompt), **settings}
    save_plan(searched, args.out, **notes)
    before, after = postdiff.costs([METHODS["dense"](len(plan)), searched], spec)
    print(strip(searched))
    print(f"{args.out}: {after.flops / before.flops:.1%} of the FLOPs of {len(plan)} dense steps")


def cost(args: argparse.Namespace) -> None:
    """What a plan costs, as text or JSON."""
    plan = _plan(None, args.method, args.backbone, _settings_given(args))
    from postdiff.models import checkpoints

    spec = checkpoints.resolve(args.backbone)
    with doing("counting"):
        price = postdiff.cost(plan, spec, args.size)
    _draw(plan, args.plan_picture)
    if args.json:
        total = {name: getattr(price, name) for name in ("macs_paper", "macs_printed", "flops")}
        steps = [{"step": i, **vars(step)} for i, step in enumerate(price.steps)]
        print(json.dumps({**total, "steps": steps} if args.per_step else total))
        return
    print(f"{args.backbone}, {plan.name}, {len(plan)} steps, one image")
    print(strip(plan))
    if args.per_step:
        print(f"\n  {'step':>4}{'scale':>7}{'halves':>8}{'G MACs (paper)':>16}{'GFLOPs':>12}")
        for i, (step, planned) in enumerate(zip(price.steps, plan.steps, strict=True)):
            halves = 2 if planned.guided else 1
            print(f"  {i:>4}{planned.scale:>7.2f}{halves:>8}{step.macs_paper / 1e9:>16.3f}{step.flops / 1e9:>12.3f}")
    unit, letter = (1e12, "T") if price.macs_paper >= 1e11 else (1e9, "G")
    print(
        f"\n  macs_paper    {price.macs_paper / unit:10.4f} {letter}   linear, convolution, norm: the paper's 'FLOPs'"
    )
    if price.macs_printed != price.macs_paper:
        note = "as the paper's tables subtract cross-attention"
        print(f"  macs_printed  {price.macs_printed / unit:10.4f} {letter}   {note}")
    print(f"  flops         {price.flops / unit:10.4f} {letter}   2 x MAC, attention included")


def advise(args: argparse.Namespace) -> None:
    """The plan to deploy for a share of the cost, and all that is known of it."""
    from postdiff import advice
    from postdiff.models import checkpoints

    spec = checkpoints.resolve(args.backbone)
    with doing("counting"):
        advised = advice.advise(spec, args.share, args.calibration)
    unit, letter = (1e12, "T") if advised.flops >= 1e11 else (1e9, "G")
    cost = (
        f"{advised.flops / unit:.4g} {letter}FLOPs an image, {advised.share:.1%} of {advised.dense_steps} dense steps; "
        f"{advised.macs / unit:.4g} {letter}MACs by the paper's rule"
    )
    print(f"{args.backbone}, at most {args.share:.1%} of its cost\n\n{strip(advised.plan)}\n")
    texts = [("cost", cost), ("quality", advised.quality), ("how sure", advised.certainty)]
    for title, text in [*texts, *(("not to" if i == 0 else "", text) for i, text in enumerate(advised.cautions))]:
        print(textwrap.fill(text, 119, initial_indent=f"{title:<10}", subsequent_indent=" " * 10))
    print(f"\n{advised.code}")


def methods(args: argparse.Namespace) -> None:
    """Every method in a sentence or two, with the defaults of its settings, and the searches."""
    entries = {}
    for name, method in METHODS.items():
        summary = (inspect.getdoc(method) or "").split("\n\n")[0]
        entries[name] = summary, [written(key, default(name, key)) for key in settings_of(name)]
    print("METHODS  for generate, cost and search; their flags with defaults\n")
    _print_settings(entries)
    print("\nSEARCHES  for `postdiff search`: what a method does at each step and block is found on a few prompts\n")
    summaries = {
        "block_caching": "Cache Me if You Can (CVPR 2024): blocks whose contribution changes little are reused.",
        "ca_tome": "What ca_tome merges is measured, so that its plan has a cost.",
        "ditfastattn": "DiTFastAttn (NeurIPS 2024): each self-attention reused, in a window, or one half for both.",
    }
    _print_settings(
        {
            name: (summaries[name], [written(key, settings[key][1]) for key in settings])
            for name, settings in SEARCHES.items()
        }
    )
    print("\nWhat each flag means: postdiff generate --help, postdiff search --help")


def _print_settings(entries: dict[str, tuple[str, list[str]]]) -> None:
    indent = max(map(len, METHODS)) + 2
    for name, (summary, flags) in entries.items():
        unbroken = "  ".join(flag.replace(" ", "\0") for flag in flags)  # a flag and its value stay together
        lines = [
            line.replace("\0", " ")
            for text in (" ".join(summary.split()), unbroken)
            for line in textwrap.wrap(text, 119 - indent, break_on_hyphens=False)
        ]
        print(f"{name:<{indent}}{lines[0]}", *(" " * indent + line for line in lines[1:]), sep="\n")


def models(args: argparse.Namespace) -> None:
    """The backbones that have a name here, with the settings that the paper runs them at."""
    from postdiff.models import checkpoints, hub
    from postdiff.models.families import FAMILIES

    families, rows = [], []
    for name in checkpoints.NAMES:
        spec = checkpoints.resolve(name)
        families.append(spec.family)
        location = f"{spec.source}@{spec.revision[:7]}" if spec.revision else "in this package"
        settings = [f"{key}={value:g}" for key, value in spec.settings.items()]
        size = f"{arguments.shown_size(spec.size)}px".rjust(6)
        says = "the paper's" if name in (*hub.PAPERS, *checkpoints.MINIS) else "nobody's yet: calibrate first"
        rows.append([name, size, f"w={spec.guidance:g}", spec.solver, *settings, says, location])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for family in FAMILIES:
        print(f"{family}: {FAMILIES[family].pipeline}; PostDiff's settings are")
        for row in (row for row, own in zip(rows, families, strict=True) if own == family):
            print(" ", " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("not run by name:")
    for name, one in hub.UNNAMED.items():
        print(f"  {name}: {one.why} ({one.source.partition('@')[0]})")


def _settings_given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}


def _plan(file: Path | None, method: str, backbone: str, chosen: dict[str, Any]) -> Plan:
    """The plan of a file (`method` may name one too), or the method with what was given, else the paper's settings
    for this backbone, else its own."""
    if file is None and method not in METHODS and (method.endswith(".json") or os.path.isfile(method)):
        file = Path(method)
    if file is None:
        check_taken(method, chosen, settings_of(method))
        from postdiff.models.checkpoints import resolve

        settings = settings_for(method, resolve(backbone).settings)
        return METHODS[method](**{**settings, **chosen})
    check_taken(str(file), chosen, ())
    if os.path.exists(file) and not file.is_file():  # a pipe or a device may never end
        raise ValueError(f"a plan must be a file, got {str(file)!r}, which is none")
    return load_plan(file)


def _runnable(plan: Plan, spec: "Spec") -> Plan:
    """`plan` as the family of `spec` runs it. Raises ValueError, before weights are read, if its denoiser cannot."""
    from postdiff.mechanisms.attach import runners
    from postdiff.models import loading
    from postdiff.models.families import adapt

    plan = adapt(plan, spec.family)
    with doing(f"building {spec.name}"):
        denoiser = loading.outline(spec)
    runners(denoiser, plan)
    return plan


def _check_searchable(name: str, plan: Plan) -> None:
    """Raise ValueError if `plan` does not go with the schedules that a search adds: told now, not when it ends."""
    if name == "ca_tome":
        return
    first, later = ("S", "w") if name == "ditfastattn" else ("#", ".")
    kinds = [(step.scale, step.guided) for step in plan.steps]
    marks = (later if i and kinds[i] == kinds[i - 1] else first for i in range(len(plan)))
    kind = "self-attention" if name == "ditfastattn" else "convolution"
    plan.plus(ScheduledModules(((word_of(kind), "".join(marks)),)))


def _draw(plan: Plan, file: Path | None) -> None:
    """The picture of a plan, where one was asked for."""
    if file is None:
        return
    from postdiff.outputs import check_file, whole
    from postdiff.picture import draw_plan

    check_file("--plan-picture", file, ".png")
    with whole(file) as part:
        draw_plan(plan).save(part, "PNG")


def _image_name(plan: Plan, identity: str, seed: int) -> str:
    return f"{plan.name}-{sha256(identity.encode()).hexdigest()[:6]}-seed{seed}.png"


def _load(name: str) -> "postdiff.Backbone":
    """A backbone, without bars; where it takes long, a line says that it is going on."""
    quiet_libraries()
    late = Timer(SLOW, lambda: print(f"loading {name} ...", file=sys.stderr))
    late.daemon = True
    late.start()
    try:
        with doing(f"loading {name}"):
            return postdiff.load(name)
    finally:
        late.cancel()
