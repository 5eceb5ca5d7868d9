"""A report as one HTML file that loads nothing: templates, pictures as inline SVG, and the same as files beside it."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from garda.core import files
from garda.evaluation.tables import Wide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
SPECIAL |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


@dataclass(frozen=True)
class Picture:
    """A picture with the numbers that it shows.

    Attributes:
        name: of its files, without an ending.
        title: what it shows.
        figure: as drawn.
        heading: names of the numbers' columns.
        rows: the numbers.
    """

    name: str
    title: str
    figure: "Figure"
    heading: Sequence[str] = ()
    rows: Sequence[Iterable[object]] = ()

    @property
    def svg(self) -> Markup:
        """The picture for an HTML page: text stays text, nothing is referred to outside of it."""
        svg = _svg(self.figure, self.name).partition("<svg")[2]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r'<(g|text) id="[^"]*"', r"<\1", svg)  # several pictures have groups of one name
        return Markup('<svg role="img"') + Markup(svg)


def _svg(figure: "Figure", salt: str) -> str:
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


@cache
def _templates() -> Environment:
    loader = PackageLoader("garda.evaluation")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: Any) -> str:
    """The page of a template, such as ``auditor.html``; what is put in is escaped."""
    return _templates().get_template(template).render(**values)


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Write a page; a private one can be read by its owner alone from its first byte on.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    with files.replacing(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_beside(folder: Path, pictures: Iterable[Picture], tables: Iterable[tuple[str, Wide]]) -> None:
    """Write every picture as SVG, PDF and CSV, and every named table as LaTeX (package booktabs).

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    for picture in pictures:
        files.write_csv(folder / f"{picture.name}.csv", picture.heading, picture.rows)
        with files.replacing(folder / f"{picture.name}.svg") as temporary:
            temporary.write_text(_svg(picture.figure, picture.name), encoding="utf-8")
        with files.replacing(folder / f"{picture.name}.pdf") as temporary:
            picture.figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    for name, table in tables:
        with files.replacing(folder / f"{name}.tex") as temporary:
            temporary.write_text(latex(table), encoding="utf-8")


def latex(table: Wide) -> str:
    r"""A table for LaTeX.

    >>> print(latex(Wide("Dice of 95 %", None, ("row", "a_b"), [("garda", "0.9\n0.8–1.0")], words=1)), end="")
    % Dice of 95 %
    \begin{tabular}{lr}
    \toprule
    row & a\_b \\
    \midrule
    garda & 0.9 0.8--1.0 \\
    \bottomrule
    \end{tabular}
    """
    columns = "l" * table.words + "r" * (len(table.heading) - table.words)
    heading, *rows = (
        " & ".join("".join(SPECIAL.get(sign, sign) for sign in " ".join(cell.split())) for cell in row) + r" \\"
        for row in (table.heading, *table.rows)
    )
    lines = [f"% {table.title}", *([f"% {' '.join(table.note.split())}"] if table.note else [])]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])
