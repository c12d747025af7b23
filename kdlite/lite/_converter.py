"""The TFLite converter, in a process of its own: it can crash, hang and eat memory.

`Converter` starts this very file as a script, on a folder that is to have
`saved_model/`, `options.json`, and `calibration.npz` where ranges are to be measured.
The script leaves `model.tflite` there, or `error.txt` with what the converter raised.
It imports nothing but TensorFlow, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SCRIPT = Path(__file__)
_LAST_LINES = 5
_START = b"start\n"


class ConversionError(RuntimeError):
    """The converter made no file, or not the one that was asked for."""


def convert(folder: Path) -> None:
    """Converts `folder/saved_model` to `folder/model.tflite`.

    Args:
        folder: Holds the inputs named above; `options.json` has `inputs` (their
            names, in the order of the calibration arrays), `quantization` ("float32" or
            "int8"), `io` (a dtype's name), `calibrated` (ranges are measured),
            `per_channel_dense`, and `float_ops` (whether they may remain).

    Raises:
        Exception: Whatever the converter raises.
    """
    import numpy as np
    import tensorflow as tf

    options = json.loads((folder / "options.json").read_text())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter._experimental_disable_per_channel_quantization_for_dense_layers = (
        not options["per_channel_dense"]
    )
    if options["quantization"] == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.as_dtype(options["io"])
        converter.inference_output_type = tf.as_dtype(options["io"])
        if options["calibrated"]:
            if not options["float_ops"]:
                int8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                converter.target_spec.supported_ops = [int8]
            with np.load(folder / "calibration.npz") as file:
                samples = dict(zip(options["inputs"], file.values(), strict=True))

            def representative() -> Iterator[dict[str, Any]]:
                for index in range(len(next(iter(samples.values())))):
                    yield {
                        name: array[index : index + 1]
                        for name, array in samples.items()
                    }

            converter.representative_dataset = representative
    (folder / "model.tflite").write_bytes(converter.convert())


class Converter:
    """The converter in a process of its own, which starts while its input is made.

    TensorFlow takes seconds to be imported: as long as a model takes to be saved. To be
    used in a `with` statement, at the end of which no process is left.
    """

    def __init__(self, folder: Path) -> None:
        """Starts the process, which waits.

        Args:
            folder: As `convert` takes it; filled until `run` is called.
        """
        self._folder = folder
        # A file, unlike a pipe, is never full.
        self._output = folder / "output.txt"
        # -P: the modules beside the script must not be taken for others of their name.
        command = [sys.executable, "-P", str(_SCRIPT), str(folder)]
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "1",
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # which closes and waits
            self._process.kill()

    def run(self, name: str, time_limit_s: float) -> bytes:
        """Converts what is in the folder.

        Args:
            name: The model's name, for messages.
            time_limit_s: Seconds after which the process is stopped.

        Returns:
            The bytes of the `.tflite`.

        Raises:
            ConversionError: If it raises, crashes, is killed, or is not done in time.
        """
        received = f"Received: model={name!r}."
        try:
            self._process.communicate(_START, timeout=time_limit_s)
        except subprocess.TimeoutExpired as err:
            raise ConversionError(
                f"The converter must be done within {time_limit_s:g} s, and was "
                f"stopped. {received} Raise `time_limit_s`, or give less calibration "
                "data."
            ) from err
        finally:
            printed = self._output.read_text(errors="replace")
            logger.debug("the converter printed:\n%s", printed)
        code = self._process.returncode
        result, error = self._folder / "model.tflite", self._folder / "error.txt"
        if code == 0 and result.is_file():
            return result.read_bytes()
        reason = error.read_text(errors="replace") if error.is_file() else ""
        if foreign := _foreign_ops(reason):
            raise ConversionError(
                "Every operation must be a built-in one of TFLite, as apps without "
                f"Select TF ops can run no other. {received} Not built in: "
                f"{', '.join(foreign)}. Replace the layers that use them, or compute "
                "them outside the model."
            )
        last = "\n".join((reason or printed).strip().splitlines()[-_LAST_LINES:])
        raise ConversionError(
            f"The converter {_how_it_ended(code)}. {received} Its last words: "
            f"{last or 'none'}\nTry quantization='float32', and fewer layers, to find "
            "the one that it cannot take."
        )


def _foreign_ops(reason: str) -> list[str]:
    found = re.search(r"(?:Flex|Custom) ops: ([\w, .]+)", reason)
    names = found[1].split(",") if found else re.findall(r"'tf\.(\w+)' op is", reason)
    return sorted({name.strip().removeprefix("Flex") for name in names})


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return "must make a file, and raised an error"
    if -returncode == signal.SIGKILL:
        return "was killed, most likely because memory ran out"
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-returncode).name})"
    return f"crashed (signal {-returncode})"


if __name__ == "__main__":
    # Where memory runs out, the kernel ends this process and not the one that waits.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    where = Path(sys.argv[1])
    import tensorflow  # noqa: F401 (done while the folder is being filled)

    if sys.stdin.buffer.readline() != _START:
        sys.exit()  # whoever started this is gone
    try:
        convert(where)
    except Exception as err:
        (where / "error.txt").write_text(f"{type(err).__name__}: {err}")
        raise
