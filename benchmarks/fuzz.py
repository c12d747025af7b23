"""Random models through `export`, damaged files through all that reads files.

    python benchmarks/fuzz.py models [--count 1000] [--work fuzz_models.jsonl]
    python benchmarks/fuzz.py files [--count 10000] [--work fuzz_files.jsonl]

`models`: each of them (`random_models.py`) becomes a file that does on new samples what
the model does, or is refused in a sentence that says what to do. `files`: each mutation
(`mutations.py`) of a few exported files is inspected, its metadata read, and it is
verified: an answer, or an error of one sentence. Anything else is an error of this
command, and the end of this process, which it must survive, above all.

What is done is in `--work`, a line a case; the same command goes on after the last.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from versions import versions

import kdlite

if TYPE_CHECKING:
    from random_models import Case

# Hypothesis begins with the simplest, so more of them at once are more different ones.
_BATCH = 50
GOOD = ("verified", "refused", "not exact enough", "answers", "clean errors")


def export_case(case: Case) -> dict[str, Any]:
    """Exports a model and compares it on other samples than `export` did."""
    import random_models
    from random_models import SAMPLES

    from kdlite.lite.convert import ConversionError

    model = case.build()
    arguments: dict[str, Any] = dict(case.arguments)
    if arguments["quantization"] in ("int8", "int16x8", "int4"):
        arguments["calibration_data"] = random_models.samples(model, 100, seed=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.tflite"
        try:
            kdlite.export(
                model,
                path,
                verify_data=random_models.samples(model, SAMPLES, seed=2),
                **arguments,
            )
        except (ConversionError, ValueError) as err:
            clean = _is_clean(str(err)) and "crashed" not in str(err)
            return {"end": "refused" if clean else "unclear", "text": str(err)}
        except kdlite.VerificationError as err:
            # Rounding can be too much for some; nothing is rounded in float32.
            wrong = arguments["quantization"] == "float32"
            return {"end": "wrong" if wrong else "not exact enough", "text": str(err)}
        fresh = random_models.samples(model, SAMPLES, seed=3)
        report = kdlite.verify(path, model, fresh)
        for output in report.outputs:
            apart = output.largest_difference > 1e-3 * max(1.0, output.largest_value)
            if output.nan_count or (arguments["quantization"] == "float32" and apart):
                return {"end": "wrong", "text": str(report)}
    return {"end": "verified"}


def _is_clean(text: str) -> bool:
    """Whether an error says what was received and what to do, in sentences."""
    return "Received: " in text and text.rstrip().endswith((".", "...", ")"))


class DamagedFiles:
    """Files, their models, and what all that reads files says of mutations of them.

    Args:
        folder: Has `*.tflite` and for each a `.keras`.
    """

    def __init__(self, folder: Path) -> None:
        import keras

        from kdlite.lite.serving import serve

        self._files = [
            (path.read_bytes(), keras.models.load_model(path.with_suffix(".keras")))
            for path in sorted(folder.glob("*.tflite"))
        ]
        self._serving = [serve(model) for _, model in self._files]

    def case(self, seed: int) -> dict[str, Any]:
        """Reads and runs one mutation."""
        import random_models
        from mutations import mutated
        from random_models import SAMPLES

        of_file = seed // 16 % len(self._files)
        blob, model = self._files[of_file]
        kind, damaged = mutated(blob, seed)
        # What is in the metadata goes into a model of its own, which takes time.
        other = "archive" in kind and seed % 5 == 0
        reading: dict[str, Callable[[], Any]] = {
            "inspect": lambda: str(kdlite.inspect(damaged)),
            "read_metadata": lambda: str(kdlite.read_metadata(damaged)),
            "verify": lambda: str(
                kdlite.verify(
                    damaged,
                    model if other else self._serving[of_file],
                    random_models.samples(model, SAMPLES, seed=4),
                )
            ),
        }
        refused, started = [], time.perf_counter()
        for name, read in reading.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    read()
            except ValueError as err:
                if not _is_clean(str(err)):
                    return {"end": "unclear", "what": [kind, name], "text": str(err)}
                refused.append(name)
            except Exception as err:
                text = f"{type(err).__name__}: {err}"
                return {"end": "raised", "what": [kind, name], "text": text}
        end = "clean errors" if refused else "answers"
        took = round(time.perf_counter() - started, 2)
        return {"end": end, "what": [kind, *refused], "seconds": took}


def files_to_damage(folder: Path, names: Collection[str] = ()) -> None:
    """Exports files of several kinds, with what a file may have; all, or some."""
    import keras
    import random_models

    folder.mkdir(parents=True, exist_ok=True)
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu6", name="conv")(image)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="relu")(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    classifier = keras.Model(
        image, layers.Dense(3, activation="softmax", name="scores")(x), name="net"
    )
    ids = keras.Input((5,), dtype="int32", name="ids")
    x = layers.Embedding(11, 4, name="table")(ids)
    x = layers.Conv1D(4, 2, activation="gelu", name="conv")(x)
    x = layers.Flatten(name="flat")(layers.MultiHeadAttention(1, 4, name="mha")(x, x))
    both = layers.Concatenate(name="both")([x, keras.Input((3,), name="side")])
    towers = keras.Model(
        [ids, both._keras_history.operation.input[1]],
        {"a": layers.Dense(2, name="a")(both), "b": layers.Dense(2, name="b")(both)},
        name="towers",
    )
    series = keras.Input((6, 2), name="series")
    looped = keras.Model(series, layers.LSTM(3, name="lstm")(series), name="looped")
    for name, model, quantization in (
        ("classifier_int8", classifier, "int8"),
        ("classifier_float16", classifier, "float16"),
        ("classifier_int4", classifier, "int4"),
        ("towers_float32", towers, "float32"),
        ("looped_dynamic", looped, "dynamic"),
    ):
        if names and name not in names:
            continue
        labels = ["a", "b", "c"] if model is classifier else None
        kdlite.export(
            model,
            folder / f"{name}.tflite",
            quantization,
            calibration_data=random_models.samples(model, 100, seed=1),
            labels=labels,
            description="a file to be damaged",
            overwrite=True,
        )
        model.save(folder / f"{name}.keras")


def _models(count: int, done: int) -> Iterator[dict[str, Any]]:
    for batch in range(done // _BATCH, -(-count // _BATCH)):
        for number, case in enumerate(_drawn(batch), batch * _BATCH):
            if done <= number < count:
                yield {"case": number, "model": repr(case), **export_case(case)}


def _drawn(batch: int) -> list[Case]:
    """Draws cases; the same ones for the same number, so that a run can go on."""
    import hypothesis
    from random_models import exports

    drawn: list[Case] = []

    @hypothesis.seed(batch)
    @hypothesis.settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(exports())
    def draw(case: Case) -> None:
        drawn.append(case)

    draw()
    return drawn[:_BATCH]


def _damaged(count: int, done: int, work: Path) -> Iterator[dict[str, Any]]:
    folder = work.with_suffix(".files")
    if len(list(folder.glob("*.keras"))) < 5:
        files_to_damage(folder)
    files = DamagedFiles(folder)
    for seed in range(done, count):
        yield {"case": seed, **files.case(seed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what",
        choices=["models", "files"],
        help="random models to export, or damaged files to read",
    )
    parser.add_argument(
        "--count", type=int, help="cases (default: 1000 models, 10000 files)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="file that keeps what is done (default: fuzz_{models,files}.jsonl)",
    )
    args = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    work = args.work or Path(f"fuzz_{args.what}.jsonl")
    count = args.count or {"models": 1_000, "files": 10_000}[args.what]
    lines = work.read_text().splitlines() if work.exists() else []
    ended = [json.loads(line) for line in lines]
    done = ended[-1]["case"] + 1 if ended else 0
    cases = _models(count, done) if args.what == "models" else None
    with work.open("a") as log:
        for case in cases or _damaged(count, done, work):
            ended.append(case)
            log.write(json.dumps(case) + "\n")
            log.flush()
            if case["end"] not in GOOD:
                print(json.dumps(case)[:2000], flush=True)
            elif case["case"] % 100 == 99:
                print(
                    case["case"] + 1, dict(Counter(c["end"] for c in ended)), flush=True
                )
    print(f"{len(ended):,} {args.what}: {_counted(ended)}")
    print(versions("hypothesis"))
    return any(case["end"] not in GOOD for case in ended)


def _counted(ended: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(case["end"] for case in ended))


if __name__ == "__main__":
    sys.exit(main())
