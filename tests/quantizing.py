"""A student, its integer model, and the two side by side."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from kdlite.compress.qat import freeze_batch_norm
from kdlite.compress.recipes import recipe as find_recipe
from kdlite.lite.stored_types import as_trained


def randomize(model, rng):
    """Gives biases and batch normalization values that a trained model could have."""
    for variable in model.variables:
        path, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if path == "gamma":
            variable.assign(rng.uniform(0.7, 1.3, shape) * rng.choice([-1, 1], shape))
        elif path == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif path in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, shape))


def calibrate(model, *batches):
    """Sets the ranges, and nothing else, by steps in training mode."""
    freeze_batch_norm(model)
    for batch in batches:
        model(batch, training=True)


def convert(model, folder, io=None, recipe="int8"):
    """Converts a plain model; no calibration data, one signature of batch 1."""
    recipe = find_recipe(recipe)
    if io is None:
        io = tf.int16 if recipe.activation_bits == 16 else tf.int8
    module = tf.Module()
    module.state = [variable.value for variable in model.variables]
    names = [f"in_{k}" for k in range(len(model.inputs))]

    @tf.function
    def run(**values):
        flat = [values[name] for name in names]
        outputs = model(keras.tree.pack_sequence_as(model.input, flat), training=False)
        return {f"out_{k}": y for k, y in enumerate(keras.tree.flatten(outputs))}

    specs = {
        name: tf.TensorSpec((1, *x.shape[1:]), tf.float32)
        for name, x in zip(names, model.inputs, strict=True)
    }
    run = run.get_concrete_function(**specs)
    tf.saved_model.save(module, folder, signatures=run)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = io
    return as_trained(converter.convert(), recipe)


def operations(content):
    """Operation names, and the dtypes of all tensors they touch."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    dtypes = {
        tensor["index"]: np.dtype(tensor["dtype"]).name
        for tensor in interpreter.get_tensor_details()
    }
    found = [op for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE"]
    used = {
        dtypes[i] for op in found for i in (*op["inputs"], *op["outputs"]) if i >= 0
    }
    return [op["op_name"] for op in found], used


def operations_behind(content, output):
    """Names of the operations that an output of the signature is computed by."""
    interpreter = Interpreter(model_content=content)
    details = interpreter.get_signature_runner().get_output_details()
    needed, names = {details[output]["index"]}, []
    for op in interpreter._get_ops_details()[::-1]:
        if op["op_name"] != "DELEGATE" and needed & set(op["outputs"]):
            needed.update(op["inputs"])
            names.append(op["op_name"])
    return names[::-1]


def run_lite(content, *inputs):
    """Returns for each output its values as real numbers, scale and zero point."""
    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()
    samples = []
    for sample in zip(*inputs, strict=True):
        feed = {}
        for k, x in enumerate(sample):
            scale, zero = details[f"in_{k}"]["quantization"]
            dtype = details[f"in_{k}"]["dtype"]
            q = np.rint(x[None] * (np.float32(1.0) / np.float32(scale))) + zero
            limits = np.iinfo(dtype)
            feed[f"in_{k}"] = np.clip(q, limits.min, limits.max).astype(dtype)
        samples.append(runner(**feed))
    results = []
    for k in range(len(samples[0])):
        scale, zero = runner.get_output_details()[f"out_{k}"]["quantization"]
        q = np.concatenate([sample[f"out_{k}"] for sample in samples])
        results.append(((np.float64(q) - zero) * scale, scale, zero))
    return results, details


def run_floats(content, x):
    """Returns the only output of a file with float inputs and outputs."""
    runner = Interpreter(model_content=content).get_signature_runner()
    return np.concatenate([runner(in_0=sample[None])["out_0"] for sample in x])


def assert_same_within_one_step(qat, content, *inputs, below=4):
    """The integer model's outputs are at most one step off, in 99 % of the values.

    Not all: float arithmetic takes a value close to a tie to the other level, and what
    follows it may make two of that.

    Returns:
        The Keras model's outputs.
    """
    struct = keras.tree.pack_sequence_as(qat.input, list(inputs))
    expected = keras.tree.flatten(qat(struct, training=False))
    results = run_lite(content, *inputs)[0]
    for k, (y, (values, scale, _)) in enumerate(zip(expected, results, strict=True)):
        steps = np.abs(values - y.numpy()) / scale
        assert np.mean(steps < 1.01) >= 0.99, f"output {k}: {np.mean(steps < 1.01)}"
        assert steps.max() < below, f"output {k}: {steps.max()} steps"
        assert len(np.unique(values)) > 8, f"output {k}: {np.unique(values)}"
    return expected
