"""The whole reproduction: what is prepared before anything is drawn, and the order in which all is made."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines import evaluation
from pipelines.data.prompts import load_prompts
from pipelines.engine.cluster import Stopped
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.paper import (
    datasets,
    dry_run,
    exhibits,
    looks,
    published,
    replication,
    reproduction,
    searched_plans,
    tuning,
)
from pipelines.paper.datasets import Options
from pipelines.paper.exhibit import Exhibit, before
from pipelines.paper.looks import Looks
from pipelines.report import document
from pipelines.stages import latency, worker
from postdiff import methods
from postdiff.models.checkpoints import resolve
from postdiff.plan import Plan
from postdiff.terminal import doing


@dataclass(frozen=True)
class Job:
    """What a reproduction needs before anything is drawn. names: the paper's model -> the one that runs. tuned: the
    folder of each fine-tuned one. options, protocols: of each data set of the paper. looks: at its claims. gpu:
    latencies and searches have a GPU of the cluster to themselves. captions: of the searches."""

    given: Options
    names: dict[str, str]
    tuned: dict[str, Path]
    options: dict[str, Options]
    protocols: dict[str, Protocol]
    looks: dict[str, Looks]
    gpu: bool
    captions: list[str]


def prepare(given: Options, chosen: list[Exhibit], names: dict[str, str]) -> Job:
    """Raises ValueError or OSError for whatever only later stages would meet."""
    tuned = {model: tuning.folder(given, before(model)) for model in names if model != before(model)}
    settled = {dataset: datasets.of_dataset(given, dataset) for dataset in dict.fromkeys(e.dataset for e in chosen)}
    for exhibit in chosen:  # raises for a solver or a guidance that a model cannot have
        for model, plan in {cell.model: cell.plan for cell in exhibit.cells}.items():
            evaluation.configure(settled[exhibit.dataset], names[model], plan)
    protocols = {dataset: evaluation.protocol(own) for dataset, own in settled.items()}
    if given.against:
        first = replication.read(given.against, names)
        of_claims = next(e.dataset for e in chosen if e.claims)
        replication.check(first, protocols[of_claims].facts()["protocol"], settled[of_claims])
    if published.GALLERY in protocols:  # a few images: to be seen
        protocols[published.GALLERY] = replace(protocols[published.GALLERY], reference=())
    searched = any(exhibit.searches for exhibit in chosen)
    captions = searched_plans.calibration_prompts(given.prompts, given.calibration) if searched else []
    Store(given.out).check_writable()  # of the report: a data set of its own may be below
    asked = {exhibit.dataset for exhibit in chosen if exhibit.claims}
    planned = {
        dataset: looks.planned(own if dataset in asked else replace(own, up_to=None), protocols[dataset])
        for dataset, own in settled.items()
    }
    for at in planned.values():
        for folder, protocol in zip(at.folders, at.protocols, strict=True):
            evaluation.check_store(folder, protocol)
    from pipelines.engine import workers  # with Ray, which a job that refuses does not need

    gpu = workers.cluster_has_gpus(given.gpus_per_worker)
    if gpu or any(resolve(name).revision for name in names.values()):  # else Ray starts after the latencies
        evaluation.connect(given, list(names.values()))
    return Job(given, names, tuned, settled, protocols, planned, gpu, captions)


def run(given: Options) -> None:
    """From options to exhibits and report. Raises ValueError or OSError before any work for what does not fit."""
    chosen = exhibits.gather(list(given.exhibits), {}, given.all_steps)  # raises for one that is not here
    models = dict.fromkeys(model for exhibit in chosen for model in exhibit.models)
    names = exhibits.players(given.drawn, models) if given.mini else {model: before(model) for model in models}
    if given.dry_run:
        return print_dry_run(given, chosen, names)
    job = prepare(given, chosen, names)
    from pipelines.engine import workers

    stores = {dataset: evaluation.claim_store(own.out, job.protocols[dataset]) for dataset, own in job.options.items()}
    main = Store(given.out)  # of what is of no data set alone
    with doing("fine-tuning the models of Table 7"):
        names = job.names | tuning.make(given, job.names, job.tuned)
    with doing("searching the plans of Tables 3 and 4"):
        searched = search(job, names, chosen, main)
    chosen = [tuning.with_note(given, one) for one in exhibits.gather(list(given.exhibits), searched, given.all_steps)]
    with doing("measuring latencies"):
        own = next(iter(job.options.values()))
        times = reproduction.time_plans(main, chosen, names, own, job.gpu) if given.rounds else {}
    sections, answers = [], []
    facts: dict[str, str] = {}
    for dataset, store in stores.items():
        group = [exhibit for exhibit in chosen if exhibit.dataset == dataset]
        of_group = job.options[dataset], group, names, store, job.protocols[dataset], times, job.looks[dataset]
        make = partial(reproduction.make, *of_group)
        made, own_facts, answered = worker.mending(store, make)
        sections += made
        answers += answered
        whose = "" if store.url == main.url else f"{dataset}: "
        facts |= {f"{whose}{key}": value for key, value in own_facts.items()}
    counts = ", ".join(f"{len(of_it.prompts)} prompts ({dataset}'s role)" for dataset, of_it in job.protocols.items())
    where = ", ".join({took.machine for took in times.values()}) or "nothing: none of these exhibits has seconds"
    facts = {"run": f"{len(chosen)} exhibits, {counts}"} | facts
    facts["latency"] = "not measured (--rounds 0)"
    if given.rounds:
        facts["latency"] = (
            f"one image, decoding included, text encoded before; {given.rounds} rounds after warming up, on {where}; "
            "seconds are the first plan's, times the median of each round's share of it"
        )
    facts |= {"machine": workers.machine(), "commit": document.commit()}
    few = {
        dataset: len(protocol.prompts) for dataset, protocol in job.protocols.items() if dataset != published.GALLERY
    }
    reproduction.publish(main, given, sections, answers, facts, reproduction.warn_of_few(few))
    whole = {exhibit.key for exhibit, *_ in sections}
    check_whole(facts, [exhibit.key for exhibit in chosen if exhibit.key not in whole])


def check_whole(facts: dict[str, str], left_out: list[str]) -> None:
    """Raise Stopped if something is missing, as the report's `facts` tell. left_out: exhibits that were not made."""
    if lacking := [why for key, why in facts.items() if key.endswith("missing")]:
        exhibits_lost = f"not made for want of configurations: {', '.join(left_out)}; " if left_out else ""
        raise Stopped(f"{exhibits_lost}missing: {'; '.join(lacking)}")


def search(job: Job, names: dict[str, str], chosen: list[Exhibit], store: Store) -> dict[str, Plan]:
    """The plans that Tables 3 and 4 must search, {preset: plan}."""
    from pipelines.engine import workers

    searched: dict[str, Plan] = {}
    for exhibit in chosen:
        if exhibit.searches:
            own = job.options[exhibit.dataset]
            configuration = evaluation.configure(own, names[exhibit.models[0]], methods.dense())
            task = exhibit.searches, configuration, store, job.captions
            searched |= workers.alone(searched_plans.find, *task) if job.gpu else searched_plans.find(*task)
    return searched


def print_dry_run(given: Options, chosen: list[Exhibit], names: dict[str, str]) -> None:
    groups, read = dry_run.gather(given, chosen)
    of_claims = [group for group in groups if any(exhibit.claims for exhibit in group.exhibits)]
    for group in of_claims:
        if given.up_to is not None and (given.mini or datasets.has_captions(given, group.dataset)):
            own = datasets.of_dataset(given, group.dataset)
            looks.drawn(own, load_prompts(own.prompts, own.limit, own.shuffled, own.draw))  # raises as the run would
    print(*read, *filter(None, (looks.announcement(given, group.prompts) for group in of_claims)), sep="\n")
    print(dry_run.text(groups, names, not given.mini, given.price, latency.measured(Store(given.out))))
