"""Feature losses: pairs of layers, the student's learning from the teacher's.

What `Distiller(feature_losses=...)` is given becomes a `FeaturePair` for each pair of
layers: a loss, its weight, and an adapter where widths or sizes differ.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.adapters import Adapter
from kdlite.distill.feature_taps import FeatureTaps, symbolically
from kdlite.distill.loss_weights import Weight
from kdlite.distill.losses.features import FeatureLoss
from kdlite.distill.losses.outputs import OutputLoss, weighted_loss
from kdlite.distill.losses.teacher_loss import trained_layers
from kdlite.distill.matching import match_stages
from kdlite.distill.mean_teacher import MeanTeacher
from kdlite.distill.replicas import whole
from kdlite.distill.schedules import (
    checked_number,
    from_config,
    in_config,
    start_of,
)
from kdlite.distill.taps import LogitsModel
from kdlite.distill.teachers import Teacher, Transformed

Tensor = Any
Shape = tuple[int | None, ...]
Features = dict[str, Tensor]
Loss: TypeAlias = keras.distillation.DistillationLoss
#: (student layer, teacher layer)
Layers = tuple[str, str]

logger = logging.getLogger(__name__)

_LOGGED = ("loss", "hard_loss", "soft_loss")


@keras.saving.register_keras_serializable(package="kdlite")
class FeaturePair(keras.layers.Layer):
    """A layer of the student that learns from one of the teacher.

    Args:
        student_layer: Path of the student's layer.
        teacher_layer: Path of the teacher's.
        loss: What compares them; any `keras.distillation.DistillationLoss`.
        weight: Its weight of 0 or more: a number or a schedule.
        name: What the loss is logged as.
        **kwargs: As for every Keras layer.

    Attributes:
        loss: The loss.
        adapter: What brings both to one width and size.
        weight: A variable; `.assign(0.5)` acts at once, in compiled code too, unless it
            follows a schedule. `pair.weight = 0.5` ends that.
        weight_schedule: The schedule that the weight follows, or `None`.
        tracker: The metric under which the loss is logged, before weighting.

    Raises:
        TypeError: If the weight is no number.
        ValueError: If the weight is negative or not finite.
    """

    def __init__(
        self,
        student_layer: str,
        teacher_layer: str,
        loss: Loss,
        weight: Weight = 1.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.loss = loss
        self.weight_schedule: LearningRateSchedule | None = None
        if isinstance(weight, LearningRateSchedule):
            self.weight_schedule = weight
            weight = start_of(weight)
        self._weight = self.add_weight(
            name="weight",
            initializer=keras.initializers.Constant(checked_number("weight", weight)),
            trainable=False,
        )
        # A loss that knows nothing of widths and sizes compares value by value.
        self.adapter = Adapter(
            getattr(loss, "same_width", True),
            getattr(loss, "same_size", True),
            getattr(loss, "always_projected", False),
            name="adapter",
        )
        self.tracker = keras.metrics.Mean(name=self.name)
        self._loss_layers: list[keras.layers.Layer] = []

    @property
    def weight(self) -> keras.Variable:
        """Weight of the loss, a variable; assigning a number sets its value."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight.assign(checked_number("weight", value))
        self.weight_schedule = None

    def build(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Makes what is trained: the adapter's projection and the loss's parts.

        Args:
            student_shape: Shape of the student's features, `None` for the batch.
            teacher_shape: That of the teacher's.
        """
        self.adapter.build(student_shape, teacher_shape)
        self._widths = student_shape[-1], teacher_shape[-1]
        if isinstance(self.loss, FeatureLoss):
            student, teacher = symbolically(
                self.adapter.adapt,
                *map(keras.KerasTensor, (student_shape, teacher_shape)),
            )
            self.loss.build(tuple(teacher.shape), tuple(student.shape))
        # What a loss holds to be trained is trained, and saved, with the pair.
        self._loss_layers = trained_layers(self.loss)

    def check(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Checks that another teacher's features fit what is trained already.

        Args:
            student_shape: Shape of the student's features.
            teacher_shape: That of the teacher's.

        Raises:
            ValueError: If widths are not those the pair was built for.
        """
        widths = student_shape[-1], teacher_shape[-1]
        if widths != self._widths and (
            self.adapter.projection is not None or self._loss_layers
        ):
            raise ValueError(
                f"What is trained between two layers is made for their widths. "
                f"Received: '{self.student_layer}' and '{self.teacher_layer}' of "
                f"widths {widths}, after {self._widths}. Fix: make a new Distiller, or "
                f"give a teacher with the same widths."
            )

    def value(self, student: Tensor, teacher: Tensor, sample_weight: Tensor) -> Tensor:
        """Returns the loss of a batch, and logs it.

        Args:
            student: The student's features.
            teacher: The teacher's.
            sample_weight: Weights of shape `(batch,)`, or `None`.

        Returns:
            A float32 scalar, before weighting.
        """
        student, teacher = self.adapter.adapt(student, teacher)
        teacher = ops.stop_gradient(teacher)
        if isinstance(self.loss, FeatureLoss):
            loss = self.loss(teacher, student, sample_weight)
        else:
            loss = weighted_loss(self.loss, teacher, student, sample_weight)
        self.tracker.update_state(whole(loss), sample_weight=ops.shape(student)[0])
        return loss

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the pair again, at its present weight."""
        return {
            **super().get_config(),
            "student_layer": self.student_layer,
            "teacher_layer": self.teacher_layer,
            "loss": keras.saving.serialize_keras_object(self.loss),
            "weight": in_config(self.weight_schedule, self._weight),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeaturePair:
        """Returns a pair from its config."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        weight = from_config(config["weight"])
        return cls(**{**config, "loss": loss, "weight": weight})

    def __repr__(self) -> str:
        """Names the loss and the weight."""
        weight = self.weight_schedule or round(float(self._weight.numpy()), 6)
        return f"<{type(self.loss).__name__}, weight={weight}>"


Given = Mapping[Layers, Loss | tuple[Loss, Weight] | FeaturePair]


class FeatureLosses(Mapping[Layers, FeaturePair]):
    """The pairs of a student, and how they are read and built.

    Args:
        losses: What `Distiller` was given: a dict, or `"auto"` for `match_stages`.
        student: The student.
        teacher: The teacher, or `None`; `"auto"` needs it.

    Raises:
        TypeError: If a key is not a pair of names, or a value no loss.
        ValueError: If there is no such layer, or two losses would be logged alike.
    """

    def __init__(
        self, losses: Given | Literal["auto"], student: keras.Model, teacher: Any = None
    ) -> None:
        if losses == "auto":
            # A mean teacher has the student's layers: it is a copy.
            of_teacher = student if isinstance(teacher, MeanTeacher) else teacher
            losses = match_stages(student, _keras_model(of_teacher))
            for layers, loss in losses.items():
                logger.info("%s learns from %s by %s", *layers, type(loss).__name__)
        self._pairs = _made(losses)
        self._student = FeatureTaps(
            student, {pair[0] for pair in self._pairs}, role="student"
        )
        self._teacher: FeatureTaps | None = None

    def __getitem__(self, layers: Layers) -> FeaturePair:
        """Returns the pair of two layers."""
        return self._pairs[layers]

    def __iter__(self) -> Iterator[Layers]:
        """Iterates over pairs of names."""
        return iter(self._pairs)

    def __len__(self) -> int:
        """Returns how many pairs there are."""
        return len(self._pairs)

    def __repr__(self) -> str:
        """Names each pair, its loss and its weight."""
        return repr(self._pairs)

    def learn_from(self, teacher: Any) -> None:
        """Sets the teacher, and builds what can be built before there is data.

        Args:
            teacher: A Keras model, or what holds one as `model`; or `None`.

        Raises:
            TypeError: If the teacher is no Keras model.
            ValueError: If it has no such layer, or its features do not fit.
        """
        if not self or teacher is None:
            self._teacher = None
            return
        taps = FeatureTaps(
            _keras_model(teacher), {pair[1] for pair in self}, role="teacher"
        )
        shapes = self._student.shapes(), taps.shapes()
        if shapes[0] is not None and shapes[1] is not None:
            self._build(shapes[0], shapes[1])
        self._teacher = taps

    def _build(self, student: dict[str, Shape], teacher: dict[str, Shape]) -> None:
        for (student_layer, teacher_layer), pair in self.items():
            shapes = student[student_layer], teacher[teacher_layer]
            if pair.built:
                pair.check(*shapes)
            else:
                pair.build(*((None, *shape[1:]) for shape in shapes))

    def scheduled(self) -> dict[str, tuple[keras.Variable, LearningRateSchedule]]:
        """What follows a schedule, by the name it is logged under."""
        found = {}
        for pair in self.values():
            temperature = getattr(pair.loss, "temperature_schedule", None)
            if pair.weight_schedule is not None:
                found[f"{pair.name}_weight"] = (pair.weight, pair.weight_schedule)
            if temperature is not None:
                name = f"{pair.name}_temperature"
                found[name] = (pair.loss.temperature, temperature)
        return found

    def run_student(
        self,
        run: Callable[[], Tensor],
        training: bool,
        ask: Callable[[], Any],
        stored: Features | None = None,
    ) -> Tensor:
        """Runs the student once, its features read where they are needed.

        Args:
            run: Runs the student.
            training: Whether it is a training step.
            ask: Runs the teacher, for the shapes of its features if they are not known:
                once, before training.
            stored: The teacher's features, where the data bring them.

        Returns:
            The student's outputs, on which `values` finds the features.
        """
        taught = self._teacher is not None or bool(stored)
        unknown = taught and not all(pair.built for pair in self.values())
        if not self or not (training or unknown):
            return run()
        with self._student.recording() as features:
            outputs = run()
        if unknown:
            with self.read_teacher() as said:
                if not stored:
                    ask()
            student, teacher = (
                {name: tuple(tensor.shape) for name, tensor in side.items()}
                for side in (features, self._checked_stored(stored) or said)
            )
            self._build(student, teacher)
        # As Keras keeps a mask: the features are the outputs' own, whichever thread or
        # trace they belong to.
        keras.tree.flatten(outputs)[0]._kdlite_features = features
        return outputs

    @contextlib.contextmanager
    def read_teacher(self) -> Iterator[Features]:
        """Reads the teacher's features in its forward pass within.

        Yields:
            A dict that has them by name once the teacher has run.
        """
        if self._teacher is None:
            yield {}
            return
        with self._teacher.recording() as features:
            yield features

    def _checked_stored(self, taught: Features | None) -> Features:
        """The features of the teacher, where each that is needed is there."""
        missing = [pair[1] for pair in self if taught and pair[1] not in taught]
        if missing:
            raise ValueError(
                f"Feature losses need features of the layers that they name. Received: "
                f"{missing[0]!r}, with stored features of {sorted(taught or ())}. Fix: "
                f"SoftLabels.build(..., features=({missing[0]!r}, ...)), which adds "
                f"them to the labels that are there."
            )
        return taught or {}

    def weighted(
        self, outputs: Tensor, taught: Features, sample_weight: Tensor
    ) -> list[Tensor]:
        """Returns the weighted loss of each pair.

        Args:
            outputs: The student's outputs, of the training step.
            taught: The teacher's features.
            sample_weight: Weights of the samples as `fit()` has them: a structure of
                tensors, one value for a sample or for each of its positions. A sample's
                weight is the mean of all.

        Returns:
            Scalars.

        Raises:
            ValueError: If the features of one side are not there.
        """
        if not self:
            return []
        features = getattr(keras.tree.flatten(outputs)[0], "_kdlite_features", None)
        if features is None:
            raise ValueError(
                "Feature losses read the student in its own forward pass. Received: "
                "outputs without features. Fix: train by fit() or train_on_batch()."
            )
        if not taught:
            raise ValueError(
                f"Feature losses need the teacher itself, or its features in the data. "
                f"Received: {len(self)} feature losses, teacher=None and soft labels "
                f"alone. Fix: SoftLabels.build(..., features="
                f"{tuple(pair[1] for pair in self)}), or distiller.teacher = teacher "
                f"with data without soft labels."
            )
        taught = self._checked_stored(taught)
        weights = _of_samples(sample_weight)
        return [
            ops.convert_to_tensor(pair.weight)
            * pair.value(features[layers[0]], taught[layers[1]], weights)
            for layers, pair in self.items()
        ]


def _keras_model(teacher: Any) -> keras.Model:
    model = teacher.model if isinstance(teacher, LogitsModel) else teacher
    if isinstance(model, Transformed):  # the one that sees what it is shown
        return _keras_model(model.teacher)
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Feature losses read the layers of a Keras model. Received: teacher="
            f"{teacher!r}. Fix: give the keras.Model itself, or leave out "
            f"feature_losses."
        )
    if isinstance(model, Teacher):
        raise TypeError(
            f"Feature losses read the layers of a Keras model that is built of layers. "
            f"Received: teacher={teacher!r}, {type(model).__name__}, which has none of "
            f"its own. Fix: give one of the models that it is made of, or leave out "
            f"feature_losses."
        )
    return model


def _made(losses: Given) -> dict[Layers, FeaturePair]:
    if not isinstance(losses, Mapping):
        raise TypeError(
            f"`feature_losses` must be a dict or 'auto'. Received: feature_losses="
            f"{losses!r}. Fix: {{('student_layer', 'teacher_layer'): "
            f"kdlite.losses.Hint()}}."
        )
    parts = {
        _checked_layers(layers): _loss_and_weight(layers, value)
        for layers, value in losses.items()
    }
    owned = Counter(id(loss) for loss, _ in parts.values() if _is_trained(loss))
    plain = Counter(_plain_name(loss) for loss, _ in parts.values())
    pairs = {}
    for layers, (loss, weight) in parts.items():
        given = losses[layers]
        if owned[id(loss)] > 1:
            raise ValueError(
                f"A loss with weights is for one pair of layers. Received: one "
                f"{type(loss).__name__} for {owned[id(loss)]} pairs. Fix: give each "
                f"pair one of its own."
            )
        name = _plain_name(loss)
        if plain[name] > 1:  # told apart by their layers
            name = "_".join([*layers, name]).replace("/", "_").replace(":", "_")
        if name in _LOGGED:
            raise ValueError(
                f"A feature loss must be logged under a name of its own. Received: "
                f"{name!r} for {layers}. Fix: give the loss another name."
            )
        if isinstance(given, FeaturePair):
            pairs[layers] = given
        else:
            pairs[layers] = FeaturePair(*layers, loss, weight, name=name)
    return pairs


def _checked_layers(layers: Any) -> Layers:
    if (
        isinstance(layers, tuple)
        and len(layers) == 2
        and all(isinstance(name, str) for name in layers)
    ):
        return layers
    raise TypeError(
        f"The keys of `feature_losses` must be pairs of layer names. Received: "
        f"{layers!r}. Fix: ('student_layer', 'teacher_layer')."
    )


def _loss_and_weight(layers: Layers, value: Any) -> tuple[Loss, Weight]:
    if isinstance(value, FeaturePair):
        return value.loss, 1.0
    loss, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
    if not isinstance(loss, keras.distillation.DistillationLoss):
        raise TypeError(
            f"A feature loss must be a keras.distillation.DistillationLoss, or a pair "
            f"of one and its weight. Received: {value!r} for {layers}. Fix: "
            f"kdlite.losses.Hint(), or (kdlite.losses.Hint(), 0.5)."
        )
    if isinstance(loss, OutputLoss):
        raise TypeError(
            f"A feature loss compares features of layers. Received: "
            f"{type(loss).__name__} for {layers}, which is over {loss.needs} of "
            f"outputs. Fix: soft_loss={type(loss).__name__}(), or one on features, "
            f"such as kdlite.losses.Hint()."
        )
    return loss, weight


def _is_trained(loss: Loss) -> bool:
    return isinstance(loss, FeatureLoss) and type(loss).make is not FeatureLoss.make


def _plain_name(loss: Loss) -> str:
    return f"{getattr(loss, 'name', None) or type(loss).__name__.lower()}_loss"


def _of_samples(sample_weight: Any) -> Tensor | None:
    """Weights of shape `(batch,)` from those of outputs and positions."""
    weights = [x for x in keras.tree.flatten(sample_weight) if x is not None]
    if not weights:
        return None
    means = []
    for weight in weights:
        weight = ops.cast(weight, "float32")
        axes = tuple(range(1, len(weight.shape)))
        means.append(ops.mean(weight, axis=axes) if axes else weight)
    return sum(means[1:], means[0]) / len(means)
