"""What a reproduction would take, before anything runs: runs, images, MACs, GPU hours, bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tqdm import tqdm

from pipelines.data import prompts
from pipelines.paper import datasets, published, reproduction
from pipelines.paper.datasets import DATASETS, Options
from pipelines.paper.exhibit import TUNED, Exhibit
from postdiff.models.checkpoints import resolve

GPUS = ("A5000", "H100")
BYTES_A_PIXEL = 1.2  # lossless WebP


@dataclass(frozen=True)
class Group:
    """The exhibits of one data set, and how many of its prompts each of their runs draws."""

    dataset: str
    prompts: int
    exhibits: tuple[Exhibit, ...]


def gather(given: Options, chosen: Sequence[Exhibit]) -> tuple[list[Group], list[str]]:
    """The exhibits by data set under the options of jobs/reproduce.py, and a line each: which prompts were read. Where
    real models have no file of captions yet, the paper's number of them is taken.

    Raises: ValueError or OSError for a file that is given and cannot be read.
    """
    groups, lines = [], []
    for dataset in dict.fromkeys(exhibit.dataset for exhibit in chosen):
        most = DATASETS[dataset].size
        if not given.mini and not datasets.has_captions(given, dataset):
            n = max(4, round(given.scale * min(given.limit or most, most)))
            lines.append(f"{dataset}: no file of captions is given: counted for {n} of the paper's {most}")
        else:
            own = datasets.of_dataset(given, dataset)
            listed = prompts.load_prompts(own.prompts, own.limit, own.shuffled, own.draw)
            n = len(listed)
            lines.append(f"{dataset}: read {prompts.describe(listed)} (of {own.prompts})")
        groups.append(Group(dataset, n, tuple(e for e in chosen if e.dataset == dataset)))
    return groups, lines


def throughput(model: str, gpu: str) -> float:
    """T MACs (the paper's rule) a second that the paper's own latency of the dense model means on `gpu`; for a model
    that the paper did not time there, scaled as PixArt-alpha, which it timed on both; of Table 7's U-Nets, SD1.5's."""
    dense = {line.model: line for line in published.lines("table2") if line.method == "dense"}  # the last: most steps
    timed = dense.get(model, dense["sd15"])
    speed = timed.values["tmacs"] / timed.values["latency_s_a5000"]
    faster = dense["pixart"].values["latency_s_a5000"] / next(
        line.values["latency_s_h100"] for line in published.lines("table4") if line.method == "dense"
    )
    return speed if gpu == "A5000" else speed * faster


def hours(prices: Mapping[str, int], prompts: int, seconds: Mapping[str, float]) -> float | None:
    """Hours of `prompts` images of every plan. prices: {plan id: MACs}; seconds: {plan id: of one image, measured}.

    What was not timed takes as long for its MACs as the costliest plan that was; None if none of them was.
    """
    timed = [plan for plan in prices if plan in seconds]
    if not timed:
        return None
    first = max(timed, key=lambda plan: prices[plan])
    pace = seconds[first] / prices[first]
    return prompts * sum(seconds.get(plan, macs * pace) for plan, macs in prices.items()) / 3600


def text(
    groups: Sequence[Group],
    names: dict[str, str],
    real: bool,
    price: float | None = None,
    measured: Mapping[str, tuple[str, Mapping[str, float]]] | None = None,
) -> str:
    """names: the paper's model -> the one that runs. real: hours of GPUs too, and with `price` what they cost.
    measured: {the one that runs: (machine, {plan id: seconds an image})}, for hours of that machine."""
    lines, totals, size, counts = [], dict.fromkeys(GPUS, 0.0), 0.0, [0, 0, 0]
    here: dict[str, float] = {}
    bar = tqdm(total=sum(len(reproduction.distinct(group.exhibits)) for group in groups), desc="counting costs",
               unit="run", mininterval=0.5, leave=False)  # fmt: skip
    for group in groups:
        different = reproduction.distinct(group.exhibits)
        models = {model: name for model, name in names.items() if any(model in e.models for e in group.exhibits)}
        prices: dict[reproduction.Key, reproduction.Price] = {}
        for model, name in models.items():
            prices |= reproduction.count_costs(different, {model: name})
            bar.update(sum(m == model for m, _ in different))
        cells = sum(len(exhibit.cells) for exhibit in group.exhibits)
        counts = [a + b for a, b in zip(counts, (cells, len(different), len(different) * group.prompts), strict=True)]
        lines.append(f"{group.dataset}: {cells} cells, {len(different)} different runs of {group.prompts} prompts")
        lines += [f"  {e.key:<8}{len(e.cells):>4} cells  {e.title}" for e in group.exhibits]
        for model, name in models.items():
            own = {plan: prices[m, plan].here.macs_paper for m, plan in different if m == model}
            macs = group.prompts * sum(own.values()) / 1e12
            size += group.prompts * len(own) * prod(resolve(name).size) * BYTES_A_PIXEL / 1e9
            took = {gpu: macs / throughput(model, gpu) / 3600 for gpu in GPUS} if real else {}
            for gpu, value in took.items():
                totals[gpu] += value
            where, seconds = (measured or {}).get(name, ("", {}))
            if (timed := hours(own, group.prompts, seconds)) is not None:
                here[where] = here.get(where, 0.0) + timed
                took[f"measured ({where})"] = timed
            by_gpu = "".join(f"{value:9.1f} hours {gpu}" for gpu, value in took.items())
            label = name + (TUNED if model.endswith(TUNED) else "")
            lines.append(f"  {label:<25}{len(own):>4} runs{macs / 1e3:14.3f} P MACs{by_gpu}")
    bar.close()
    first = f"{counts[0]} cells, {counts[1]} different runs, {counts[2]} images; MACs by the paper's rule"
    last = [f"store: about {size:.1f} GB of images ({BYTES_A_PIXEL} bytes a pixel, lossless WebP)"]
    if real:
        bill = f", or {totals['H100'] * price:.0f} at {price:g} an H100 hour" if price else ""
        last.append(f"in all {totals['A5000']:.0f} hours of an A5000 or {totals['H100']:.0f} of an H100{bill}")
        last.append(
            "(from the paper's latencies of single images: batches take less; what is searched counts as dense)"
        )
        if any(exhibit.tuned for group in groups for exhibit in group.exhibits):
            last.append("and Table 7's fine-tuning: about one day of an H200 for SD1.5, by App. F")
    last += [
        f"in all {value:.1f} hours of {where}, as measured there (--out has its latencies), one image at a time"
        for where, value in here.items()
    ]
    return "\n".join([first, *lines, *last])
