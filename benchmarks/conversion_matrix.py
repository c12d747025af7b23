"""Every kind of model times every recipe: verified, or refused with a way out.

    python benchmarks/conversion_matrix.py [--only lstm] [--columns float32 ...]
        [--work matrix.json] [--again] [--write]

Each cell is one `kdlite.export` of a small model of `zoo.py`. A cell is done
when its file has passed, or when the refusal names a layer or an operation and
what to do. What is done is kept in `--work`, so that a run can go on; `--again`
runs anew what ended badly. `--write` puts the table into docs/conversion.md.
Any other end (a crash, a wrong file, a cell without a way out) is an error of
this command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
from versions import versions

import kdlite

# Column -> arguments of `export`; of `overrides` what the last layer is kept in.
COLUMNS: dict[str, dict[str, Any]] = {
    "float32": {"quantization": "float32"},
    "float16": {"quantization": "float16"},
    "weight_only": {"quantization": "weight_only"},
    "dynamic": {"quantization": "dynamic"},
    "int8": {"quantization": "int8"},
    "int8, int8 io": {"quantization": "int8", "io": "int8"},
    "int8, uint8 io": {"quantization": "int8", "io": "uint8"},
    "int8, aeq": {"quantization": "int8", "engine": "aeq"},
    "int16x8": {"quantization": "int16x8"},
    "int4": {"quantization": "int4"},
    "mixed": {"quantization": "int8", "overrides": "float32"},
    "mixed, aeq": {"quantization": "int8", "engine": "aeq", "overrides": "float16"},
}
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "conversion.md"
_BEGIN, _END = "<!-- matrix -->", "<!-- end of matrix -->"


def cell(name: str, column: str) -> dict[str, Any]:
    """Exports one model by one recipe; says how it ended."""
    import keras
    from zoo import ZOO, samples

    from kdlite.lite.convert import ConversionError
    from kdlite.lite.layer_names import layer_names

    keras.utils.clear_session()  # or layers are named by how many there were before
    model = ZOO[name]()
    arguments = dict(COLUMNS[column])
    if "overrides" in arguments:
        arguments["overrides"] = {layer_names(model)[-1]: arguments["overrides"]}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = kdlite.export(
                model,
                Path(folder) / "model.tflite",
                calibration_data=samples(model),
                verify_data=samples(model, 40, seed=1),
                **arguments,
            )
        except (ConversionError, ValueError) as err:
            kind = "refused" if way_out(str(err)) else "no way out"
            ended = {"end": kind, "text": str(err)}
        except kdlite.VerificationError as err:
            ended = {"end": "wrong", "text": str(err)}
        except Exception as err:  # a fault of kdlite, of which there are to be none
            ended = {"end": "crash", "text": f"{type(err).__name__}: {err}"}
        else:
            ended = {
                "end": "verified",
                "decibels": min(decibels(o) for o in result.verification.outputs),
                "bytes": result.size_bytes,
                "kind": result.verification.quantization,
            }
    return {**ended, "seconds": round(time.perf_counter() - started, 1)}


def way_out(text: str) -> bool:
    """Whether a refusal names what it is about and says what to do."""
    named = re.search(
        r"layer '|with '\w|input '|[A-Z_0-9]{3,} \(|Not built in: \w", text
    )
    advised = re.search(r"Use |Replace |allow|Keep |Give |Build ", text)
    return bool(named and advised)


def decibels(output: Any) -> float:
    """The signal-to-noise ratio of an output."""
    noise = max(output.rms_difference, 1e-12)
    return round(float(20 * np.log10(max(output.spread, 1e-12) / noise)), 1)


def table(done: dict[str, Any], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The matrix of what was run as Markdown, refusals as numbered notes."""
    from zoo import ZOO

    notes: dict[str, int] = {}
    lines = [
        f"| model | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in ZOO:
        row = []
        for column in columns:
            ended = done.get(f"{name} | {column}")
            if ended is None:
                row.append("")
            elif ended["end"] == "verified":
                row.append(f"{min(ended['decibels'], 120):.0f} dB")
            else:
                text = " ".join(ended["text"].split())
                text = text.replace("model='net'", "the model").replace("|", "/")
                # The same of every integer recipe.
                text = re.sub(r"^(int8|int16x8|int4) ", "The recipe ", text)
                number = notes.setdefault(text, len(notes) + 1)
                word = "" if ended["end"] == "refused" else f"{ended['end']} "
                row.append(f"{word}({number})")
        if any(row):
            lines.append(f"| {name} | {' | '.join(row)} |")
    told = [f"{number}. {text}" for text, number in notes.items()]
    return "\n".join([*lines, "", *told])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="models whose name has this (default: all)"
    )
    parser.add_argument(
        "--columns",
        nargs="*",
        default=list(COLUMNS),
        metavar="COLUMN",
        help="recipes by their names in the table (default: all)",
    )
    parser.add_argument(
        "--by-column",
        action="store_true",
        help="one column after the other, not one model",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("matrix.json"),
        help="file that keeps what is done (default %(default)s)",
    )
    parser.add_argument(
        "--again", action="store_true", help="run anew what ended badly"
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/conversion.md"
    )
    args = parser.parse_args()
    from zoo import ZOO

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    done = json.loads(args.work.read_text()) if args.work.exists() else {}
    names = [name for name in ZOO if args.only.lower() in name.lower()]
    cells = [(name, column) for name in names for column in args.columns]
    if args.by_column:
        cells = [(name, column) for column in args.columns for name in names]
    for name, column in cells:
        key = f"{name} | {column}"
        before = done.get(key, {"end": ""})["end"]
        if before in GOOD or (before and not args.again):
            continue
        done[key] = ended = cell(name, column)
        args.work.write_text(json.dumps(done, indent=1))
        told = ended.get("text", "").splitlines()[:1] or [ended.get("decibels")]
        print(f"{key}: {ended['end']}, {ended['seconds']} s, {told[0]}", flush=True)
    if args.write:
        before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
        after = rest.partition(_END)[2]
        DOCUMENT.write_text(
            f"{before}{_BEGIN}\n\n{table(done, args.columns)}\n\n{_END}{after}"
        )
    bad = [key for key, ended in done.items() if ended["end"] not in GOOD]
    print(f"{len(done) - len(bad)} of {len(done)} verified or refused with a way out")
    for key in bad:
        print(f"{done[key]['end']}: {key}: {done[key]['text']}")
    print(versions("ai-edge-quantizer"))
    return 1 if bad else 0


GOOD = ("verified", "refused")

if __name__ == "__main__":
    sys.exit(main())
