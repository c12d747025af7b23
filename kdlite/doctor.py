"""Checks before training: what would waste hours is found in the first seconds.

`check` looks for every known failure and tells all it finds; `check_inputs` refuses
what `distill_to_tflite` cannot begin with.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kdlite.counts import checked_count
from kdlite.distill.class_map import ClassMap
from kdlite.distill.distiller import Distiller
from kdlite.distill.heads import Outputs
from kdlite.distill.losses import SoftTargets
from kdlite.distill.losses.outputs import needs_of
from kdlite.distill.samples import DataSet, not_finite
from kdlite.distill.taps import LogitsModel, logits_model
from kdlite.distill.targets import check_label_range
from kdlite.fingerprint import rows_fingerprint
from kdlite.lite.calibration import check_pixels
from kdlite.lite.preflight import broken_weight
from kdlite.symptoms import models, outputs
from kdlite.symptoms.case import Case, Finding, examine, unchanged
from kdlite.symptoms.export import unsupported_layer

Array = np.ndarray[Any, Any]

# A hash per row costs little, but not nothing: enough rows to see an overlap.
_OVERLAP_ROWS = 20_000

CODES = (
    "models",
    "frozen-student",
    "not-finite",
    "data",
    "label-range",
    "unlabelled",
    "class-without-samples",
    "probabilities-as-logits",
    "logits-as-probabilities",
    "double-softmax",
    "teacher-training-mode",
    "input-range",
    "class-order",
    "teacher-guesses",
    "teacher-worse",
    "temperature-high",
    "temperature-low",
    "dead-soft-loss",
    "small-batch-norm",
    "student-larger",
    "unsupported-layer",
)


@dataclass(frozen=True)
class Checkup:
    """What `check` found.

    Attributes:
        findings: What would go wrong, errors first; empty for a sound set-up.
        samples: Number of samples that both models were run on.
    """

    findings: tuple[Finding, ...]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Returns the findings as JSON takes them."""
        return {
            "passed": self.passed,
            "samples": self.samples,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        """All findings, each with its fix."""
        if self.passed:
            return f"no findings, on {self.samples} samples"
        return "\n".join(map(str, self.findings))


def check(
    student: keras.Model,
    teacher: keras.Model | LogitsModel | None,
    dataset: DataSet,
    *,
    loss: Any = None,
    soft_loss: keras.distillation.DistillationLoss | None = None,
    batch_size: int | None = None,
    class_map: Any = None,
    quantization: str | None = "int8",
    allow: Sequence[str] = (),
    samples: int = 256,
    student_outputs: Outputs | None = None,
    teacher_outputs: Outputs | None = None,
) -> Checkup:
    """Looks for every known failure of a distillation before it is begun.

    Both models run on a few samples, the teacher a few times; nothing is trained, and
    models and data are left as they are. docs/doctor.md lists what is looked for.

    Args:
        student: The model to be trained, with one output of classes.
        teacher: The trained model, or `None` if the data bring soft labels.
        dataset: What `Distiller.fit` will get: `x`, `(x, y)` or `(x, y, weights)` of
            arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`. Of arrays all
            labels are looked at, and `samples` evenly spaced rows; of others the first
            `samples`.
        loss: The loss that `compile()` will get, if it is to be checked too.
        soft_loss: As for `Distiller`; `SoftTargets(temperature=4.0)` by default.
        batch_size: Of the training; by default that of a data set in batches.
        class_map: For each class of the student the teacher's, as for `Distiller`.
        quantization: What the student will be exported as, `"int8"` or `"float32"`, so
            that layers that cannot be are found; `None` looks for none. Where
            quantization-aware training does not have a layer, the student is converted
            once on the samples, which takes some seconds.
        allow: Codes of findings to leave out.
        samples: How many samples to run the models on.
        student_outputs: What a student without a graph returns, as for `Distiller`.
        teacher_outputs: The same for the teacher.

    Returns:
        The findings, each with its fix; it prints well.

    Raises:
        TypeError: If the data are of no form that Keras takes.
        ValueError: If `allow` names no finding, `samples` or `batch_size` is less
            than 1, or `soft_loss` is not over class logits.

    Example:
        >>> import keras, numpy as np
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> teacher.set_weights([np.eye(2) * 9.0, np.zeros(2)])
        >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((100, 2))
        >>> print(check(student, teacher, (x, x.argmax(-1))))
        no findings, on 100 samples
        >>> print(check(student, teacher, (x, x.argmin(-1))))
        error class-order: The classes of teacher ... are in another order than ...
          Fix: Number the labels as in the teacher's training, or give class_map=[1, 0].
    """
    allow = (allow,) if isinstance(allow, str) else allow
    unknown = sorted(set(allow) - set(CODES))
    if unknown:
        raise ValueError(
            f"`allow` must name findings. Received: {', '.join(unknown)}. Fix: one of "
            f"{', '.join(CODES)}."
        )
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value is not None:
            checked_count(name, value, fix="leave it out for the default")
    soft_loss = soft_loss or SoftTargets()
    needs = needs_of(soft_loss)
    if needs != "class logits":
        raise ValueError(
            "`check` is about class logits. Received: soft_loss="
            f"{type(soft_loss).__name__}, which is over {needs}. Fix: the Distiller "
            "itself checks that both models have such outputs."
        )
    found: list[Finding] = []
    count = 0
    with _refusals(found, "models"):
        Distiller(
            student,
            teacher,
            soft_loss,
            class_map=class_map,
            student_outputs=student_outputs,
            teacher_outputs=teacher_outputs,
        )
    if not found and not student.trainable_variables:
        found.append(_frozen(student))
    if not found:
        found += _not_finite(student, teacher)
    if not found:
        pair = (
            logits_model(student, student_outputs, role="student"),
            teacher and logits_model(teacher, teacher_outputs, role="teacher"),
        )
        mapped = class_map
        if class_map is not None and not isinstance(class_map, ClassMap):
            mapped = ClassMap(class_map)
        with unchanged(*pair), _refusals(found, "data"):
            case, y = examine(
                *pair, mapped, dataset, samples, soft_loss, loss, batch_size
            )
            count = len(case.student_logits)
            # From such logits follows all else that would be found.
            found += models.not_finite_logits(case) or _symptoms(case, y)
            # Of a stream no more than its beginning is known.
            streamed = hasattr(dataset, "element_spec") or isinstance(
                dataset, keras.utils.PyDataset
            )
            in_range = all(finding.code != "label-range" for finding in found)
            if in_range and not streamed:
                found += [*filter(None, [outputs.classes_without_samples(case, y)])]
            if quantization is not None:
                found += [*filter(None, [unsupported_layer(case, quantization)])]
    found = [finding for finding in found if finding.code not in allow]
    order = {"error": 0, "warning": 1}
    return Checkup(tuple(sorted(found, key=lambda f: order[f.severity])), count)


def _symptoms(case: Case, y: Array | None) -> list[Finding]:
    """All that shows in a case; what follows from a finding is not looked for."""
    found: list[Finding | None] = [outputs.label_range(case, y)]
    if found[0] is not None:
        case, y = replace(case, y=None), None
    found += [
        outputs.loss_and_head(case),
        outputs.unlabelled(case, y),
        models.small_batches(case),
        models.student_larger(case),
        models.training_mode(case),
    ]
    heads = [
        symptom(case, role)
        for role in ("student", "teacher")
        for symptom in (outputs.probabilities_as_logits, outputs.double_softmax)
    ]
    found += heads
    causes: tuple[Callable[[Case], Finding | None], ...] = (
        outputs.class_order,
        models.input_range,
        outputs.teacher_ability,
    )
    wrong = next((f for f in (symptom(case) for symptom in causes) if f), None)
    found.append(wrong)
    if not any(heads) and (wrong is None or wrong.severity == "warning"):
        found.append(outputs.temperature(case))
    found.append(outputs.dead_gradient(case))
    return [finding for finding in found if finding is not None]


@contextlib.contextmanager
def _refusals(found: list[Finding], code: str) -> Iterator[None]:
    """Notes what kdlite's own checks refuse as a finding."""
    try:
        yield
    except (ValueError, TypeError) as err:
        found.append(Finding.of(code, err))


def _frozen(student: keras.Model) -> Finding:
    return Finding(
        "frozen-student",
        "error",
        f"Student '{student.name}' has no weights to train: all "
        f"{student.count_params():,} are frozen.",
        "student.trainable = True.",
    )


def _not_finite(student: keras.Model, teacher: Any) -> Iterator[Finding]:
    for role, read in (("student", student), ("teacher", teacher)):
        model = read.model if isinstance(read, LogitsModel) else read
        # Whatever else may teach has no weights of its own here.
        if isinstance(model, keras.Model) and (broken := broken_weight(model)):
            yield Finding(
                "not-finite",
                "error",
                f"The {role} '{model.name}' has weights that are no numbers: {broken}.",
                "Load it from before its training diverged, or make it anew.",
            )


def check_inputs(
    student: keras.Model,
    teacher: keras.Model,
    data: Mapping[str, tuple[Array, Array]],
    labels: Sequence[str] | None = None,
) -> None:
    """Checks models and data for a distillation of an image (or feature) classifier.

    Args:
        student: The model to train, one output of `(batch, classes)`.
        teacher: The trained model, the same classes in the same order.
        data: Splits by name (`"train"`, `"validation"`, `"test"`): `(x, y)`, `x` of
            shape `(samples, ...)` as both models take it, `y` integer class indices of
            shape `(samples,)` in `0..classes-1`.
        labels: Class names in the order of the indices, or None.

    Raises:
        ValueError: A rule is broken: the message names the rule, what was received and
            the fix.
        TypeError: A model or a split is of another type.

    Example:
        >>> import keras, numpy as np
        >>> def net(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        >>> train = (np.zeros((9, 4)), np.zeros(9, int))
        >>> check_inputs(net(3), net(2), {"train": train})
        Traceback (most recent call last):
        ...
        ValueError: Teacher and student must have the same classes. ...
    """
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"The {role} must be a keras.Model. Received: {type(model).__name__}. "
                "Load it with keras.models.load_model."
            )
        shape = _output_shape(model)
        if len(shape) != 2:
            raise ValueError(
                f"The {role} must have one output of shape (batch, classes). "
                f"Received: model {model.name!r} with output shape {shape}. Give a "
                "classifier; end it with a pooling or Flatten layer and a Dense layer."
            )
    if not student.trainable_variables:
        raise ValueError(
            "The student must have weights to train. Received: "
            f"{student.name!r}, in which all are frozen. Set student.trainable = True."
        )
    for role, model in (("student", student), ("teacher", teacher)):
        if broken := broken_weight(model):
            raise ValueError(
                f"The {role}'s weights must be numbers. Received: {model.name!r} with "
                f"{broken}. Load it from before its training diverged, or make it anew."
            )
    classes = _output_shape(student)[-1]
    teacher_classes = _output_shape(teacher)[-1]
    if classes != teacher_classes:
        raise ValueError(
            "Teacher and student must have the same classes. Received: teacher "
            f"{teacher.name!r} with {teacher_classes}, student {student.name!r} with "
            f"{classes}. Rebuild the student's last layer with {teacher_classes} units."
        )
    if labels is not None and len(labels) != classes:
        named = ", ".join([*labels[:5], *(["..."] if len(labels) > 5 else [])])
        raise ValueError(
            "There must be one name, or one subfolder of images, for each class. "
            f"Received: {len(labels)} ({named}) for {classes} classes. Give "
            "them in the order of the class indices."
        )
    for name, split in data.items():
        check_split(name, split, classes)
        for role, model in (("student", student), ("teacher", teacher)):
            _check_shape(name, split[0], role, model)
    _check_value_ranges(data, student, teacher)
    _warn_overlap(data)


def _output_shape(model: keras.Model) -> tuple[int | None, ...]:
    try:
        shape = model.output_shape
    except (AttributeError, ValueError) as err:
        raise ValueError(
            "A model must say the shapes that it takes and returns. Received: "
            f"{model.name!r}, a {type(model).__name__} without a graph. Build it with "
            "keras.Input; or use kdlite.Distiller, which takes subclassed models."
        ) from err
    if isinstance(shape, (list, dict)):
        raise ValueError(
            "A model must have one output here. Received: "
            f"{model.name!r} with {len(shape)} outputs. Use kdlite.Distiller directly "
            "on a model with the one output that is to be taught."
        )
    return tuple(shape)


def check_split(name: str, split: tuple[Array, Array], classes: int | None) -> None:
    """Raises unless samples and labels are what a classifier is trained on.

    Args:
        name: What they are called.
        split: Inputs `(samples, ...)` and class indices `(samples,)`.
        classes: How many classes there are, if known.

    Raises:
        TypeError: If `split` is no tuple of two.
        ValueError: If there are none, not as many labels, labels out of range or of
            another kind, or inputs that are not finite numbers.
    """
    if not isinstance(split, tuple) or len(split) != 2:
        raise TypeError(
            f"`{name}` must be a tuple (x, y) of arrays. Received: "
            f"{type(split).__name__}. Give x of shape (samples, ...) and y of shape "
            "(samples,)."
        )
    x, y = split
    if len(x) == 0:
        raise ValueError(f"`{name}` must hold samples. Received: none. Give some data.")
    if len(x) != len(y):
        raise ValueError(
            f"`{name}` must have one label a sample. Received: {len(x)} samples, "
            f"{len(y)} labels. Cut both to the same samples."
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"`{name}` labels must be integer class indices of shape (samples,). "
            f"Received: dtype {y.dtype}, shape {y.shape}. "
            + (
                "From one-hot rows: y.argmax(-1)."
                if y.ndim > 1
                else "From names: np.unique(y, return_inverse=True)[1]."
            )
        )
    check_label_range(y, classes or 0, name=name)
    if x.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` inputs must be numbers. Received: dtype {x.dtype}. Turn them "
            "into an array of numbers first."
        )
    bad = not_finite([x])
    if bad.any():
        raise ValueError(
            f"`{name}` inputs must be finite. Received: NaN or infinity in "
            f"{int(bad.sum())} samples, the first at index {int(bad.argmax())}. "
            "Clean or drop these samples."
        )


def _check_shape(name: str, x: Array, role: str, model: keras.Model) -> None:
    shape = model.input_shape
    if isinstance(shape, (list, dict)):
        raise ValueError(
            f"The {role} must have one input here. Received: {model.name!r} with "
            f"{len(shape)} inputs. Use kdlite.Distiller directly for several inputs."
        )
    wanted, got = tuple(shape[1:]), tuple(x.shape[1:])
    if len(wanted) != len(got) or any(
        w is not None and w != g for w, g in zip(wanted, got, strict=True)
    ):
        raise ValueError(
            f"`{name}` inputs must have the shape that the {role} takes. Received: "
            f"samples of {got}, {role} {model.name!r} takes {wanted}. Resize or "
            "reshape the data, or rebuild the model."
        )


def _check_value_ranges(
    data: Mapping[str, tuple[Array, Array]],
    student: keras.Model,
    teacher: keras.Model,
) -> None:
    """Pixels in 0..1 for one split and 0..255 for another are the classical mistake."""
    highest = {name: float(np.abs(x).max()) for name, (x, _) in data.items()}
    large = max(highest, key=highest.__getitem__)
    for name, value in highest.items():
        if value * 100 < highest[large]:
            raise ValueError(
                "All splits must be in the same units. Received: "
                f"`{name}` up to {value:g}, `{large}` up to {highest[large]:g}. Scale "
                "them alike (pixels all in 0..255, or all in 0..1)."
            )
    for model in (student, teacher):
        check_pixels(model, highest[large], f"`{large}`")


def _warn_overlap(data: Mapping[str, tuple[Array, Array]]) -> None:
    if "train" not in data:
        return
    seen = rows_fingerprint(data["train"][0])
    for name, (x, _) in data.items():
        if name == "train":
            continue
        rows = rows_fingerprint(x[:_OVERLAP_ROWS])
        share = float(np.isin(rows, seen).mean())
        if share > 0.01:
            warnings.warn(
                f"{share:.1%} of the `{name}` samples are in `train` too: figures on "
                "them say little. Split the data so that no sample is in both.",
                stacklevel=4,
            )
