"""Backbones: pretrained pipelines by name, local folder, or hub id, each with the settings the paper runs it at.

Weights are safetensors, hub revisions are pinned, no code from a checkpoint is run, and safety checkers are off
(they would replace images, and so change what is measured).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postdiff import arguments
from postdiff.methods import METHODS
from postdiff.models import additions, minis, single_file
from postdiff.models.configs import (
    check_components,
    check_denoiser,
    check_vae,
    read_json,
    regular_files,
    text_tokens,
)
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.hub import HUB, UNNAMED
from postdiff.models.schedulers import check_noise_schedule, distilled, replaced, solver_of, train_steps
from postdiff.models.spec import Spec, spec_of

if TYPE_CHECKING:
    from postdiff.models.pipeline_functions import Described

MINI = minis.MINI

# In a folder: how it is run, where that is not what its configs and family say, and what it draws.
RUN_KEYS = ("size", "guidance", "solver", "settings", "prompts")
RUN = "postdiff.json"
MINIS = minis.NAMES
FUNCTION = "pipeline:"  # begins the name of a function that returns a pipeline, pipeline:MODULE:FUNCTION
NAMES = (*MINIS, *HUB)


def resolve(where: str | Path) -> Spec:
    """The spec of a name, a folder, `ORG/REPOSITORY@COMMIT`, or `pipeline:MODULE:FUNCTION`, without loading weights.
    After each but the last may stand what is loaded beside it (`postdiff.models.additions`); before `+config=MODEL` a
    single file.

    The function is called, once a process, and what it returns is let go. Of a repository that has no name here, the
    configs (a few kB) are fetched. Warns (UserWarning) if a folder ships a scheduler that is not offered and does not
    say which solver is meant.

    Raises: ValueError if it is none of these, holds no pipeline of a known family, or one that would not be run as it
        was made to (`postdiff.models.configs`, `postdiff.models.schedulers`); OSError if the hub has it not.
    """
    if not isinstance(where, str | Path):
        raise ValueError(f"a model must be a name or a path, got {type(where).__name__}")
    model, beside = additions.split(str(where))
    if is_function(model):
        if beside != additions.Additions():
            raise ValueError(f"{model} makes its pipeline whole: load LoRAs and other parts in it, got {str(where)!r}")
        return _described(model).spec
    if beside.config:
        return _single(str(where), model, beside)
    if os.path.isfile(model):
        raise ValueError(
            f"a model in a single file must say whose configs it is read by, FILE.safetensors+config=MODEL (a folder, "
            f"or sd15, sdxl, ...), got the file {model!r}"
        )
    spec = _resolve(model)
    return spec if beside == additions.Additions() else additions.added(spec, str(where), beside)


def _single(where: str, file: str, beside: additions.Additions) -> Spec:
    """The spec of a single file with what is loaded beside it."""
    config, nested = additions.split(beside.config or "")
    if is_function(config) or nested != additions.Additions() or os.path.isfile(config):
        raise ValueError(f"+config= must be a name, a folder or ORG/REPOSITORY@COMMIT, got {beside.config!r}")
    if not os.path.isfile(file):
        raise ValueError(f"+config= is of a single file, FILE.safetensors+config=MODEL; got no file {file!r}")
    if beside.variant:
        raise ValueError(f"+variant= is of a folder's weight files, got {where!r}")
    base = _resolve(config)
    base = replace(base, vae=beside.vae or base.vae)
    return additions.added(single_file.single_spec(file, base), where, beside)


def _resolve(where: str) -> Spec:
    """The spec of a model without anything beside it."""
    if where in HUB:
        return HUB[where]
    if where in MINIS:
        return folder_spec(where, minis.folder(where))
    if os.path.isdir(where):
        return folder_spec(where, Path(where))
    if hub := additions.REPOSITORY.fullmatch(where):
        return replace(folder_spec(where, fetch_configs(*hub.groups())), source=hub[1], revision=hub[2])
    if where in UNNAMED:
        raise ValueError(f"{where} ({UNNAMED[where].source}) is not run by name: {UNNAMED[where].why}")
    raise ValueError(
        f"unknown model {where!r}: expected one of {', '.join(NAMES)}, a folder, ORG/REPOSITORY@COMMIT "
        f"(40 hex digits), or {FUNCTION}MODULE:FUNCTION{arguments.meant(where, NAMES)}"
    )


def is_function(where: Any) -> bool:
    """Does `where` name a function that returns a pipeline?"""
    return isinstance(where, str) and where.startswith(FUNCTION)


def is_of_hub(where: str) -> bool:
    """Are a model's weights the hub's? Nothing is fetched to tell."""
    model = additions.split(where)[0]
    return model in HUB or bool(additions.REPOSITORY.fullmatch(model))


def check_weights(where: str, weights: str) -> None:
    """Raise ValueError if what a text names is not what it was where a run was planned (`fingerprint`): for what files
    beside a model hold, which may be others on another machine. A function's pipeline is checked by its name."""
    beside = additions.split(where)[1]
    if beside != additions.Additions() and (got := fingerprint(resolve(where))) != weights:
        raise ValueError(f"{where} must be the same on each machine: expected {weights}, got {got}")


def _described(name: str) -> Described:
    from postdiff.models import pipeline_functions

    return pipeline_functions.describe(name)


def fetch_configs(source: str, revision: str, patterns: Sequence[str] = ("*.json", "*/*.json")) -> Path:
    """The folder into which a hub's configs are fetched, without a line a retry. Raises OSError if it has them not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except OSError as error:
        raise OSError(f"{source} cannot be fetched: {error}") from error
    finally:
        logging.set_verbosity(before)


def folder_spec(name: str, folder: Path) -> Spec:
    """The spec of a pipeline's folder, from its configs. Raises and warns as `resolve` does."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    family = next((name for name, rules in FAMILIES.items() if rules.pipeline == kind), None)
    if family is None:
        known = ", ".join(rules.pipeline for rules in FAMILIES.values())
        raise ValueError(
            f"{folder} must hold one of {known} (model_index.json), got {kind if kind is None else repr(kind)}"
        )
    rules = FAMILIES[family]
    regular_files(folder)
    check_components(folder, index, rules)
    missing = [part for part in (rules.denoiser, "vae") if not (folder / part / "config.json").is_file()]
    if missing:
        raise ValueError(f"{folder} must hold the configs of {rules.denoiser} and vae; it lacks {missing[0]}'s")
    parts = rules.denoiser, "vae", *rules.text_encoders
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    lengths = [
        read_json(folder / part / "tokenizer_config.json").get("model_max_length", Spec.text_tokens)
        for part in rules.tokenizers
    ]
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    shipped = scheduler.setdefault("_class_name", index["scheduler"][1])
    spec = spec_from(name, str(folder), family, configs, lengths, scheduler)
    run = read_json(folder / RUN) if (folder / RUN).exists() else {}
    spec = _as_it_says(spec, folder / RUN, run)
    _check_run(spec, (shipped, index["scheduler"][1]), scheduler, folder / RUN, "solver" in run)
    return spec


def spec_from(
    name: str,
    source: str,
    family: str,
    configs: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[Any],
    scheduler: Mapping[str, Any],
) -> Spec:
    """The spec of a pipeline of `family`, from the configs of its parts, checked.

    configs: of the denoiser, `vae` and the text encoders, if they are there. lengths: `model_max_length` of each
        tokenizer, if they are. scheduler: its config, with its class as `_class_name`.
    Raises: ValueError, which names `name`, if it would not be run as it was made to.
    """
    rules = FAMILIES[family]
    denoiser, vae = dict(configs[rules.denoiser]), configs["vae"]
    check_denoiser(rules, denoiser, name)
    check_vae(vae, rules.latent_channels(denoiser), name)
    encoders = {part: configs[part] for part in rules.text_encoders if part in configs}
    if encoders:
        rules.check_text(denoiser, encoders, name)
    side, factor = denoiser.get("sample_size"), 2 ** (len(vae["block_out_channels"]) - 1)
    if type(side) is not int or side < 1:
        raise ValueError(f"sample_size of {rules.denoiser} of {name} must be a whole number of 1 or more, got {side!r}")
    kind = scheduler["_class_name"]
    check_noise_schedule(name, kind, scheduler)
    tokens = {"text_tokens": text_tokens(lengths, rules, encoders, source or name)} if lengths else {}
    return spec_of(
        name, source, None, family, side * factor, denoiser,
        solver=solver_of(kind, scheduler, rules.solvers) or rules.solver, vae_factor=factor,
        train_steps=train_steps(name, scheduler), scheduler=dict(scheduler), **tokens,
    )  # fmt: skip


def _check_run(spec: Spec, kinds: Sequence[str], scheduler: dict[str, Any], file: Path, solver_given: bool) -> None:
    """Raise ValueError if the scheduler is one of distilled models and the family guides; warn if it is replaced.

    kinds: the scheduler's class as its own config has it, and as the pipeline's index. solver_given: in `file`.
    """
    rules = FAMILIES[spec.family]
    for kind in kinds:
        certain = kind in ("LCMScheduler", "TCDScheduler")
        if rules.guided and (certain or not solver_given) and (reason := distilled(kind, scheduler)):
            advice = "" if certain else f'; if it is not, say the solver in {file}: {{"solver": "euler"}}'
            raise ValueError(f"{spec.name} must run guided, as models of {rules.pipeline} do here: {reason}{advice}")
    if not solver_given and (difference := replaced(spec.name, kinds[0], scheduler, spec.solver)):
        warnings.warn(f"{difference}; choose with solver={'|'.join(rules.solvers)}", stacklevel=4)


def _as_it_says(spec: Spec, file: Path, run: dict[str, Any]) -> Spec:
    """`spec` as `run`, what the folder's postdiff.json says, has it."""
    if extra := run.keys() - set(RUN_KEYS):
        raise ValueError(f"{file} may say {', '.join(RUN_KEYS)}, got {arguments.printable(', '.join(sorted(extra)))}")
    settings = run.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"settings in {file} must be an object, got {settings!r}")
    try:
        size = arguments.size(run.get("size", spec.size))
    except ValueError:
        raise ValueError(f"size in {file} must be a whole number of pixels, got {run['size']!r}") from None
    spec = replace(spec, **{**run, "size": size, "settings": {**spec.settings, **settings}})
    guidance, offered = spec.guidance, FAMILIES[spec.family].solvers
    if type(guidance) not in (int, float) or not 1 <= guidance <= arguments.LARGEST_GUIDANCE:  # NaN is neither
        most, got = arguments.LARGEST_GUIDANCE, arguments.shown(guidance)
        raise ValueError(f"guidance in {file} must be a number from 1 to {most}, got {got}")
    if spec.solver not in offered:
        raise ValueError(f"solver in {file} must be one of {', '.join(offered)}, got {spec.solver!r}")
    if not isinstance(spec.prompts, str):
        raise ValueError(f"prompts in {file} must be the name of a data set, got {spec.prompts!r}")
    steps = spec.settings["steps"]
    if type(steps) is not int or not 1 <= steps <= spec.train_steps:
        raise ValueError(f"steps in {file} must be from 1 to {spec.train_steps}, as in training, got {steps!r}")
    try:
        spec.latents(spec.size)
        adapt(METHODS["postdiff"](**spec.settings), spec.family)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} must say settings that postdiff takes: {error}") from None
    return spec


def write_run(spec: Spec, folder: Path, **changes) -> None:
    """Make `folder` run as `spec` does: for models that were made from it, or in a form its configs do not tell."""
    run = {key: getattr(spec, key) for key in RUN_KEYS} | {"size": arguments.one_size(spec.size)}
    (folder / RUN).write_text(json.dumps({**run, **changes}, indent=2) + "\n")


def fingerprint(spec: Spec) -> str:
    """What the weights are: the pinned commit(s), or 12 hex digits of a folder's configs and safetensors, or of what a
    function's pipeline holds (`pipeline_identity`). With a LoRA (and its scale), a folder's autoencoder, a variant or a
    single file: 12 hex digits of the content of all of it, wherever that lies."""
    if is_function(spec.source):
        return _described(spec.source).identity
    if not spec.source:
        raise ValueError(f"{spec.name} is in memory alone: expected a folder or a pinned commit, which say what it is")
    base = spec.revision or _folder_content(Path(spec.source), configs_alone=bool(spec.file))
    other = spec.vae and (spec.vae[1] or _folder_content(Path(spec.vae[0])))
    if not (spec.loras or spec.variant or spec.file or (spec.vae and not (spec.revision and spec.vae[1]))):
        return base if other is None else f"{base}+{other}"
    loras = [(_content(Path(file)).hex(), scale) for file, scale in spec.loras]
    single = spec.file and _content(Path(spec.file)).hex()
    return sha256(json.dumps([base, other, spec.variant, single, loras]).encode()).hexdigest()[:12]


def _folder_content(folder: Path, configs_alone: bool = False) -> str:
    """12 hex digits of the configs, tokenizers and (if not `configs_alone`) weights below a folder."""
    digest = sha256()
    kinds = (".json", ".txt", ".model", *(() if configs_alone else (".safetensors",)))
    for file in regular_files(folder):
        if file.suffix in kinds and file.name != RUN:
            digest.update(file.name.encode() + _content(file))
    return digest.hexdigest()[:12]


def _content(file: Path) -> bytes:
    is_now = file.stat()
    return digest_of(file, is_now.st_size, is_now.st_mtime_ns)


@cache
def digest_of(file: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a file, read once while its size and time of change stay."""
    with open(file, "rb") as opened:
        return file_digest(opened, "sha256").digest()
