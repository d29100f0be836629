"""What `mkdocs.yml` builds beside docs/pages: the README by sections, CONTRIBUTING.md, docs/ and jobs/results.

A page may say {{ README }} (its beginning, up to the commands), {{ README: SECTION }} and {{ method: NAME SETTINGS }}.
Links stand as GitHub reads them, relative to the file in the repository. Here one to a page is led to that page, and
one to a file that is no page becomes its name; one to nothing is left as it is, which `mkdocs build --strict` refuses.
"""

import inspect
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import postdiff  # noqa: E402
from postdiff import methods  # noqa: E402
from postdiff.models.checkpoints import resolve  # noqa: E402
from postdiff.picture import as_png  # noqa: E402
from postdiff.plan import Plan  # noqa: E402

NOT_PRICED = {"ca_tome": "What it saves depends on the image: `postdiff search ca_tome` measures it on prompts."}
PRICED_ON = {"duca": "pixart"}  # of transformers alone; all others on sd15
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)|^\[([^\]]+)\]: (\S+?)(#\S*)?$", re.MULTILINE)
DIRECTIVE = re.compile(r"\{\{ (README|method)(?:: (.+?))? \}\}")


@cache
def places() -> dict[str, str]:
    """{file of the repository: its place in the site}."""
    docs = [file for file in sorted((ROOT / "docs").glob("*")) if file.suffix in (".md", ".ipynb")]
    pages = {f"docs/pages/{file.name}": file.name for file in sorted((ROOT / "docs/pages").glob("*.md"))}
    kept = [file for file in sorted((ROOT / "jobs/results").rglob("*")) if file.suffix in (".md", ".csv", ".png")]
    results = {str(file.relative_to(ROOT)): str(file.relative_to(ROOT / "jobs")) for file in kept}
    return {
        "README.md": "index.md",
        "CONTRIBUTING.md": "contributing.md",
        **{f"docs/{file.name}": file.name for file in docs},
        **pages,
        **results,
        "jobs/results/README.md": "results/index.md",
    }


def on_config(config):
    """The navigation: what is written for the site first, then what else there is."""
    others = sorted(place for source, place in places().items() if re.fullmatch(r"docs/[\w-]+\.md", source))
    exhibits = [place for place in places().values() if re.fullmatch(r"results/(paper/)?[\w-]+\.md", place)]
    order = sorted(
        exhibits, key=lambda place: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)]
    )
    config.nav = [
        {"Start": "index.md"},
        {"Tutorial": "tutorial.md"},
        {"Commands": "commands.md"},
        {"Methods": "methods.md"},
        {"Models and data": "models.md"},
        {"Python interface": "api.md"},
        *others,
        {"Where to add what": "contributing.md"},
        {
            "Results": [
                "results/index.md",
                *({Path(place).stem: place} for place in order if place != "results/index.md"),
            ]
        },
    ]
    return config


def on_files(files, config):
    there = {file.src_uri for file in files}
    for source, place in places().items():
        if place not in there:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for kind, words in directives():
        if kind == "method":
            files.append(File.generated(config, f"pictures/{slug(words)}.png", content=as_png(plan_of(words))))
    return files


def on_page_markdown(markdown, page, config, files):
    place = page.file.src_uri
    source = next(name for name, at in reversed(places().items()) if at == place)  # of index.md: its own page
    markdown = linked(markdown, source, place)
    return DIRECTIVE.sub(lambda found: expanded(found[1], found[2] or "", place), markdown)


def linked(markdown: str, source: str, place: str) -> str:
    """`markdown` of the file `source`, with its links as they are from `place` in the site."""

    def target(path: str) -> str | None:
        """The path from `place`; None for a file that is no page, and `path` itself for what is no file."""
        if not path or re.match(r"[a-z]+:|/", path):
            return path
        repository_path = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if repository_path in places():
            return os.path.relpath(places()[repository_path], os.path.dirname(place) or ".")
        return None if (ROOT / repository_path).exists() else path

    def replaced(link: re.Match) -> str:
        mark, words, path, anchor, key, defined, defined_anchor = link.groups()
        to = target(path if key is None else defined)
        if key is not None:
            return f"[{key}]: {to}{defined_anchor or ''}" if to is not None else ""
        return f"{mark}[{words}]({to}{anchor or ''})" if to is not None else words if "`" in words else f"`{words}`"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def expanded(kind: str, words: str, place: str) -> str:
    """What a directive stands for, on the page at `place`."""
    return of_readme(words, place) if kind == "README" else of_method(words, place)


@cache
def readme_sections() -> dict[str, str]:
    """{heading: its text}; "": what stands above the commands."""
    text = (ROOT / "README.md").read_text()
    code = re.sub(r"^```.*?^```$", lambda found: found[0].replace("\n#", "\n\0"), text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^## (.+)\n", code, flags=re.MULTILINE)
    sections = {name: body.replace("\0", "#") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {"": text[: text.index("\n## Commands\n")], **sections}


def of_readme(section: str, place: str) -> str:
    """A section of the README, its headings a level up, with the targets of its links."""
    if section not in readme_sections():
        raise ValueError(f"the README must have a section {section!r}, got {', '.join(readme_sections())}")
    text = readme_sections()[section]
    if section:
        text = re.sub(r"^###", "##", text, flags=re.MULTILINE)
    defined = "\n".join(re.findall(r"^\[[^\]]+\]: \S+$", (ROOT / "README.md").read_text(), re.MULTILINE))
    return linked(f"{text}\n\n{defined}\n", "README.md", place)


def plan_of(words: str) -> Plan:
    """The plan of `NAME KEY=VALUE ...`; beta and s of a method that has none make it smaller first."""
    name, *settings = words.split()
    given = {key: float(value) for key, value in (setting.split("=") for setting in settings)}
    if not given.keys() - {"beta", "s"} and given and "beta" not in methods.settings_of(name):
        return postdiff.low_first(methods.METHODS[name](), **given)
    return methods.METHODS[name](**given)


def slug(words: str) -> str:
    return re.sub(r"[^\w.]+", "-", words)


@cache
def shares() -> dict[str, str]:
    """{words of a directive: what its plan costs, as a share of 20 dense steps}: all of a model priced at once."""
    words = [words for kind, words in directives() if kind == "method" and words not in NOT_PRICED]
    shares = dict(NOT_PRICED)
    for model in dict.fromkeys(map(priced_on, words)):
        own = [word for word in words if priced_on(word) == model]
        dense, *prices = postdiff.costs([methods.dense(20), *map(plan_of, own)], resolve(model))
        for word, price in zip(own, prices, strict=True):
            shares[word] = f"{price.flops / dense.flops:.0%} of the FLOPs of 20 dense steps of {model}."
    return shares


def priced_on(words: str) -> str:
    return PRICED_ON.get(words.split()[0], "sd15")


def directives() -> list[tuple[str, str]]:
    """(kind, words) of all directives of all pages."""
    return [
        found for page in sorted((ROOT / "docs/pages").glob("*.md")) for found in DIRECTIVE.findall(page.read_text())
    ]


def of_method(words: str, place: str) -> str:
    """The picture of a plan, what it costs, and the method's settings, as its function says them."""
    name = words.split()[0]
    picture = os.path.relpath(f"pictures/{slug(words)}.png", os.path.dirname(place) or ".")
    lines = [f"![the plan of {words}]({picture}){{ .plan }}\n", shares()[words]]
    if words == name:
        lines += ["\n| setting | default | |", "| --- | --- | --- |"]
        for parameter in inspect.signature(methods.METHODS[name], eval_str=True).parameters.values():
            meaning = told(parameter.annotation).replace("|", "\\|")
            lines.append(f"| `{parameter.name}` | `{parameter.default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def told(annotation: Any) -> str:
    """What a setting means: the words of its annotation."""
    return next((part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, str)), "")
