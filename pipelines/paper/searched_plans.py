"""Plans that a method must learn from the model (DiTFastAttn's schedule, CA-ToMe's share of merged tokens): searched on
a few calibration prompts that no table is made of, and kept in the store."""

import json
import sys
from collections.abc import Sequence

from tqdm import tqdm

from pipelines.data import prompts
from pipelines.engine import records
from pipelines.engine.cluster import DamagedError
from pipelines.engine.identity import digest
from pipelines.engine.store import Store
from pipelines.paper import presets
from pipelines.stages.generation import Configuration
from postdiff import planfile
from postdiff.plan import Plan
from postdiff.terminal import one_line

CALIBRATION = 8  # prompts
FORMAT = 2  # of what is kept: a search of another one is made anew


def calibration_prompts(source: str, calibration: str | None) -> list[str]:
    """The first of `calibration`, a file; else of the train split of `source`, a procedural data set. Raises ValueError
    where it is none and there is no file."""
    if calibration:
        return [prompt.text for prompt in prompts.load_prompts(calibration, CALIBRATION)]
    if source not in prompts.DRAWN:
        raise ValueError(f"--prompts {source} needs --calibration, a file of other prompts ({CALIBRATION} are read)")
    return [scene.caption for scene in prompts.DRAWN[source][0].distinct("train", CALIBRATION)]


def find(
    names: Sequence[str], of: Configuration, store: Store, captions: Sequence[str], steps: int = 20
) -> dict[str, Plan]:
    """{preset: plan} of the presets `names`, which need the model, under `of`'s model, guidance, solver, size and
    arithmetic."""
    found: dict[str, Plan] = {}
    backbone = None
    for name in names:
        preset = presets.PRESETS[name]
        asked = [FORMAT, preset.method, preset.settings, of.weights, of.arithmetic, of.settings, *captions]
        file = f"plans/{name}-T{steps}-{digest(asked)}.json"
        plan = _kept(store, file)
        if plan is None:
            backbone = backbone or of.load()
            with tqdm(total=steps, desc=name, unit="step") as bar:
                seeds = list(range(len(captions)))
                plan = presets.find(
                    name, backbone, captions, seeds, steps, on_step=lambda i: bar.update(), **of.settings
                )  # fmt: skip
            told = json.loads(planfile.to_json(plan, backbone=of.backbone, prompts=list(captions)))
            store.put(file, records.to_json(told, file))
        found[name] = plan
    return found


def _kept(store: Store, file: str) -> Plan | None:
    """The plan that was found before. One that is not what it was is set aside with a line."""
    try:
        return planfile.from_json(json.dumps(store.record(file)), file)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        store.set_aside(file)
        tqdm.write(one_line(f"{error.name} was damaged: set aside as .bad, and searched again"), file=sys.stderr)
        return None
