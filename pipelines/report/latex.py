"""Tables as LaTeX."""

import re
from collections.abc import Sequence


def to_latex(
    caption: str, header: Sequence[str], lines: Sequence[Sequence[str]], footnotes: Sequence[str], picture: str = ""
) -> str:
    """A booktabs table as wide as the page (packages booktabs, graphicx), after `picture`, a file. All text is data,
    and escaped. caption: without the exhibit's number, which LaTeX gives."""
    rows = [" & ".join(map(escape_latex, line)) + r" \\" for line in lines]
    notes = [rf"\par {i}. {escape_latex(note)}" for i, note in enumerate(footnotes, 1)]
    shown = [r"\begin{figure}", r"\centering", rf"\includegraphics[width=\textwidth]{{{picture}}}",
             rf"\caption{{{escape_latex(caption)}}}", r"\end{figure}"]  # fmt: skip
    body = [
        *(shown if picture else []),
        r"\begin{table}", r"\centering\small", rf"\caption{{{escape_latex(caption)}}}",
        r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}}",
        *notes, r"\end{table}",
    ]  # fmt: skip
    return "\n".join(body) + "\n"


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return re.sub(r"[\\~^–&%$#_{}]", lambda mark: special.get(mark[0], "\\" + mark[0]), text)
