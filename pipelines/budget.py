"""What a reproduction would take, before anything runs: runs, images, MACs, GPU hours, bytes."""

from dataclasses import dataclass

from pipelines import reproduction
from pipelines.exhibits import Exhibit
from postdiff import published
from postdiff.backbones import resolve

# COCO 2014's validation captions, as is usual (the paper does not say), and App. E.
PROMPTS = {"coco2014": 30_000, "imagenet21k_recaption": 10_000, "appendix_j": 24}
GPUS = ("A5000", "H100")
BYTES_A_PIXEL = 1.2  # lossless WebP


@dataclass(frozen=True)
class Group:
    """The exhibits of one data set, and how many of its prompts each of their runs draws."""

    dataset: str
    prompts: int
    exhibits: tuple[Exhibit, ...]


def throughput(model: str, gpu: str) -> float:
    """T MACs (the paper's rule) a second that the paper's own latency of the dense model means on `gpu`; for a model
    that the paper did not time there, scaled as PixArt-alpha, which it timed on both; of Table 7's U-Nets, SD1.5's."""
    dense = {line.model: line for line in published.lines("table2") if line.method == "dense"}  # the last: most steps
    of = dense.get(model, dense["sd15"])
    speed = of.values["tmacs"] / of.values["latency_s_a5000"]
    faster = dense["pixart"].values["latency_s_a5000"] / next(
        line.values["latency_s_h100"] for line in published.lines("table4") if line.method == "dense"
    )
    return speed if gpu == "A5000" else speed * faster


def text(groups: list[Group], names: dict[str, str], real: bool, price: float | None = None) -> str:
    """names: the paper's model -> the one that runs. real: hours of GPUs too, and with `price` what they cost."""
    lines, hours, size, counts = [], dict.fromkeys(GPUS, 0.0), 0.0, [0, 0, 0]
    for group in groups:
        runs = reproduction.distinct(group.exhibits)
        of = {model: name for model, name in names.items() if any(model in e.models for e in group.exhibits)}
        prices = reproduction.count_costs(runs, of)
        cells = sum(len(exhibit.runs) for exhibit in group.exhibits)
        counts = [a + b for a, b in zip(counts, (cells, len(runs), len(runs) * group.prompts), strict=True)]
        lines.append(f"{group.dataset}: {cells} cells, {len(runs)} different runs of {group.prompts} prompts")
        lines += [f"  {e.key:<8}{len(e.runs):>4} cells  {e.title}" for e in group.exhibits]
        for model, name in of.items():
            own = [prices[key] for key in runs if key[0] == model]
            macs = group.prompts * sum(one.macs for one in own) / 1e12
            size += group.prompts * len(own) * resolve(name).size ** 2 * BYTES_A_PIXEL / 1e9
            took = {gpu: macs / throughput(model, gpu) / 3600 for gpu in GPUS} if real else {}
            hours = {gpu: hours[gpu] + took.get(gpu, 0.0) for gpu in GPUS}
            told = "".join(f"{value:9.0f} {gpu} hours" for gpu, value in took.items())
            lines.append(f"  {name:<12}{len(own):>4} runs{macs / 1e3:14.3f} P MACs{told}")
    first = f"{counts[0]} cells, {counts[1]} different runs, {counts[2]} images; MACs by the paper's rule"
    last = [f"store: about {size:.1f} GB of images ({BYTES_A_PIXEL} bytes a pixel, lossless WebP)"]
    if real:
        bill = f", or {hours['H100'] * price:.0f} at {price:g} an H100 hour" if price else ""
        last.append(f"in all {hours['A5000']:.0f} hours of an A5000 or {hours['H100']:.0f} of an H100{bill}")
        last.append(
            "(from the paper's latencies of single images: batches take less; what is searched counts as dense)"
        )
    return "\n".join([first, *lines, *last])
