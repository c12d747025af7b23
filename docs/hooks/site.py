"""What the site is made of: the repository's own pages, at their places in it.

So a link that works in the repository works on the site, and the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
#: Pages, and what they link to.
PARTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/**/*.md",
    "docs/*.svg",
    "docs/*.css",
    "benchmarks/README.md",
    "android_demo/README.md",
    "android_demo/app/src/test/pictures/*.png",
)


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """MkDocs's hook: the theme's own files stay, ours are those of `PARTS`."""
    docs = ROOT / "docs"
    kept = [
        file for file in files if not Path(file.abs_src_path or "").is_relative_to(docs)
    ]
    for part in PARTS:
        for path in sorted(ROOT.glob(part)):
            source = path.relative_to(ROOT).as_posix()
            kept.append(File.generated(config, source, abs_src_path=str(path)))
    return Files(kept)
