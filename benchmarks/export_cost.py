"""What `export` costs beside the bare converter, on networks that phones run.

    python benchmarks/export_cost.py [--models MobileNetV2 ...] [--recipes int8 ...]
        [--work export_cost.json]

Networks of keras.applications with random weights, 224 x 224 pixels. Each measurement
has a process of its own, in which the network is built before the time starts. The bare
converter is `tf.lite.TFLiteConverter` on the network as Keras saves it, told the same;
kdlite's export beside it does all that it does: checks, conversion in a copy of another
process, verification with three kinds of kernels. Its verification is timed apart, as
the bare converter has none. Time is CPU time of all processes, as other work would be
in any other; memory the largest sum over all processes, shared pages counted once,
until the verification begins and with it. What is done is in `--work`: the same command
goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from versions import versions

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MODELS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny")
RECIPES = ("float32", "float16", "dynamic", "int8")
SIZE, CALIBRATION, SAMPLES = 224, 20, 16
ALLOWED = 1.5


def measured(way: str, name: str, recipe: str) -> dict[str, Any]:
    """Converts one network; run in a process of its own."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (CALIBRATION, SIZE, SIZE, 3)).astype("float32")
    convert = {"bare": bare, "kdlite": with_kdlite}[way]
    with tempfile.TemporaryDirectory() as folder, largest_memory() as memory:
        before = cpu_s()
        apart = convert(model, recipe, pixels, Path(folder) / "model.tflite", memory)
        taken = cpu_s() - before
        size = (Path(folder) / "model.tflite").stat().st_size
    return {
        **apart,
        "seconds": taken - apart.get("verification", 0.0),
        "memory": apart.get("memory", memory[0]),
        "memory_with_verification": memory[0],
        "bytes": size,
    }


def bare(
    model: Any, recipe: str, pixels: Any, path: Path, memory: list[int]
) -> dict[str, Any]:
    import tensorflow as tf

    saved = str(path.with_suffix(".saved"))
    model.export(saved, verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    if recipe != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if recipe == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if recipe == "int8":
        converter.representative_dataset = lambda: ([x[None]] for x in pixels)
        # Where `export` refuses operations in float by name, this leaves them there.
    path.write_bytes(converter.convert())
    return {}


def with_kdlite(
    model: Any, recipe: str, pixels: Any, path: Path, memory: list[int]
) -> dict[str, Any]:
    import kdlite
    from kdlite.lite import proof

    taken, until = [], []

    def timed(*arguments: Any) -> Any:
        until.append(memory[0])
        before = cpu_s()
        report = verify(*arguments)
        taken.append(cpu_s() - before)
        return report

    verify, proof.verify = proof.verify, timed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few samples
        result = kdlite.export(
            model,
            path,
            recipe,
            calibration_data=pixels if recipe == "int8" else None,
            verify_data=pixels[:SAMPLES],
            allow_float_ops=FLOAT_OPS if recipe == "int8" else (),
        )
    return {
        "verification": sum(taken),
        "memory": until[0],
        "samples": result.verification.samples,
        "largest": max(
            o.largest_difference / max(o.largest_value, 1e-9)
            for o in result.verification.outputs
        ),
    }


# Of normalization by layer and of attention there are no integer kernels.
FLOAT_OPS = ("NEG", "SQUARE", "RSQRT", "ELU", "SQUARED_DIFFERENCE")


def cpu_s() -> float:
    """CPU seconds of this process and all below it, those that have ended as well."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = os.times()
    total = times.user + times.system + ended.ru_utime + ended.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / tick
    return total


def below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for number in child.read_text().split():
                yield int(number)
                yield from below(int(number))


@contextlib.contextmanager
def largest_memory() -> Iterator[list[int]]:
    """Looks at the memory of this process and all below it, ten times a second.

    Yields:
        A list of one number, the most bytes until now.
    """
    largest, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            now = 0
            for pid in (os.getpid(), *below(os.getpid())):
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    now += 1024 * int(text.partition("\nPss:")[2].split()[0])
            largest[0] = max(largest[0], now)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def table(done: dict[str, Any]) -> str:
    """What was measured, as a table."""
    lines = [
        f"{'':26}{'bare, s':>9}{'kdlite, s':>11}{'ratio':>7}{'verified in, s':>16}"
        f"{'bare, MB':>10}{'kdlite, MB':>12}{'ratio':>7}{'verifying':>11}{'file':>7}"
    ]
    most = [0.0, 0.0]
    for name in MODELS:
        for recipe in RECIPES:
            ours = done.get(f"kdlite {name} {recipe}")
            theirs = done.get(f"bare {name} {recipe}")
            if not ours or not theirs:
                continue
            if "error" in ours:
                lines.append(f"{name + ' ' + recipe:26}{ours['error'][:90]}")
                continue
            seconds, memory = ours["seconds"], ours["memory"]
            ratios = seconds / theirs["seconds"], memory / theirs["memory"]
            lines.append(
                f"{name + ' ' + recipe:26}{theirs['seconds']:9.1f}{seconds:11.1f}"
                f"{ratios[0]:7.2f}{ours['verification']:16.1f}"
                f"{theirs['memory'] / 1e6:10,.0f}{memory / 1e6:12,.0f}"
                f"{ratios[1]:7.2f}"
                f"{ours['memory_with_verification'] / 1e6:11,.0f}"
                f"{ours['bytes'] / 1e6:7.1f}"
            )
            most = [max(pair) for pair in zip(most, ratios, strict=True)]
    lines.append(
        f"At most {most[0]:.2f} times the time and {most[1]:.2f} times the memory of "
        f"the bare converter; the goal is {ALLOWED}."
    )
    return "\n".join(lines)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process; what it raises becomes its answer."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(function, arguments)
        except Exception as err:
            return {"error": f"{type(err).__name__}: {err}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="*",
        choices=MODELS,
        default=MODELS,
        metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: all)",
    )
    parser.add_argument(
        "--recipes",
        nargs="*",
        choices=RECIPES,
        default=RECIPES,
        metavar="RECIPE",
        help=f"of {', '.join(RECIPES)} (default: all)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("export_cost.json"),
        help="file that keeps what is done (default %(default)s)",
    )
    args = parser.parse_args()
    done = json.loads(args.work.read_text()) if args.work.exists() else {}
    for name in args.models:
        for recipe in args.recipes:
            for way in ("bare", "kdlite"):
                key = f"{way} {name} {recipe}"
                if key in done:
                    continue
                started = time.perf_counter()
                done[key] = in_a_process(measured, way, name, recipe)
                args.work.write_text(json.dumps(done, indent=1))
                took = time.perf_counter() - started
                print(f"{key}: {done[key]}, {took:.0f} s in all", flush=True)
    print(table(done))
    print(versions())
    return any("error" in entry for entry in done.values())


if __name__ == "__main__":
    sys.exit(main())
