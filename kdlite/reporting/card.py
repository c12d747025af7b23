"""The figures of a run in the model card of its files: those of the page, in Markdown.

Reference:
    Mitchell et al., Model Cards for Model Reporting, 2019, arXiv:1810.03993, sections
    4.5 to 4.7: evaluation, and training, data.
"""

from __future__ import annotations

from kdlite.lite.markdown import bullets, escaped, table
from kdlite.reporting import figures
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.figures import Rows


def run_section(comparison: Comparison, file: str) -> str:
    """Renders a comparison as the last section of a file's model card.

    Args:
        comparison: What was measured, as the page has it.
        file: What the file is called in it.

    Returns:
        Markdown: scores, costs, whether differences separate, energy, and the
        comparison's own notes, such as gates and settings.

    Example:
        ``run_section(comparison, "int8 file")``
    """
    tasks = comparison.tasks.values()
    tests = [figures.separations(comparison, task) for task in tasks]
    rows, assumptions = figures.energy(comparison)
    parts = [
        "## How it compares, and how it was trained",
        "From the run that made this file, the figures of its report, in which this "
        f"file is the {escaped(file)}.",
        *(_told(figures.scores(comparison, task)) for task in tasks),
        _told(figures.costs(comparison)),
        bullets(figures.notes(comparison)),
        *map(_told, tests),
        escaped(figures.TESTS) if any(tests) else "",
        "### Energy and CO2",
        _told(rows),
        bullets(assumptions) if rows else escaped(*assumptions),
    ]
    for heading, (header, *cells) in comparison.notes.items():
        parts += [f"### {escaped(heading)}", table(header, cells)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _told(rows: Rows | None) -> str:
    if rows is None:
        return ""
    return f"{escaped(rows.caption)}:\n\n{table(rows.header, rows.rows)}"
