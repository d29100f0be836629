"""The fine-tuned models of Table 7: made here of mini models, handed in of real ones."""

from dataclasses import replace
from pathlib import Path

from pipelines.data import pairs
from pipelines.engine.identity import digest
from pipelines.engine.urls import clean, local_path
from pipelines.paper import exhibits
from pipelines.paper.datasets import Options
from pipelines.paper.exhibit import Exhibit, before
from pipelines.training.finetune_settings import Settings
from postdiff.models.checkpoints import RUN

EXPOSED = {
    "shapes": ", on mini models that saw low resolution in training, as SD1.5 did not",
    "scenes": "; of the mini models mini-bk-sdm-scenes saw low resolution in training",
}


def settings(model: str) -> Settings:
    """App. F's beta and s; of its 15,000 steps of 128 pairs 300 of 32, with a learning rate to match."""
    (exhibit,) = (exhibit for exhibit in exhibits.gather(["all"], {}) if model in exhibit.tuned)
    beta, s = exhibit.tuned[model]
    return Settings(beta=beta, s=s, steps=300, batch=32, lr=2e-4, warm_up=20, ema=0.98)


def folder(given: Options, model: str) -> Path:
    """Where `model` lies after fine-tuning: of a mini model beside the store, and made here."""
    if given.mini:
        out = local_path(given.out)
        if out is None:
            raise ValueError(
                f"Table 7 fine-tunes mini models into --out, which must be a local folder, got {clean(given.out)}"
            )
        tuned = digest(repr(settings(model)).encode(), 8)
        return Path(out) / "finetuned" / f"{exhibits.MINI[given.drawn][model]}-{tuned}"
    named = dict(pair.partition("=")[::2] for pair in given.finetuned)
    if not (Path(named.get(model, "")) / RUN).is_file():
        raise ValueError(
            f"Table 7 needs --finetuned {model}=FOLDER, a folder that jobs/finetune.py made; got {named.get(model)!r}"
        )
    return Path(named[model]).absolute()


def make(given: Options, names: dict[str, str], folders: dict[str, Path]) -> dict[str, str]:
    """{model: its folder} of the fine-tuned models; those of mini models are made if missing."""
    for model, folder in folders.items():
        if given.mini and not (folder / RUN).exists():
            from pipelines.training import finetuning  # with torch

            finetuning.make(names[model], pairs.open_pairs(given.drawn), settings(before(model)), folder)
    return {model: str(folder) for model, folder in folders.items()}


def with_note(given: Options, exhibit: Exhibit) -> Exhibit:
    """An exhibit with how its mini models were fine-tuned in its note."""
    if not exhibit.tuned or not given.mini:
        return exhibit
    few = settings(exhibit.models[0])
    note = (
        f"{exhibit.note}; here {few.steps} steps of {few.batch} pairs of {given.drawn.capitalize()}, learning rate "
        f"{few.lr:g}{EXPOSED[given.drawn]}"
    )
    return replace(exhibit, note=note)
