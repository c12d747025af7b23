"""kdlite beside its peers: what they teach, what they export, what they get wrong.

    python benchmarks/peers.py [quality] [int8] [export] [cases] --work peers

Prints one table for each; without a name, all four. What was measured is kept in
`--work`, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from versions import versions

TABLES = ("quality", "int8", "export", "cases")
HERE = Path(__file__).parent
BATCH = 128
RATE, SHORT_RATE = 6e-3, 1e-3
CALIBRATION = 500


class Kept:
    """Results by name, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self._found:
            self._found[name] = measure()
            whole = self._path.with_suffix(".tmp")
            whole.write_text(json.dumps(self._found, indent=1))
            os.replace(whole, self._path)
        return self._found[name]


def fit(model: Any, data: Any, epochs: int, rate: float, seed: int) -> None:
    """Trains as all are trained here: the same optimizer, schedule and order."""
    import keras

    steps = epochs * (len(data[0]) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=rate, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    keras.utils.set_random_seed(seed)
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0)


def top1(scores: Any, y: Any) -> float:
    return float((np.asarray(scores).argmax(-1) == y).mean())


def spread(values: list[float]) -> str:
    deviation = f" ±{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def quality(work: Path, seeds: int, samples: int, epochs: int) -> None:
    """Top-1 of the demo's student at equal budget, by what taught it."""
    import keras

    import kdlite
    from kdlite.datasets import fashion_mnist
    from kdlite.demo.models import build_student
    from kdlite.demo.teacher import load_teacher

    data, teacher = fashion_mnist(), load_teacher()
    x, y = data.train.x[:samples], data.train.y[:samples]
    peers = keras.distillation

    def keras_distiller(student: keras.Model, **loss: Any) -> keras.Model:
        return peers.Distiller(
            teacher,
            student,
            peers.LogitsDistillation(**loss),
            student_loss_weight=0.5,
        )

    methods: dict[str, Callable[[keras.Model], keras.Model]] = {
        "no teacher": lambda student: student,
        "keras.distillation, as its defaults are": lambda student: peers.Distiller(
            teacher, student, peers.LogitsDistillation()
        ),
        "keras.distillation, T=2, weights equal": lambda student: keras_distiller(
            student, temperature=2.0, loss=keras.losses.KLDivergence()
        ),
        "kdlite, T=2, weights equal": lambda student: kdlite.Distiller(
            student,
            teacher,
            kdlite.losses.SoftTargets(2.0),
            hard_loss_weight=0.5,
            soft_loss_weight=0.5,
        ),
    }

    def trained(method: str, seed: int) -> dict[str, float]:
        keras.utils.set_random_seed(seed)
        student = build_student()
        start = time.perf_counter()
        fit(methods[method](student), (x, y), epochs, RATE, seed)
        took = time.perf_counter() - start
        scores = student.predict(data.test.x, batch_size=500, verbose=0)
        return {"top1": top1(scores, data.test.y), "s": took}

    kept = Kept(work / f"quality_{samples}_{epochs}.json")
    print(f"\n{samples:,} images, {epochs} epochs, {seeds} seeds, test set:\n")
    print("| taught by | top-1 % | gain over no teacher, by seed |")
    print("|---|---|---|")
    plain: list[float] = []
    for method in methods:
        runs = [
            kept.get(f"{method} {seed}", lambda m=method, s=seed: trained(m, s))
            for seed in range(seeds)
        ]
        found = [100 * run["top1"] for run in runs]
        plain = plain or found
        gains = ", ".join(f"{a - b:+.2f}" for a, b in zip(found, plain, strict=True))
        print(f"| {method} | {spread(found)} | {gains} |", flush=True)


_TFMOT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import peer_tfmot
folder, samples, batch, epochs, rate = sys.argv[1:]
peer_tfmot.main(Path(folder), int(samples), int(batch), int(epochs), float(rate))
"""


def int8(work: Path, seeds: int, samples: int, epochs: int, short: int) -> None:
    """Top-1 and bytes of int8 files of one student, by what quantized it."""
    import keras
    from peer_cases import QUANTIZERS, Case

    import kdlite
    from kdlite.datasets import fashion_mnist
    from kdlite.demo.models import build_student
    from kdlite.lite.runtime import TFLiteModel

    data = fashion_mnist()
    train = (data.train.x[:samples], data.train.y[:samples])

    def by_tfmot(student: keras.Model, path: Path) -> None:
        np.savez(path.with_name("weights.npz"), *student.get_weights())
        settings = map(str, (path.parent, samples, BATCH, short, SHORT_RATE))
        command = [sys.executable, "-W", "ignore", "-c", _TFMOT.format(here=str(HERE))]
        subprocess.run([*command, *settings], check=True)

    def by_kdlite(student: keras.Model, path: Path, seed: int) -> None:
        aware = kdlite.quantize_aware(student, input_range=(0.0, 255.0))
        fit(aware, train, short, SHORT_RATE, seed)
        kdlite.export(aware, path, "int8", verify_data=tuple(data.validation))

    def measured(seed: int) -> dict[str, dict[str, float]]:
        """Every row of one seed: the same student, and as many steps for each."""
        keras.utils.set_random_seed(seed)
        student = build_student()
        fit(student, train, epochs, RATE, seed)
        longer = keras.models.clone_model(student)
        longer.set_weights(student.get_weights())
        fit(longer, train, short, SHORT_RATE, seed)
        calibration = {"image": train[0][:CALIBRATION].astype("float32")}
        ways: dict[str, Callable[[Path], None]] = {
            "float32 | bare converter": lambda path: QUANTIZERS["bare converter"](
                Case("", build_student), longer, {}, path
            ),
            **{
                f"int8, post-training | {tool}": lambda path, quantize=quantize: (
                    quantize(Case("", build_student, "int8"), longer, calibration, path)
                )
                for tool, quantize in QUANTIZERS.items()
            },
            "int8, QAT | tfmot, in tf_keras": lambda path: by_tfmot(student, path),
            "int8, QAT | kdlite": lambda path: by_kdlite(student, path, seed),
        }
        found = {}
        for name, write in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.tflite"
                write(path)
                x = data.test.x.astype("float32")
                if "tf_keras" in name:
                    x /= 255.0  # its student is one without Rescaling
                scores = TFLiteModel(path).predict(x)
                found[name] = {
                    "top1": top1(scores, data.test.y),
                    "bytes": path.stat().st_size,
                }
        return found

    kept = Kept(work / f"int8_{samples}_{epochs}_{short}.json")
    runs = [kept.get(str(seed), lambda s=seed: measured(s)) for seed in range(seeds)]
    print(
        f"\n{samples:,} images, {epochs} epochs and {short} more, which are those of "
        f"QAT, {seeds} seeds, test set:\n"
    )
    print("| file | by | top-1 % | beside float32, by seed | bytes |")
    print("|---|---|---|---|---|")
    floats = [100 * run["float32 | bare converter"]["top1"] for run in runs]
    for name in runs[0]:
        found = [100 * run[name]["top1"] for run in runs]
        gains = ", ".join(f"{a - b:+.2f}" for a, b in zip(found, floats, strict=True))
        size = np.mean([run[name]["bytes"] for run in runs])
        print(f"| {name} | {spread(found)} | {gains} | {size:,.0f} |")


_EXPORT = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import peer_cases, peers
name, tool, quantization, folder = sys.argv[1:]
import keras, kdlite, tensorflow
keras.utils.set_random_seed(0)
model = peers.export_models()[name]()
case = peer_cases.Case("", lambda: model, quantization)
samples = peer_cases.samples_of(model)
path = Path(folder) / "model.tflite"
start = time.perf_counter()
peer_cases.TOOLS[tool](case, model, samples, path)
took = time.perf_counter() - start
usage = [resource.getrusage(who).ru_maxrss
         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps(dict(s=took, kib=max(usage), bytes=path.stat().st_size,
                      verdict=peer_cases.judged(case, model, path))))
"""


def export_models() -> dict[str, Callable[[], Any]]:
    """What the exports are timed on."""
    import keras

    from kdlite.demo.models import build_student

    return {
        "demo student": build_student,
        "MobileNetV3Small": lambda: keras.applications.MobileNetV3Small(
            (96, 96, 3), weights=None, classes=10, include_preprocessing=False
        ),
    }


def export(work: Path, repeats: int) -> None:
    """Time, memory and size of an export, each in a process of its own."""
    from peer_cases import QUANTIZERS

    kept = Kept(work / "export.json")

    def measured(model: str, tool: str, quantization: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = subprocess.run(
                [sys.executable, "-c", _EXPORT.format(here=str(HERE))]
                + [model, tool, quantization, folder],
                capture_output=True,
                text=True,
                timeout=1800,
                check=False,
            )
        if out.returncode:
            last = (out.stderr.strip().splitlines() or [""])[-1]
            return {"failed": last[:200] or f"exit {out.returncode}"}
        return dict(json.loads(out.stdout.strip().splitlines()[-1]))

    print("\nTurn by turn, the fastest of each; kdlite's time includes verification:\n")
    print("| model | file | by | time, ratio | peak memory MiB | bytes | the file is |")
    print("|---|---|---|---|---|---|---|")
    for model in export_models():
        for quantization in ("float32", "int8"):
            tools = [
                tool
                for tool in QUANTIZERS
                if quantization != "float32" or tool != "ai-edge-quantizer"
            ]
            runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
            for turn in range(repeats):
                for tool in tools:
                    runs[tool].append(
                        kept.get(
                            f"{model} {quantization} {tool} {turn}",
                            lambda m=model, t=tool, q=quantization: measured(m, t, q),
                        )
                    )
            base = min(run.get("s", np.inf) for run in runs["bare converter"])
            for tool in tools:
                row = f"| {model} | {quantization} | {tool} |"
                if "failed" in runs[tool][0]:
                    print(f"{row} - | - | - | {runs[tool][0]['failed']} |")
                    continue
                best = min(runs[tool], key=lambda run: run["s"])
                print(
                    f"{row} {best['s']:.1f} s, {best['s'] / base:.2f} "
                    f"| {best['kib'] / 1024:.0f} | {best['bytes']:,} "
                    f"| {best['verdict']} |",
                    flush=True,
                )


_CASE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import peer_cases
case, tool, folder = sys.argv[1:]
print(json.dumps(dict(verdict=peer_cases.attempt(case, tool, Path(folder)))))
"""


def cases(work: Path) -> None:
    """What each tool makes of the reports: right, wrong, refused, or a crash."""
    from peer_cases import CASES, TOOLS, takes_part

    kept = Kept(work / "cases.json")

    def tried(case: str, tool: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            try:
                out = subprocess.run(
                    [sys.executable, "-c", _CASE.format(here=str(HERE))]
                    + [case, tool, folder],
                    capture_output=True,
                    text=True,
                    timeout=900,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return "crash: no end in 15 minutes"
        if out.returncode < 0:
            return f"crash: signal {-out.returncode} ends Python"
        if out.returncode:
            return f"crash: {(out.stderr.strip().splitlines() or ['?'])[-1][:120]}"
        verdict = json.loads(out.stdout.strip().splitlines()[-1])["verdict"]
        return str(verdict)

    print("\n| report | " + " | ".join(TOOLS) + " |")
    print("|---" * (len(TOOLS) + 1) + "|")
    counts: dict[str, Counter[str]] = {tool: Counter() for tool in TOOLS}
    for name, case in CASES.items():
        cells = []
        for tool in TOOLS:
            verdict = "-"
            if takes_part(tool, case):
                verdict = kept.get(f"{name} {tool}", lambda n=name, t=tool: tried(n, t))
            counts[tool][verdict.partition(":")[0].partition(",")[0]] += 1
            cells.append(textwrap.shorten(verdict.replace("|", "/"), 90))
        print(f"| {case.what} | " + " | ".join(cells) + " |", flush=True)
    ends = ("right", "refused", "wrong", "crash")
    sums = (
        ", ".join(f"{found[end]} {end}" for end in ends if found[end])
        for found in counts.values()
    )
    print("| **in all** | " + " | ".join(sums) + " |")
    print(f"\nThe whole words of each are in {work / 'cases.json'}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help=f"of {', '.join(TABLES)} (default: all)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("peers"),
        help="folder that keeps what is done (default %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="trainings of quality and int8 (default %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=10_000,
        help="training images of both (default %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=int, default=4, help="of both (default %(default)s)"
    )
    parser.add_argument(
        "--short", type=int, default=2, help="epochs of QAT (default %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds of export (default %(default)s)"
    )
    args = parser.parse_args()
    chosen = args.tables or TABLES
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; of {TABLES}")
    args.work.mkdir(parents=True, exist_ok=True)
    if "quality" in chosen:
        quality(args.work, args.seeds, args.samples, args.epochs)
    if "int8" in chosen:
        int8(args.work, args.seeds, args.samples, args.epochs, args.short)
    if "export" in chosen:
        export(args.work, args.repeats)
    if "cases" in chosen:
        cases(args.work)
    more = ("ai-edge-quantizer", "tensorflow-model-optimization", "tf_keras")
    print(f"\n{versions(*more)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
