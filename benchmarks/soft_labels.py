"""What stored soft labels cost: resident memory by number of samples, and building.

    python benchmarks/soft_labels.py memory [--samples 100000 1000000 10000000]
    python benchmarks/soft_labels.py build [--samples 10000] [--rounds 7]

`memory` reads a shuffled epoch of made labels, in a process of its own for each number
of samples, and prints by how much resident memory rose at most. `build` labels made
images with the demo's teacher, by turns with `teacher.predict`, and prints the ratio of
throughputs: of the fastest rounds, its spread over rounds, and in CPU time, which other
work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from versions import versions

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

CLASSES, BATCH = 10, 256


def resident() -> dict[str, float]:
    """Resident memory now and at most, in MB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    names = {"now": "VmRSS", "anonymous": "RssAnon", "most": "VmHWM"}
    return {k: int(values[name].split()[0]) / 1024 for k, name in names.items()}


def read_an_epoch(samples: int, folder: Path, dtype: str, top_k: int | None) -> None:
    """Writes made labels, then reads all of them in a shuffled order."""
    import numpy as np
    import tensorflow as tf

    from kdlite.distill.epochs import Epochs
    from kdlite.distill.label_manifest import Origin
    from kdlite.distill.label_store import LabelStore, LabelWriter

    rng = np.random.default_rng(0)
    spec = [["float32", [1]]]
    origin = Origin("made", spec, "made", 1, 0, None, dtype, top_k)
    with LabelWriter(folder, origin) as writer:
        for at in range(0, samples, 8192):
            rows = min(8192, samples - at)
            logits = rng.normal(size=(rows, 1, CLASSES)).astype("float32")
            writer.append(logits, np.arange(at, at + rows, dtype="uint64"))
        writer.commit(samples)
    tf.constant(0)  # its threads and pools are there
    Path("/proc/self/clear_refs").write_text("5")  # begins the highest anew
    before = resident()
    store = LabelStore(folder)
    epochs = Epochs(samples, 1, seed=0, shuffle=True, epoch=0)

    def labels(epoch: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        views = epochs.view(epoch[0], places)
        return tf.numpy_function(store.rows, [places, views], tf.float32)

    started = time.perf_counter()
    count = 0
    for batch in epochs.places().batch(BATCH).map(labels, 2).prefetch(2):
        count += len(batch)
    if count != samples:
        raise SystemExit(f"{count} samples were read of {samples}")
    after = resident()
    print(
        f"{samples:12,}  {store.nbytes / 2**20:12.0f}  "
        f"{after['most'] - before['now']:14.0f}  "
        f"{after['anonymous'] - before['anonymous']:19.0f}  "
        f"{(time.perf_counter() - started) / samples * 1e6:14.1f}"
    )


def memory(samples: list[int], dtype: str, top_k: int | None) -> None:
    print(f"labels of {CLASSES} classes in {dtype}, top_k={top_k}, batches of {BATCH}")
    print(
        "     samples  on disk, MiB  RSS rose, MiB  anonymous rose, MiB  us to read one"
    )
    for number in samples:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "read", "--samples", str(number)]
            command += ["--folder", f"{folder}/labels", "--dtype", dtype]
            command += ["--top-k", str(top_k)] if top_k else []
            subprocess.run(command, check=True)


def build(samples: int, rounds: int) -> None:
    import numpy as np

    import kdlite
    from kdlite.demo.teacher import load_teacher

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (samples, 28, 28, 1)).astype("float32")
    teacher = load_teacher()
    times: dict[str, list[tuple[float, float]]] = {"predict": [], "build": []}
    for round_number in range(rounds + 1):  # the first warms up
        for name in times:
            started = time.perf_counter(), time.process_time()
            if name == "predict":
                teacher.make_predict_function(force=True)  # `build` traces it, too
                teacher.predict(x, batch_size=BATCH, verbose=0)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    kdlite.SoftLabels.build(
                        teacher, x, Path(folder) / "l", batch_size=BATCH, verbose=0
                    )
            if round_number:
                wall = time.perf_counter() - started[0]
                times[name].append((wall, time.process_time() - started[1]))
    taken = {name: np.array(values)[:, 0] for name, values in times.items()}
    cpu = {name: np.array(values)[:, 1] for name, values in times.items()}
    ratios = taken["predict"] / taken["build"]
    low, high = np.quantile(ratios, [0.1, 0.9])
    print(f"{samples:,} images, {rounds} rounds")
    for name, values in taken.items():
        print(f"{name:8} {samples / values.min():8.0f} images/s at best")
    best = taken["predict"].min() / taken["build"].min()
    print(
        f"build / predict: {best:.3f} at best, "
        f"{np.median(ratios):.3f} in the median round, 10-90 % {low:.3f}-{high:.3f}; "
        f"in CPU time {cpu['predict'].min() / cpu['build'].min():.3f} at best, "
        f"{np.median(cpu['predict'] / cpu['build']):.3f} in the median round"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        choices=["memory", "build", "read"],
        metavar="{memory,build}",
        help="resident memory by number of samples, or the time of labelling",
    )
    parser.add_argument(
        "--samples",
        type=int,
        nargs="+",
        help="numbers of samples (default: 100000 1000000 10000000 for memory); "
        "build takes one (default: 10000)",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="of build (default %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="in which memory stores labels (default %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        help="classes that memory stores of each sample (default: all)",
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "memory":
        sizes = args.samples or [10**5, 10**6, 10**7]
        memory(sizes, args.dtype, args.top_k)
    elif args.what == "read":
        read_an_epoch(args.samples[0], args.folder, args.dtype, args.top_k)
    else:
        build((args.samples or [10_000])[0], args.rounds)
    if args.what != "read":
        print(versions())


if __name__ == "__main__":
    main()
