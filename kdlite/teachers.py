"""What can teach: the teachers of `kdlite.Distiller` and `kdlite.SoftLabels.build`.

A Keras model teaches as it is. These are Keras models as well, made of something else:

- `Ensemble`, of several models;
- `Transformed`, a teacher that sees another resolution or normalisation;
- `TFLite`, `ONNX`, `SavedModel`, files;
- `Function`, any Python function on numpy batches;
- `MeanTeacher`, the student itself, averaged over its steps;
- `LogitsModel`, a model without a graph, with what it returns.

`assistant_chain` and `born_again` teach one student after another, `MutualLearning`
several at once.

This is where the two rooms meet that do not know each other: `kdlite.distill`, which
knows nothing of `.tflite`, and `kdlite.lite`, which runs them.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import keras
import numpy as np

from kdlite.distill.foreign_teachers import Function as Function
from kdlite.distill.foreign_teachers import NumpyTeacher, checked_kind
from kdlite.distill.generations import Lineage as Lineage
from kdlite.distill.generations import assistant_chain as assistant_chain
from kdlite.distill.generations import born_again as born_again
from kdlite.distill.heads import Outputs
from kdlite.distill.mean_teacher import MeanTeacher as MeanTeacher
from kdlite.distill.mutual import MutualLearning as MutualLearning
from kdlite.distill.taps import LogitsModel as LogitsModel
from kdlite.distill.teacher_files import ONNX as ONNX
from kdlite.distill.teacher_files import SavedModel as SavedModel
from kdlite.distill.teacher_files import by_name, chosen_output, read_bytes
from kdlite.distill.teachers import Ensemble as Ensemble
from kdlite.distill.teachers import Transformed as Transformed
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.tflite_file import TensorInfo, TFLiteFile

__all__ = [
    "Ensemble",
    "Function",
    "Lineage",
    "LogitsModel",
    "MeanTeacher",
    "MutualLearning",
    "ONNX",
    "SavedModel",
    "TFLite",
    "Transformed",
    "assistant_chain",
    "born_again",
]

Array = np.ndarray[Any, Any]

# Operations through which an output is seen as what it was before.
_PASSED_THROUGH = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})
_SQUASHING: dict[str, Outputs] = {"SOFTMAX": "probabilities", "LOGISTIC": "sigmoid"}
# Operations that make real numbers of either sign.
_LINEAR = frozenset(
    "FULLY_CONNECTED CONV_2D DEPTHWISE_CONV_2D BATCH_MATMUL ADD SUB MUL DIV MEAN "
    "AVERAGE_POOL_2D LOG_SOFTMAX".split()
)


@keras.saving.register_keras_serializable(package="kdlite")
class TFLite(NumpyTeacher):
    """A `.tflite` as a teacher, run by LiteRT on the CPU.

    What it computes in integers is dequantized. Where it ends in a softmax of int8 a
    class below half a quantization step cannot be told from none, and counts as that
    half: most of what a teacher knows about unlikely classes is lost in such a file,
    and one that ends in logits teaches better.

    Args:
        file: The file; its bytes are what runs and what is fingerprinted.
        outputs: What it returns: `"logits"`, `"probabilities"`, `"sigmoid"`,
            `"values"`, or `None` to find out from its last operation.
        output: The name of the output that teaches, if it has several.
        threads: Threads that it may use.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        file_inputs: The names of its inputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file that LiteRT can run, has several outputs and none
            is named, or it cannot be known what it returns.

    Example:
        ``kdlite.Distiller(student, kdlite.teachers.TFLite("teacher.tflite"))``
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        outputs: Outputs | None = None,
        output: str | None = None,
        threads: int = 1,
        **kwargs: Any,
    ) -> None:
        checked_kind(outputs, or_none=True)
        blob = read_bytes(file)
        model = TFLiteModel(blob, threads)
        named = {tensor.name: tensor for tensor in model.outputs}
        chosen = chosen_output(file, named, output)
        found = outputs or _kind(file, model.content, chosen)
        step = model.content.step(chosen.name)
        limits = {}
        if found in ("probabilities", "sigmoid") and step is not None:
            limits["smallest"] = step / 2
        shape = [None if length < 0 else length for length in chosen.shape[1:]]
        known_by = {"sha256": hashlib.sha256(blob).hexdigest()}
        super().__init__(shape, found, known_by, **limits, **kwargs)
        self.file_inputs = tuple(tensor.name for tensor in model.inputs)
        self._model = model
        self._chosen = chosen.name

    def predict_numpy(self, x: Any) -> Array:
        """Runs the file, see `NumpyTeacher`."""
        outputs = self._model.predict(by_name(self.name, x, self.file_inputs))
        return outputs[self._chosen] if isinstance(outputs, dict) else outputs


def _kind(file: Any, content: TFLiteFile, output: TensorInfo) -> Outputs:
    """What a file returns, from the operation that its output comes from."""
    ops = [op for op in content.ops if op.outputs and not op.subgraph]
    made_by = {op.outputs[0]: op for op in ops}
    op = made_by.get(output.index)
    # Each operation runs once, so a chain is no longer than there are operations.
    for _ in ops:
        if op is None or op.name not in _PASSED_THROUGH or not op.inputs:
            break
        op = made_by.get(op.inputs[0])
    name = "no operation" if op is None else op.name
    if name in _SQUASHING:
        return _SQUASHING[name]
    if name in _LINEAR:
        return "logits"
    raise ValueError(
        f"It must be known whether a teacher returns logits or probabilities. "
        f"Received: {file}, whose output {output.name!r} comes from {name}. Fix: "
        f"outputs='logits' or 'probabilities'."
    )
