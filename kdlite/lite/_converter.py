"""The converters, in a process of their own: they can crash, hang and eat memory.

`Converter` lets the copy of a process that has imported TensorFlow (`fork_server.py`)
call `convert` on a folder. It needs nothing else of kdlite, so that it starts quickly.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdlite.lite.fork_server import ForkServers

logger = logging.getLogger(__name__)

_JOB = "kdlite.lite._converter:convert"
# TensorFlow imports Keras where it is, and Keras pandas and scikit-learn: a third of
# the time and the memory, and no converter needs it.
_SERVERS = ForkServers(("tensorflow", "kdlite.lite._converter"), without=("keras",))


class ConversionError(RuntimeError):
    """The converter made no file, or not the one that was asked for.

    Attributes:
        ops: The operations that it makes no file of, if it named any.
    """

    def __init__(self, text: str, ops: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.ops = tuple(ops)


Samples = dict[str, Any]


def convert(folder: Path) -> None:
    """Makes `folder/model.tflite`.

    Args:
        folder: Has `options.json`, with

            - `saved_model` and `calibration`: the paths of both.
            - `engine`: "tflite" or "aeq".
            - `weight_bits`, `activation_bits`, `dequantized`: what a recipe says.
            - `io`: the dtype of float inputs and outputs.
            - `calibrated`: whether ranges are measured, on samples whose `inputs` are
              named, in the order of the arrays, `batch_size` at a time.
            - `per_channel_dense`: whether Dense kernels have steps by channel.
            - `float_ops`: whether operations may remain in float.
            - `select_tf_ops`: whether operations may be TensorFlow's.
            - `keep`: by tensor name "float32" or "float16", for the operations that
              make these tensors.

    Raises:
        Exception: Whatever the converter raises.
    """
    options = json.loads((folder / "options.json").read_text())
    samples: list[Samples] = []
    if options["calibrated"]:
        import numpy as np

        size = options["batch_size"]
        with np.load(options["calibration"]) as file:
            arrays = dict(zip(options["inputs"], file.values(), strict=True))
        count = len(next(iter(arrays.values())))
        # The last batch is filled up with the first samples: ranges do not mind.
        batches = [np.arange(k, k + size) % count for k in range(0, count, size)]
        samples = [
            {name: array[rows] for name, array in arrays.items()} for rows in batches
        ]
    make = _by_aeq if options["engine"] == "aeq" else _by_tflite
    blob = make(options, samples)
    (folder / "model.tflite").write_bytes(blob)


def _by_tflite(options: dict[str, Any], samples: list[Samples]) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(options["saved_model"])
    sets = tf.lite.OpsSet
    ops = [sets.TFLITE_BUILTINS]
    converter._experimental_disable_per_channel_quantization_for_dense_layers = (
        not options["per_channel_dense"]
    )
    if options["weight_bits"] < 32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options["weight_bits"] == 16:
        converter.target_spec.supported_types = [tf.float16]
    if options["activation_bits"] < 32:
        converter.inference_input_type = tf.as_dtype(options["io"])
        converter.inference_output_type = tf.as_dtype(options["io"])
    if samples:
        converter.representative_dataset = lambda: iter(samples)
        if options["activation_bits"] == 16:
            narrow = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            ops = [narrow, *(ops if options["float_ops"] else [])]
        elif not options["float_ops"] and not options["keep"]:
            ops = [sets.TFLITE_BUILTINS_INT8]
    if options["select_tf_ops"]:
        ops.append(sets.SELECT_TF_OPS)
    converter.target_spec.supported_ops = ops
    if not options["keep"]:
        return bytes(converter.convert())
    # Only the quantizer behind the converter can be told to leave operations alone.
    from tensorflow.lite.python import convert as stages

    converter._experimental_calibrate_only = True
    return bytes(
        stages.mlir_quantize(
            converter.convert(),
            input_data_type=tf.as_dtype(options["io"]),
            output_data_type=tf.as_dtype(options["io"]),
            denylisted_nodes=list(options["keep"]),
            disable_per_channel_for_dense_layers=not options["per_channel_dense"],
        )
    )


def _by_aeq(options: dict[str, Any], samples: list[Samples]) -> bytes:
    import tensorflow as tf
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    converter = tf.lite.TFLiteConverter.from_saved_model(options["saved_model"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    floats = bytearray(converter.convert())
    kinds, steps = qtyping.TFLOperationName, qtyping.QuantGranularity
    algorithms = quantizer.AlgorithmName
    every, weight_bits = kinds.ALL_SUPPORTED, options["weight_bits"]
    by_channel = options["per_channel_dense"]
    dense = steps.CHANNELWISE if by_channel else steps.TENSORWISE
    recipe = recipe_manager.RecipeManager()
    # Of two lines for one operation the later counts, where it can be followed.
    if options["activation_bits"] < 32:
        bits = options["activation_bits"]
        recipe.add_static_config(".*", every, bits, 8)
        recipe.add_static_config(".*", kinds.FULLY_CONNECTED, bits, weight_bits, dense)
        recipe.add_static_config(".*", kinds.CONV_2D, bits, weight_bits)
        if options["io"] == "float32":
            for side in (kinds.INPUT, kinds.OUTPUT):
                recipe.add_quantization_config(".*", side, None, algorithms.NO_QUANTIZE)
    elif weight_bits == 16:
        recipe.add_weight_only_config(
            ".*", every, 16, algorithm_key=algorithms.FLOAT_CASTING
        )
    elif options["dequantized"]:
        recipe.add_weight_only_config(".*", every, weight_bits)
    else:
        recipe.add_dynamic_config(".*", every, weight_bits)
        recipe.add_dynamic_config(".*", kinds.FULLY_CONNECTED, weight_bits, dense)
    for tensor, kind in options["keep"].items():
        # The name of an operation is that of its tensors, each with a semicolon.
        scope = f"^{re.escape(tensor)};$"
        if kind == "float16":
            recipe.add_weight_only_config(
                scope, every, 16, algorithm_key=algorithms.FLOAT_CASTING
            )
        else:
            recipe.add_quantization_config(scope, every, None, algorithms.NO_QUANTIZE)
    rows = recipe.get_quantization_recipe()
    made = quantizer.Quantizer(floats, rows)
    ranges = None
    if made.need_calibration:
        # The least and the greatest of all samples, as the converter has them: a moving
        # average, which is the default, cuts off the ends of every other sample. One
        # thread: sums in another order would be other ranges.
        measured = calibrator.Calibrator(
            floats, num_threads=1, qsv_update_func=qsv_utils.min_max_update
        )
        measured.calibrate({"serving_default": samples}, recipe)
        ranges = measured.get_model_qsvs()
        if not ranges:  # everything is kept in float
            rows = [
                row
                for row in rows
                if "activation_tensor_config" not in row["op_config"]
            ]
            made = quantizer.Quantizer(floats, rows)
    return bytes(made.quantize(ranges).quantized_model)


class Converter:
    """The converter in a process of its own.

    TensorFlow takes seconds to be imported: as long as a model takes to be saved. So a
    process begins with it here, unless one is there from another conversion.
    """

    def __init__(self) -> None:
        _SERVERS.start()

    def run(
        self,
        folder: Path,
        name: str,
        time_limit_s: float,
        memory_limit_bytes: float | None = None,
    ) -> bytes:
        """Converts what is in a folder.

        Args:
            folder: As `convert` takes it.
            name: The model's name, for messages.
            time_limit_s: Seconds after which the process is stopped.
            memory_limit_bytes: Memory beyond which it is stopped; None for no limit.

        Returns:
            The bytes of the `.tflite`.

        Raises:
            ConversionError: If it raises, crashes, is killed, or takes too long or too
                much memory.
        """
        received = f"Received: model={name!r}."
        limit = math.inf if memory_limit_bytes is None else memory_limit_bytes
        ended = _SERVERS.run(_JOB, folder, time_limit_s, limit)
        logger.debug("the converter printed:\n%s", ended.printed)
        if ended.stopped == "time":
            raise ConversionError(
                f"The converter must be done within {time_limit_s:g} s, and was "
                f"stopped. {received} Raise `time_limit_s`, or give less calibration "
                "data."
            )
        if ended.stopped == "memory":
            raise ConversionError(
                f"The converter must stay within {limit:,.0f} bytes of memory, and was "
                f"stopped at {ended.memory_bytes:,}. {received} Raise "
                "`memory_limit_bytes`, or give less calibration data."
            )
        result = folder / "model.tflite"
        if ended.returncode == 0 and result.is_file():
            return result.read_bytes()
        if foreign := _foreign_ops(ended.error):
            raise ConversionError(
                "Every operation must be a built-in one of TFLite, as apps without "
                f"Select TF ops can run no other. {received} Not built in: "
                f"{', '.join(foreign)}. Replace the layers that use them, compute them "
                "outside the model, or pass allow_select_tf_ops=True.",
                foreign,
            )
        if wide := _without_16_bits(ended.error):
            raise ConversionError(
                "With activations of 16 bits, every operation needs a kernel for them. "
                f"{received} Without one: {', '.join(wide)}. Use quantization='int8' "
                "or 'dynamic', replace the layers, or compute them outside the model.",
                wide,
            )
        how = (
            "must make a file, and raised an error" if ended.returncode >= 0 else ended
        )
        raise ConversionError(
            f"The converter {how}. {received} Its last words: {ended.last_words}\nTry "
            "quantization='float32', and fewer layers, to find the one that it cannot "
            "take."
        )


def _foreign_ops(reason: str) -> list[str]:
    found = re.search(r"(?:Flex|Custom) ops: ([\w, .]+)", reason)
    names = found[1].split(",") if found else re.findall(r"'tf\.(\w+)' op is", reason)
    return sorted({name.strip().removeprefix("Flex") for name in names})


def _without_16_bits(reason: str) -> list[str]:
    return sorted(
        set(re.findall(r"16x8-bit not yet supported for op: '(\w+)'", reason))
    )
