"""The distiller: a student taught by a teacher, trained with Keras's own `fit()`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.balance import GradientBalance
from kdlite.distill.feature_losses import FeatureLosses, FeaturePair, Given
from kdlite.distill.first_step import build_metrics, build_optimizer, prepared
from kdlite.distill.heads import Outputs
from kdlite.distill.loss_weights import LossWeights, Weight
from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.losses.outputs import needs_of
from kdlite.distill.losses.teacher_loss import trained_layers
from kdlite.distill.mean_teacher import MeanTeacher
from kdlite.distill.pairs import OutputPairs, TeacherOutputs
from kdlite.distill.replicas import whole
from kdlite.distill.resumable import Resumable
from kdlite.distill.schedules import (
    Unit,
    from_config,
    unit_of,
)
from kdlite.distill.taps import (
    FEATURES_KEY,
    INPUTS_KEY,
    SOFT_LABELS_KEY,
    LogitsModel,
    brings_soft_labels,
    logits_model,
)
from kdlite.distill.targets import check_label_form, check_labels_for
from kdlite.distill.teachers import Transformed

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class Distiller(Resumable):
    r"""A student that learns from labels and from what a teacher returns.

    A `keras.Model` whose `call` is the student's, used through Keras's own `compile()`,
    `fit()`, `evaluate()` and `predict()`, with every data form they take. Training
    minimises, in one student forward pass a step,

    $$ w_h \, L_h(y, s) + w_s \, L_s(t, s) + \sum_k w_k \, L_k(t_k, s_k)
       + \text{regularization of the student} $$

    with the loss given to `compile()` as $L_h$ (it gets the student's own output, so
    `from_logits` is chosen there as ever) and `soft_loss` as $L_s$, over teacher logits
    `t` and student logits `s`, and `feature_losses` as $L_k$ over features of layers.
    Where a model ends in a softmax, the logits before it are taken. `sample_weight` and
    `class_weight` act on both losses. Without labels (`y=None`) the soft loss alone is
    minimised. Where only some samples have a label, a hard loss with `ignore_class` is
    a mean over those of a batch: a `hard_loss_weight` of their share lets a label count
    as much as the teacher's word about its sample.

    A student may have several outputs, in a dict, a list or a tuple. Then `compile()`
    takes losses, weights and metrics by output as ever, and `soft_loss` and
    `soft_loss_weight` may be given by output too: a dict by their names (the keys of a
    dict, else the layers' names) or a list in their order, with `None` for an output
    that the teacher has no say in, which a dict may also leave out. A single one is for
    all. The soft losses are added up. The teacher's outputs are those of the same
    names, or in the same places of two lists, or what `output_map` says; its classes
    are the student's, or what `class_map` says.

    The teacher's word comes from one of two places:

    - a `teacher`: it runs in inference mode, in training only, and is never changed,
      tracked or saved;
    - the data, when there is no teacher: `x` is the dict `{"inputs": <the student's
      inputs>, "soft_labels": <teacher logits>}`, with `y` and `sample_weight` in their
      usual places, as `kdlite.SoftLabels.attach` makes it. For several outputs the soft
      labels are in their structure, or a dict by their names. A third key,
      `"features"`, brings features of the teacher by its layers' paths.

    Logs: `loss`, `hard_loss`, `soft_loss` (both before weighting) and the metrics of
    `compile()`; for several outputs the losses of each, such as `box_soft_loss`;
    without labels `loss` and the soft losses. In `evaluate()` and validation
    `loss` is what `student.evaluate()` gives, the hard loss with the regularization,
    free of the weights, and there is no `soft_loss`. What follows a schedule is logged
    as well: `hard_loss_weight`, `soft_loss_weight`, `temperature` (by output
    `box_temperature` and so on).

    Saved (`.keras`), a distiller holds student, losses, weights, optimizer and the
    state of the student's random layers, and no teacher: `loaded.teacher = teacher`
    goes on where it was. `distiller.student.save(...)` is a plain Keras model.

    Args:
        student: The model to train. Classes (or labels, or values) are on the last axis
            of its outputs.
        teacher: A `keras.Model` that takes the student's inputs, such as one of
            `kdlite.teachers` (ensembles, files, functions), or `None` if the data bring
            soft labels.
        soft_loss: Any `keras.distillation.DistillationLoss`, or one by output. It is
            given class logits, or what an attribute `needs` of it says, and both
            models' heads must fit:
            `MultiLabelSoftTargets` takes the logits before sigmoids, `Regression` the
            values themselves. If it returns one value for the batch, sample weights
            cannot act on it and are refused. Defaults to
            `SoftTargets(temperature=4.0)`.
        hard_loss_weight: Weight $w_h \ge 0$ of the loss on the labels: a number, or one
            of `kdlite.schedules`, or a Keras `LearningRateSchedule`.
        soft_loss_weight: Weight $w_s \ge 0$ of the loss on the teacher's outputs, like
            the other; or a dict by output. Neither follows from the other: with 0.0
            here the loss is 0.1 times the hard one, unless that weight is given too.
        feature_losses: What the student learns from layers of the teacher: a dict from
            `(student layer, teacher layer)` to a loss, or to `(loss, weight)` with a
            number or a schedule (1.0 without). A name is a layer's path, as in
            `"backbone/block3"`; `FeatureTaps` says more, also for subclassed models. A
            loss is one of `kdlite.losses` on features, or any `DistillationLoss`.
            `"auto"` matches layers by stage, see `match_stages`. Such losses are read
            in the same forward passes, are logged each (`hint_loss`), and need stored
            features, or a Keras model as the teacher, which need not have the student's
            outputs if `soft_loss` is `{output: None}`. Where widths or sizes differ an
            adapter is built, trained and saved with the distiller; `student` has no
            part of it.
        student_outputs: What a student without a graph (a subclassed model) returns:
            `"logits"`, `"probabilities"` (behind a softmax), `"sigmoid"` or `"values"`,
            or a dict of these by output. `None` finds out from the graph.
        teacher_outputs: The same for the teacher, by its own names.
        output_map: From names of the student's outputs to names of the teacher's, where
            they differ.
        class_map: For each class of the student the teacher's: an index, several that
            are merged into one, or `None` where the teacher has none; a list, a
            `kdlite.ClassMap` (from names), or a dict of these by output. For
            `Regression` it is of values, whose order may differ as well.
        teacher_transform: A function of a batch of the student's inputs, or a Keras
            layer: what it returns is what the teacher sees, the same augmented image at
            another resolution, say. The teacher, which has one output, is then a
            `kdlite.teachers.Transformed`.
        balance: `"gradient"` scales the soft loss of each output, in each batch, so
            that its gradient on the student's logits (or values) has the norm of the
            hard loss's; weights are then shares of equals. See `GradientBalance`. The
            mean scale is logged, as `soft_loss_scale`. Losses on features and batches
            without labels are left as they are.
        **kwargs: `name`, `trainable` and `dtype`, as for every `keras.Model`; `dtype`
            is by default the student's.

    Attributes:
        student: The student, a plain `keras.Model`: the thing to save and export.
        teacher: The teacher, or `None`. May be set.
        soft_loss: The loss on the teacher's outputs, or a dict of them by output.
        hard_loss_weight: A variable; `.assign(0.5)` acts at once, in compiled code too,
            unless it follows a schedule. `distiller.hard_loss_weight = 0.5` ends that.
        soft_loss_weight: A variable, as above, or a dict of them by output.
        feature_losses: The pairs of layers; `distiller.feature_losses[pair].weight` is
            a variable, as above.

    Raises:
        TypeError: If a model or loss is not of its type.
        ValueError: If student and teacher do not fit together, if it cannot be known
            what one of them returns, or if a weight is negative or not finite.

    Example:
        >>> import keras, numpy as np
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> student = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
        ... )
        >>> distiller = Distiller(student, teacher)
        >>> distiller.compile(
        ...     "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
        ... )
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = distiller.fit(x, y, epochs=2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'hard_loss', 'loss', 'soft_loss']

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015,
        arXiv:1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | LogitsModel | MeanTeacher | None = None,
        soft_loss: Any = None,
        hard_loss_weight: float | LearningRateSchedule = 0.1,
        soft_loss_weight: Weight | Mapping[str, Weight] = 0.9,
        *,
        feature_losses: Given | Literal["auto"] | None = None,
        student_outputs: Outputs | Mapping[str, Outputs] | None = None,
        teacher_outputs: Outputs | Mapping[str, Outputs] | None = None,
        output_map: Mapping[str, str] | None = None,
        class_map: Any = None,
        teacher_transform: Callable[[Any], Any] | None = None,
        balance: Literal["gradient"] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(student, LogitsModel):
            raise TypeError(
                f"`student` must be a keras.Model. Received: student={student!r}. Fix: "
                f"give its model, and what it returns as student_outputs."
            )
        if balance not in (None, "gradient"):
            raise ValueError(
                f"`balance` must be 'gradient' or None. Received: balance={balance!r}. "
                f"Fix: None leaves the losses as they are."
            )
        pairs = OutputPairs(
            student,
            SoftTargets() if soft_loss is None else soft_loss,
            student_outputs,
            output_map,
            class_map,
            needed=not feature_losses,
        )
        if teacher_transform is not None:
            needs = needs_of(next(iter(pairs.losses.values())))
            kind = None if isinstance(teacher_outputs, Mapping) else teacher_outputs
            teacher = logits_model(teacher, kind, needs=needs, role="teacher")
            teacher, teacher_outputs = Transformed(teacher, teacher_transform), None
        # The student's policy, so that compile() scales the loss as for the student.
        # But inputs and soft labels must not be rounded to half precision on the way.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.student = student
        self._pairs = pairs
        self.balance = balance
        by_output = isinstance(soft_loss, (Mapping, list, tuple))
        losses = pairs.losses
        self._soft_loss = losses if by_output else next(iter(losses.values()))
        # What such a loss holds to be trained, a projection say, is trained here.
        self._soft_loss_layers = [
            layer
            for loss in {id(loss): loss for loss in losses.values()}.values()
            for layer in trained_layers(loss)
        ]
        self._declared_outputs = (student_outputs, teacher_outputs)
        self._traced_schedules: list[LearningRateSchedule] = []
        if isinstance(soft_loss_weight, Mapping):
            pairs.check_all_named("soft_loss_weight", soft_loss_weight)
        self._loss_weights = LossWeights(
            hard_loss_weight, soft_loss_weight, losses, self.add_weight
        )
        self._hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self._soft_loss_tracker = keras.metrics.Mean(name="soft_loss")
        self._soft_loss_trackers = {
            name: keras.metrics.Mean(name=f"{name}_soft_loss")
            for name in (losses if pairs.several else ())
        }
        self._scale_trackers = {
            name: keras.metrics.Mean(
                name=f"{name}_soft_loss_scale" if pairs.several else "soft_loss_scale"
            )
            for name in (losses if balance else ())
        }
        self._feature_losses = FeatureLosses(feature_losses or {}, student, teacher)
        # Trained with the student, and saved with the distiller.
        self._feature_pairs = list(self._feature_losses.values())
        self._teacher_outputs: TeacherOutputs | None = None
        self._mean_teacher: MeanTeacher | None = None
        self.teacher = teacher
        if student.built:
            self.built = True

    # --- what it is made of

    @property
    def teacher(self) -> keras.Model | MeanTeacher | None:
        """The teacher, or `None` when the data bring its logits."""
        if self._mean_teacher is not None:
            return self._mean_teacher
        return None if self._teacher_outputs is None else self._teacher_outputs.model

    @teacher.setter
    def teacher(self, teacher: keras.Model | LogitsModel | MeanTeacher | None) -> None:
        outputs, mean_teacher = None, None
        if isinstance(teacher, MeanTeacher):
            mean_teacher, average = teacher, teacher.follow(self.student)
            outputs = self._pairs.taught_by(average, self._declared_outputs[0])
        elif teacher is not None:
            outputs = self._pairs.taught_by(teacher, self._declared_outputs[1])
        self._feature_losses.learn_from(None if outputs is None else outputs.model)
        self._teacher_outputs, self._mean_teacher = outputs, mean_teacher
        self.train_function = None  # a traced one would go on with the old teacher
        self.supports_jit = True
        if outputs is not None:
            parts = outputs.model._flatten_layers()
            self.supports_jit = all(part.supports_jit for part in parts)
            if self.compiled and super().jit_compile and not self.supports_jit:
                warnings.warn(
                    f"Teacher '{outputs.name}' cannot be compiled by XLA. Proceeding "
                    f"with `jit_compile=False`.",
                    stacklevel=3,
                )
                self.jit_compile = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the teacher past Keras's tracking, so it is not a part."""
        if name == "teacher":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Lists attributes but the teacher: Keras saves every model it finds here."""
        return [name for name in super().__dir__() if name != "teacher"]

    @property
    def soft_loss(self) -> Any:
        """The loss on the teacher's outputs, or a dict of them by output."""
        return self._soft_loss

    @property
    def feature_losses(self) -> Mapping[tuple[str, str], FeaturePair]:
        """What is learnt from layers, by (student layer, teacher layer)."""
        return self._feature_losses

    @property
    def hard_loss_weight(self) -> keras.Variable:
        """Weight of the hard loss, a variable; assigning a number sets its value."""
        return self._loss_weights.hard

    @hard_loss_weight.setter
    def hard_loss_weight(self, value: float) -> None:
        self._loss_weights.set_hard(value)

    @property
    def soft_loss_weight(self) -> keras.Variable | dict[str, keras.Variable]:
        """Weight of the soft loss, a variable, or a dict of them by output.

        Assigning a number, or a dict of numbers, sets their values.
        """
        return self._loss_weights.soft

    @soft_loss_weight.setter
    def soft_loss_weight(self, value: float | Mapping[str, float]) -> None:
        if isinstance(value, Mapping):
            self._pairs.check_all_named("soft_loss_weight", value)
        self._loss_weights.set_soft(value)

    def _scheduled(self) -> dict[str, tuple[keras.Variable, LearningRateSchedule]]:
        """What follows a schedule, by the name it is logged under."""
        scheduled = self._loss_weights.scheduled()
        by_output = isinstance(self.soft_loss, Mapping)
        losses = self.soft_loss if by_output else {"": self.soft_loss}
        for name, loss in losses.items():
            temperature = getattr(loss, "temperature_schedule", None)
            if temperature is not None:
                logged = f"{name}_temperature" if by_output else "temperature"
                scheduled[logged] = (loss.temperature, temperature)
        return {**scheduled, **self._feature_losses.scheduled()}

    def _follow_schedules(self, unit: Unit, number: Any) -> None:
        for variable, schedule in self._scheduled().values():
            if unit_of(schedule) == unit:
                variable.assign(ops.cast(schedule(number), "float32"))

    def make_train_function(self, force: bool = False) -> None:
        """Makes Keras's training step anew if other schedules are to be followed.

        A schedule is part of the traced step, wherever a number took its place: here,
        or at the loss, which does not know who trains with it.

        Args:
            force: Whether to make it anew in any case.
        """
        schedules = [schedule for _, schedule in self._scheduled().values()]
        metrics = self._compile_metrics
        # Metrics that no batch had labels for are still to make their variables.
        force = force or (metrics is not None and not metrics.built)
        force = force or schedules != self._traced_schedules
        self._traced_schedules = schedules
        made = self.train_function
        super().make_train_function(force)
        self._prepare("train_function", made)

    def make_test_function(self, force: bool = False) -> None:
        """Makes Keras's evaluation step.

        Args:
            force: Whether to make it anew in any case.
        """
        made = self.test_function
        super().make_test_function(force)
        self._prepare("test_function", made)

    def _prepare(self, name: str, made: Any) -> None:
        """Has a new step function make its variables before it is traced."""
        step = getattr(self, name)

        def build(batch: Any) -> None:
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
            if name == "train_function":
                build_optimizer(self)
            build_metrics(self, self.student, labels)

        if step is not made:
            then = functools.partial(setattr, self, name)
            setattr(self, name, prepared(step, then, build))

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the student: `keras.Model.fit`, with schedules over epochs followed.

        Args:
            *args: As for every `keras.Model`.
            **kwargs: As for every `keras.Model`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If `y` is an array of class indices, for a loss that takes such,
                and there is no class of one of them.
        """
        given = inspect.signature(super().fit).bind_partial(*args, **kwargs)
        outputs: Any = getattr(self.student, "outputs", None) or []
        classes = outputs[0].shape[-1] if len(outputs) == 1 else None
        check_labels_for(self.loss, given.arguments.get("y"), classes)
        schedules = [schedule for _, schedule in self._scheduled().values()]
        if any(unit_of(schedule) == "epochs" for schedule in schedules):
            callbacks = given.arguments.get("callbacks")
            following = _EpochSchedules()
            if isinstance(callbacks, keras.callbacks.CallbackList):
                following.set_model(self)
                callbacks.callbacks.append(following)
                try:
                    return super().fit(*given.args, **given.kwargs)
                finally:  # it is the user's, for other calls and models too
                    callbacks.callbacks.remove(following)
            else:
                listed = keras.tree.flatten(callbacks) if callbacks else []
                # Last, so that what takes a run up again has told the epoch.
                given.arguments["callbacks"] = [*listed, following]
            args, kwargs = given.args, given.kwargs
        return super().fit(*args, **kwargs)

    @property
    def output_names(self) -> list[str]:
        """The student's output names, by which `compile()` takes losses and metrics."""
        return self.student.output_names

    # --- the forward pass and the losses, called by Keras's train and test steps

    def build(self, input_shape: Any) -> None:
        """Leaves building to the student, which builds when it is first called."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Runs the student.

        Args:
            inputs: The student's inputs, or, if there is no teacher, the dict of those
                and soft labels.
            training: Passed to the student.

        Returns:
            The student's output.
        """
        own = self._split(inputs)[0]
        return self._feature_losses.run_student(
            lambda: self.student(own, training=training),
            training=bool(training),
            ask=lambda: self._teachers_word(inputs),
            stored=self._stored_features(inputs),
        )

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Returns a batch's loss: distillation in training, else the student's own.

        Args:
            x: The batch as `fit()` got it, which the student has seen already.
            y: Labels, or `None`.
            y_pred: The student's output.
            sample_weight: Weights, or `None`.
            training: Whether this is a training step.

        Returns:
            A scalar.

        Raises:
            ValueError: Before the first step, if there is no source of soft labels, no
                loss for the labels, or a weight or mask that `soft_loss` cannot use.
        """
        if training and self.optimizer is not None:
            self._follow_schedules("steps", self.optimizer.iterations)
        balance = None
        if training and self.balance == "gradient":
            balance = GradientBalance(self._pairs, y_pred)
        with (
            self._feature_losses.read_teacher() as taught,
            balance or contextlib.nullcontext(),
        ):
            outputs = balance.outputs if balance else y_pred
            hard_loss = self._hard_loss(y, outputs, sample_weight, training)
            # Read before the teacher runs: its call begins anew to collect such losses.
            losses = [self._aggregate_additional_loss(loss) for loss in self.losses]
            soft_losses = {}
            if training:
                soft_losses = self._soft_losses(x, y, outputs, sample_weight)
        if balance:
            soft_losses = self._balanced(balance, hard_loss, soft_losses)
        if training:
            weights = self._loss_weights.of_outputs
            losses += [_product(weights[name], v) for name, v in soft_losses.items()]
            taught = self._stored_features(x) or taught
            losses += self._feature_losses.weighted(y_pred, taught, sample_weight)
        if hard_loss is not None:
            weight = self.hard_loss_weight
            losses.append(_product(weight, hard_loss) if training else hard_loss)
        # A half-precision student adds half-precision losses of its own.
        total, *others = (ops.cast(loss, keras.config.floatx()) for loss in losses)
        return sum(others, total)

    def _hard_loss(
        self, y: Tensor, y_pred: Tensor, sample_weight: Tensor, training: bool
    ) -> Tensor | None:
        if y is None and training:
            return None
        if y is None:
            raise ValueError(
                "`evaluate()` and validation compare with labels. Received: y=None. "
                "Fix: give labels, or train without validation data."
            )
        if self._compile_loss is None:
            raise ValueError(
                "Labels need a loss. Received: compile(loss=None) and data with y. "
                "Fix: distiller.compile(optimizer, loss=...), or give data without y "
                "to learn from the teacher alone."
            )
        check_label_form(self.loss, y, y_pred)
        loss = self._compile_loss(y, y_pred, sample_weight)
        size = _batch_size(y_pred)
        self._hard_loss_tracker.update_state(whole(loss), sample_weight=size)
        return loss

    def _soft_losses(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor
    ) -> dict[str, Tensor]:
        """The soft loss of each output that is taught."""
        said = self._pairs.read(y_pred)
        losses = self._taught(x, y, said, sample_weight)
        size = _batch_size(y_pred)
        for name, tracker in self._soft_loss_trackers.items():
            tracker.update_state(whole(losses[name]), sample_weight=size)
        total = whole(sum(losses.values()))
        self._soft_loss_tracker.update_state(total, sample_weight=size)
        return losses

    def _taught(
        self, x: Tensor, y: Tensor, said: dict[str, Tensor], sample_weight: Tensor
    ) -> dict[str, Tensor]:
        taught = keras.tree.map_structure(ops.stop_gradient, self._teachers_word(x))
        return self._pairs.values(taught, said, y, sample_weight)

    def _balanced(
        self,
        balance: GradientBalance,
        hard_loss: Tensor | None,
        soft_losses: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        scales = balance.scales(hard_loss, soft_losses)
        for name, tracker in self._scale_trackers.items():
            tracker.update_state(scales[name])
        return {name: scales[name] * loss for name, loss in soft_losses.items()}

    def _teachers_word(self, x: Tensor) -> dict[str, Tensor]:
        inputs, soft_labels = self._split(x)
        if soft_labels is not None:
            return self._pairs.soft_labels(soft_labels)
        if self._teacher_outputs is not None:
            return self._teacher_outputs(inputs, training=False)
        raise self._untaught()

    def _check_source(self, x: Tensor) -> None:
        """Raises where there is nothing to learn from beside the labels."""
        if self._split(x)[1] is None and self._teacher_outputs is None:
            raise self._untaught()

    def _untaught(self) -> ValueError:
        return ValueError(
            f"Training needs a teacher or soft labels. Received: teacher=None and data "
            f"without soft labels. Fix: distiller.teacher = teacher, or let x be a "
            f"dict with the keys '{INPUTS_KEY}' and '{SOFT_LABELS_KEY}', as "
            f"SoftLabels.attach() makes it."
        )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the student's inputs and the soft labels that came with them."""
        if not brings_soft_labels(x):
            return x, None
        own_keys = _input_names(self.student) == set(x)
        teacher = self._teacher_outputs
        if teacher is None and not own_keys:
            return x[INPUTS_KEY], x[SOFT_LABELS_KEY]
        if teacher is None:
            raise ValueError(
                f"Without a teacher, a dict with the keys '{INPUTS_KEY}' and "
                f"'{SOFT_LABELS_KEY}' is student inputs with soft labels. Received: "
                f"student '{self.student.name}', whose own inputs have these names. "
                f"Fix: set distiller.teacher, or rename the student's inputs."
            )
        if not own_keys:
            raise ValueError(
                f"Soft labels in the data take the place of a teacher. Received: both, "
                f"with teacher '{teacher.name}'. Fix: distiller.teacher = None, or "
                f"give the data without soft labels."
            )
        return x, None

    def _stored_features(self, x: Tensor) -> dict[str, Tensor]:
        """The teacher's features that came with soft labels."""
        if self._split(x)[1] is None:
            return {}
        features: dict[str, Tensor] = x.get(FEATURES_KEY, {})
        return features

    # --- what is logged

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> dict[str, Tensor]:
        """Updates and returns the metrics; without labels those that need none."""
        if y is not None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        trackers = [self._loss_tracker, *self._trackers_of_teaching()]
        results = {tracker.name: tracker.result() for tracker in trackers}
        return {**results, **self._scheduled_values()}

    def get_metrics_result(self) -> dict[str, Tensor]:
        """Returns the values of all metrics that have seen data of their kind."""
        results: dict[str, Tensor] = {}
        for metric in self.metrics:
            if metric is self._compile_metrics and not metric.built:
                continue  # never given labels
            result = metric.result()
            results.update(
                result if isinstance(result, dict) else {metric.name: result}
            )
        return {**results, **self._scheduled_values()}

    def _scheduled_values(self) -> dict[str, Tensor]:
        return {
            name: ops.convert_to_tensor(variable)
            for name, (variable, _) in self._scheduled().items()
        }

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """Trains the student on a batch; a mean teacher takes what came of it."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        # Before the student runs: that moves the states of its random layers.
        self._check_source(x)
        if self._mean_teacher is None:
            return super().train_step(data)
        # The optimizer counts updates: none while it accumulates gradients, or after
        # an overflow in half precision.
        before = ops.add(self.optimizer.iterations, 0)  # its value now
        logs = super().train_step(data)
        self._mean_teacher.update(self.optimizer.iterations - before)
        return logs

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluates the student on a batch; the teacher has no part in it."""
        logs = super().test_step(data)
        trackers = self._trackers_of_teaching()
        for name in (*(tracker.name for tracker in trackers), *self._scheduled()):
            logs.pop(name)
        return logs

    def _trackers_of_teaching(self) -> list[keras.metrics.Metric]:
        by_output = (self._soft_loss_trackers, self._scale_trackers)
        trackers = [tracker for each in by_output for tracker in each.values()]
        of_features = [pair.tracker for pair in self._feature_pairs]
        return [self._soft_loss_tracker, *trackers, *of_features]

    # --- saving and going on

    def get_config(self) -> dict[str, Any]:
        """Returns all but the teacher, which is no part of it but if a mean teacher."""
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self._mean_teacher),
            "soft_loss": keras.saving.serialize_keras_object(_plain(self.soft_loss)),
            **self._loss_weights.get_config(),
            "feature_losses": [
                keras.saving.serialize_keras_object(pair)
                for pair in self._feature_pairs
            ],
            "student_outputs": _plain(self._declared_outputs[0]),
            "teacher_outputs": _plain(self._declared_outputs[1]),
            "balance": self.balance,
            "output_map": self._pairs.output_map,
            "class_map": {
                name: class_map.to_list()
                for name, class_map in self._pairs.class_maps.items()
            },
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Distiller:
        """Returns a distiller from its config, with no teacher but a mean teacher."""
        config = dict(config)
        for name in ("student", "teacher", "soft_loss"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        for name in ("hard_loss_weight", "soft_loss_weight"):
            config[name] = from_config(config[name])
        pairs = [
            keras.saving.deserialize_keras_object(pair, custom_objects=custom_objects)
            for pair in config.get("feature_losses", ())
        ]
        config["feature_losses"] = {
            (pair.student_layer, pair.teacher_layer): pair for pair in pairs
        }
        return cls(**config)

    def students_in_training(self) -> tuple[keras.Model, ...]:
        """The student."""
        return (self.student,)

    def random_parts(self) -> tuple[keras.layers.Layer, ...]:
        """What is trained between features, of which generators draw masks."""
        return tuple(self._feature_pairs)

    def mean_teacher_weights(self) -> list[keras.Variable]:
        """The weights of the teacher, if it is a mean teacher."""
        return [] if self._mean_teacher is None else self._mean_teacher.weights


class _EpochSchedules(keras.callbacks.Callback):
    """Moves what follows a schedule over epochs."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model._follow_schedules("epochs", epoch)


def _product(weight: keras.Variable, loss: Tensor) -> Tensor:
    return ops.multiply(ops.cast(weight, loss.dtype), loss)


def _plain(value: Any) -> Any:
    """What Keras wrapped to track it, as it was."""
    return dict(value) if isinstance(value, Mapping) else value


def _batch_size(y_pred: Tensor) -> Tensor:
    return ops.shape(keras.tree.flatten(y_pred)[0])[0]


def _input_names(model: keras.Model) -> set[str]:
    return {tensor.name for tensor in getattr(model, "inputs", None) or ()}
