"""What shows in a student that it cannot be exported once it is trained."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

from kdlite.compress.integer_graph import IntegerGraph
from kdlite.compress.qat import is_quantize_aware
from kdlite.lite._converter import ConversionError
from kdlite.lite.convert import export
from kdlite.lite.verification import VerificationError
from kdlite.symptoms.case import Case, Finding


def unsupported_layer(case: Case, quantization: str) -> Finding | None:
    """A layer that the converter refuses, or leaves in float.

    What quantization-aware training takes is taken. Of the rest the converter knows,
    and is asked: the student is exported as it is.

    Args:
        case: The case.
        quantization: What the student will be exported as.
    """
    student = case.student.model
    if is_quantize_aware(student):
        return None
    try:
        IntegerGraph(student)
        return None
    except ValueError as err:
        refusal = str(err)
    logger = logging.getLogger("kdlite")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few samples
            export(
                student,
                Path(folder) / "student.tflite",
                quantization,
                calibration_data=case.x if quantization == "int8" else None,
            )
    except VerificationError:
        return None  # of weights that are not trained yet
    except (ConversionError, ValueError, TypeError) as err:
        return Finding(
            "unsupported-layer",
            "error",
            f"Student '{student.name}' cannot be exported as {quantization}. {err}",
            "Build the student from other layers, or check(quantization=...) for what "
            f"it will be. {refusal}",
        )
    finally:
        logger.setLevel(level)
    return None
