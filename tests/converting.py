"""Files to test with, made by TensorFlow's converter in the test's own process.

Quicker than `kdlite.export`, and without its checks: so they can be wrong as well.
"""

from __future__ import annotations

import tempfile
import warnings

import keras
import tensorflow as tf

from kdlite.lite.calibration import random_samples
from kdlite.lite.names import graph_names
from kdlite.lite.serving import serve


def converted(
    model: keras.Model, quantization: str = "float32", io=tf.float32, integer=True
) -> bytes:
    """Converts a model, to a file with TensorFlow's names.

    `integer`: it is an error if an operation stays in float. "qat": its ranges are in
    the model.
    """
    serving = serve(model)
    specs = serving.input_specs
    with tempfile.TemporaryDirectory() as folder:
        serving.save_for_conversion(folder, specs)
        inside = graph_names(spec.name for spec in specs)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantization != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantization == "int8":
            if integer:
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                ]
            converter.inference_input_type = converter.inference_output_type = io
            samples = random_samples(specs, 20)
            converter.representative_dataset = lambda: (
                {inside[name]: array[k : k + 1] for name, array in samples.items()}
                for k in range(20)
            )
        with warnings.catch_warnings():
            # Calibration uses the interpreter that TensorFlow tells others not to use.
            warnings.filterwarnings("ignore", r"\s+Warning: tf.lite.Interpreter")
            return converter.convert()
