"""What a checkpoint's scheduler means: which solver it is, which of its settings are kept, and which models it tells
that cannot be run as they are. Names and numbers only: neither torch nor diffusers is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postdiff.models.spec import Spec

# The solvers offered, by diffusers' class.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",  # DPM-Solver++ (2M)
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm_3m": "DPMSolverMultistepScheduler",  # DPM-Solver++ (3M)
    "dpm_sde": "DPMSolverMultistepScheduler",  # SDE-DPM-Solver++ (2M), which adds noise
    "euler_a": "EulerAncestralDiscreteScheduler",  # which adds noise
    "deis": "DEISMultistepScheduler",
    # These run the model more often than they take steps (`postdiff.models.evaluations`).
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",  # with its Runge-Kutta steps
    "plms": "PNDMScheduler",  # without, as SD1.5 ships it
    # For consistency models alone: predicts the clean latents, and adds fresh noise at every step.
    "lcm": "LCMScheduler",
}
ODE = ("ddim", "dpm", "euler", "unipc", "dpm_3m", "deis", "heun", "pndm", "plms")
SDE = ("dpm_sde", "euler_a")
GENERAL = tuple(solver for solver in SCHEDULERS if solver != "lcm")

_DPM = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "thresholding": False,
    "variance_type": None,
}
# What makes the solver what its name says. The rest (betas, prediction type, spacing) is the checkpoint's, whose config
# is often another solver's: DEIS in DreamShaper-7, PNDM in SD1.5, an SDE elsewhere, which would draw global noise.
PINNED: dict[str, dict] = {
    "ddim": {"clip_sample": False, "thresholding": False},
    "dpm": _DPM,
    "euler": {"final_sigmas_type": "zero", "timestep_type": "discrete"},
    "unipc": {
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "lower_order_final": True,
        "final_sigmas_type": "zero",
        "thresholding": False,
        "solver_p": None,
    },
    "dpm_3m": {**_DPM, "solver_order": 3},
    "dpm_sde": {**_DPM, "algorithm_type": "sde-dpmsolver++"},
    "euler_a": {},
    "deis": {
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "solver_order": 2,
        "lower_order_final": True,
        "thresholding": False,
    },
    "heun": {"clip_sample": False},
    "pndm": {"skip_prk_steps": False},
    "plms": {"skip_prk_steps": True},
    "lcm": {"clip_sample": False, "thresholding": False},
}
# What diffusers' class of a solver does not do.
NO_SAMPLE_PREDICTION = ("euler", "euler_a", "pndm", "plms")
NO_ZERO_SNR = ("deis", "heun", "pndm", "plms")
# Why another scheduler is not offered, where one may expect it.
REASONS = {
    "DPMSolverSDEScheduler": "its noise is a Brownian tree of torchsde, grown while it steps; dpm_sde has the same SDE"
}

# Others of diffusers whose noise schedule is one of betas too, so that a solver here can take it over.
KIN = (
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
# Of each of these at most one; they say where between the first and the last noise level the steps are.
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
# Switches of flow matching, which has other noise levels than betas give.
FLOW = ("use_flow_sigmas", "use_dynamic_shifting", "shift_terminal")


def check_noise_schedule(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Check that the solvers here can take over a scheduler's noise schedule.

    kind: the scheduler's class; config: its settings, as JSON or diffusers has them (what is not there is a default).
    Raises: ValueError, which begins with `name`, if they cannot.
    """
    known = tuple(dict.fromkeys((*SCHEDULERS.values(), *KIN)))
    if kind not in known:
        raise ValueError(
            f"{name} must have a noise schedule of betas; {kind} has none that is known here (of {', '.join(known)})"
        )
    for key, allowed in (
        ("prediction_type", PREDICTIONS),
        ("beta_schedule", BETA_SCHEDULES),
        ("timestep_spacing", SPACINGS),
    ):
        if key in config and config[key] not in allowed:
            raise ValueError(f"{key} of {name}'s {kind} must be one of {', '.join(allowed)}, got {config[key]!r}")
    for key in FLOW:
        if config.get(key):
            raise ValueError(f"{key} of {name}'s {kind} must be off: flow matching is not offered, got {config[key]!r}")
    if sum(bool(config.get(key)) for key in SIGMAS) > 1:
        raise ValueError(f"at most one of {', '.join(SIGMAS)} of {name}'s {kind} must be on")
    zero_snr = config.get("rescale_betas_zero_snr") and config.get("timestep_spacing", "leading") != "leading"
    if zero_snr and config.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            f"prediction_type of {name}'s {kind} must be v_prediction or sample where rescale_betas_zero_snr is on: "
            "its first step sees noise alone, and epsilon says nothing about the image; got epsilon"
        )
    _check_betas(name, kind, config)


def _check_betas(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a schedule's betas are no numbers between 0 and 1, or not one a step."""
    steps = train_steps(name, config)
    betas = config.get("trained_betas")
    if betas is not None and not (isinstance(betas, list | tuple) and len(betas) == steps and all(map(_share, betas))):
        raise ValueError(f"trained_betas of {name}'s {kind} must be {steps} numbers between 0 and 1")
    for key in ("beta_start", "beta_end"):
        if key in config and not _share(config[key]):
            raise ValueError(f"{key} of {name}'s {kind} must be a number between 0 and 1, got {config[key]!r}")


def train_steps(name: str, config: Mapping[str, Any]) -> int:
    """Steps of the noise schedule that the model was trained with. Raises ValueError if it is no such number."""
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= 10_000:
        raise ValueError(f"num_train_timesteps of {name}'s scheduler must be from 1 to 10000, got {steps!r}")
    return steps


def _share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def distilled(kind: str, config: Mapping[str, Any]) -> str:
    """Why a model with this scheduler is one that was distilled to few steps without guidance, or "".

    SD-Turbo ships Euler, SDXL-Turbo ancestral Euler, both with trailing timesteps, and so do Lightning models. Models
    with zero terminal SNR have trailing timesteps too, and are guided.
    """
    if kind == "LCMScheduler":
        return "LCMScheduler is of a consistency model"
    if kind == "TCDScheduler":
        return "TCDScheduler is of a trajectory consistency model"
    trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    if trailing and kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        return f"{kind} with trailing timesteps is of Turbo and Lightning models"
    return ""


def check_solver(name: str, solver: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the model `name`, if a solver cannot run on the noise schedule of `config`."""
    if solver in NO_SAMPLE_PREDICTION and config.get("prediction_type") == "sample":
        raise ValueError(f"{solver} of {name} needs prediction_type epsilon or v_prediction, got sample")
    if solver in NO_ZERO_SNR and config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{solver} of {name} has no zero terminal SNR: rescale_betas_zero_snr must be off, got True")


def solver_of(kind: str, config: Mapping[str, Any], offered: Iterable[str]) -> str | None:
    """The solver, of those offered, that a scheduler of that class is: of several the one nearest to its settings."""
    same = [solver for solver in offered if SCHEDULERS[solver] == kind]
    return min(same, key=lambda solver: len(_unpinned(config, solver)), default=None)


def choices(offered: Iterable[str]) -> str:
    """The classes of the solvers offered, each with the names of those that it is."""
    names: dict[str, list[str]] = {}
    for solver in offered:
        names.setdefault(SCHEDULERS[solver], []).append(solver)
    return " or ".join(f"{kind} ({', '.join(solvers)})" for kind, solvers in names.items())


def replaced(name: str, kind: str, config: Mapping[str, Any], solver: str) -> str:
    """What `solver` does otherwise than the scheduler that a checkpoint ships, as a sentence, or ""."""
    if kind != SCHEDULERS[solver]:
        return f"{name} ships {kind}, which is not offered: {solver} ({SCHEDULERS[solver]}) is used instead"
    changes = _unpinned(config, solver)
    if not changes:
        return ""
    ours = ", ".join(f"{key}={pinned(solver, config)[key]!r}" for key in changes)
    theirs = ", ".join(f"{key}={value!r}" for key, value in changes.items())
    return f"{name} ships {kind} with {theirs}, which is not offered: {solver} has {ours}"


def _unpinned(config: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """Settings of a scheduler of the solver's own class that the solver has otherwise."""
    return {key: config[key] for key, value in pinned(solver, config).items() if key in config and config[key] != value}


def pinned(solver: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a scheduler of `config` the solver of that name."""
    values = dict(PINNED[solver])
    if solver in ("ddim", "pndm", "plms") and config.get("timestep_spacing") == "linspace":
        # diffusers' DDIM and PNDM always land 1000/T below t: with linspace that is not the next timestep, and the
        # denoiser would be told less noise than there is.
        values["timestep_spacing"] = "trailing"
    return values


def kept_solver(name: str, scheduler: Any, offered: Iterable[str]) -> str:
    """The solver, of those offered, that a pipeline's scheduler is: with it a dense plan gives the pipeline's bits.

    Raises: ValueError, which says what is offered, if it is none, or has settings that the solver has otherwise.
    """
    kind, config, offered = type(scheduler).__name__, scheduler.config, tuple(offered)
    do = "set pipe.scheduler = CLASS.from_config(pipe.scheduler.config, ...)"
    solver = solver_of(kind, config, offered)
    if solver is None or not type(scheduler).__module__.startswith("diffusers."):
        why = f" ({REASONS[kind]})" if kind in REASONS else ""
        raise ValueError(f"{kind}, {name}'s scheduler, is not offered{why}: expected {choices(offered)}; {do}")
    if changes := _unpinned(config, solver):
        must = ", ".join(f"{key} {pinned(solver, config)[key]!r}, got {value!r}" for key, value in changes.items())
        raise ValueError(f"{name}'s {kind} must have, to be {solver}, {must}; {do}")
    check_solver(name, solver, config)
    return solver


def check_scheduler(spec: Spec, scheduler: Any, solver: str | None = None) -> None:
    """Check, before sampling, that a pipeline's scheduler is not one that was set by hand and would be ignored.

    scheduler: `pipe.scheduler`; its noise schedule is used, whatever its class. solver: what the caller asked for, None
    for the backbone's own. A few look-ups: call it for every batch.

    Raises: ValueError if no solver was asked for and the scheduler's class or settings are neither those that were
        loaded nor those of the backbone's solver; if it is of a distilled model and the backbone is not; if its noise
        schedule cannot be used.
    """
    from postdiff.models.families import FAMILIES

    kind, config, offered = type(scheduler).__name__, scheduler.config, FAMILIES[spec.family].solvers
    loaded, name = spec.scheduler.get("_class_name"), solver or spec.solver
    if kind != loaded and "lcm" not in offered and (reason := distilled(kind, config)):
        raise ValueError(f"the pipeline's scheduler was changed to {kind}, but {spec.name} runs guided: {reason}")
    check_noise_schedule(spec.name, kind, config)
    if solver is not None or loaded is None:
        return
    if kind not in (loaded, SCHEDULERS[name]):
        same = solver_of(kind, config, offered)
        do = f"pass solver={same!r}" if same else f"pass solver= one of {', '.join(offered)}, which are offered"
        raise ValueError(f"the pipeline's scheduler was changed from {loaded} to {kind}: {do}")
    if kind == SCHEDULERS[name]:
        changed = {key: value for key, value in _unpinned(config, name).items() if value != spec.scheduler.get(key)}
        if changed:
            expected = ", ".join(
                f"{key} {pinned(name, config)[key]!r}, got {value!r}" for key, value in changed.items()
            )
            raise ValueError(f"the pipeline's {kind} must have, to be {name}, {expected}; or pass solver={name!r}")
