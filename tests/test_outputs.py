"""SoftTargets: values and gradients against float64 oracles, and invariants."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.losses.outputs import compatible_shapes

Array = np.ndarray


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def oracle(teacher: Array, student: Array, temperature: float) -> Array:
    """The divergence as the textbook has it, in float64, by probabilities."""
    p = softmax(np.asarray(teacher, "float64") / temperature)
    q = softmax(np.asarray(student, "float64") / temperature)
    return (p * np.log(p / q)).sum(axis=-1) * temperature**2


def gradient(loss: SoftTargets, teacher: Array, student: Array) -> Array:
    variable = tf.Variable(student, dtype="float32")
    with tf.GradientTape() as tape:
        value = loss(teacher, variable)
    return tape.gradient(value, variable).numpy()


def test_golden_value():
    # Worked out by hand: p = softmax(5/3, 1/3, -2/3), q = softmax(1/3, 4/3, 0).
    loss = SoftTargets(temperature=3.0)
    value = float(loss(np.array([[5.0, 1.0, -2.0]]), np.array([[1.0, 4.0, 0.0]])))
    assert value == pytest.approx(5.2828, abs=5e-5)
    assert value == pytest.approx(
        oracle([[5.0, 1.0, -2.0]], [[1.0, 4.0, 0.0]], 3.0)[0], rel=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(16, 10), (4, 5, 7)])
def test_values_equal_the_oracle(rng, temperature, shape):
    teacher, student = rng.normal(scale=4.0, size=(2, *shape))
    loss = SoftTargets(temperature, reduction=None)
    values = loss(teacher, student).numpy()
    expected = oracle(teacher, student, temperature)
    assert values.shape == shape[:-1]
    # float32 log-probabilities are of the size of the logits: errors of 1e-6 of them,
    # times T squared.
    np.testing.assert_allclose(
        values, expected, rtol=2e-5, atol=1e-5 * max(1.0, temperature**2)
    )
    assert float(SoftTargets(temperature)(teacher, student)) == pytest.approx(
        expected.mean(), rel=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_gradient_is_the_closed_form(rng, temperature):
    teacher, student = rng.normal(scale=3.0, size=(2, 6, 5))
    loss = SoftTargets(temperature, reduction="sum")
    expected = temperature * (
        softmax(student / temperature) - softmax(teacher / temperature)
    )
    np.testing.assert_allclose(gradient(loss, teacher, student), expected, atol=2e-6)


def test_gradient_is_that_of_finite_differences(rng):
    teacher, student = rng.normal(size=(2, 3, 4))
    step, numeric = 1e-5, np.zeros((3, 4))
    for index in np.ndindex(3, 4):
        up, down = student.copy(), student.copy()
        up[index] += step
        down[index] -= step
        numeric[index] = (
            oracle(teacher, up, 2.0).sum() - oracle(teacher, down, 2.0).sum()
        ) / (2 * step)
    analytic = gradient(SoftTargets(2.0, reduction="sum"), teacher, student)
    np.testing.assert_allclose(analytic, numeric, atol=1e-6)


def test_the_student_gets_a_gradient_and_the_variable_form_is_its_own(rng):
    # IntelLabs distiller gave the loss a detached copy of the student's logits.
    teacher, student = rng.normal(size=(2, 4, 3))
    assert np.abs(gradient(SoftTargets(), teacher, student)).max() > 0.01


def test_the_pull_on_the_student_does_not_hang_on_the_temperature(rng):
    # TextBrewer has no T squared: T = 4 weakens its soft loss 16 times.
    teacher, student = rng.normal(scale=0.1, size=(2, 64, 10))
    norms = [
        np.linalg.norm(gradient(SoftTargets(t), teacher, student)) for t in (2.0, 20.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_softening_happens_before_the_softmax(rng):
    # Dividing probabilities by T, as Intel's TF path does, softens nothing.
    teacher = np.array([[9.0, 3.0, 0.0]])
    student = np.zeros((1, 3))
    wrong = oracle(softmax(teacher), student, 4.0)[0]
    assert float(SoftTargets(4.0)(teacher, student)) > 10 * wrong


def test_a_shift_of_all_logits_changes_nothing(rng):
    teacher, student = rng.normal(size=(2, 8, 5)).astype("float32")
    loss = SoftTargets(2.0)
    shifted = loss(teacher + 3.0, student - 50.0)
    assert float(shifted) == pytest.approx(float(loss(teacher, student)), abs=2e-5)


def test_equal_distributions_give_zero_and_others_more(rng):
    teacher, student = rng.normal(size=(2, 32, 5)).astype("float32")
    loss = SoftTargets(3.0, reduction=None)
    assert np.abs(loss(teacher, teacher)).max() == 0.0
    assert np.abs(gradient(loss, teacher, teacher)).max() < 1e-6
    assert (loss(teacher, student).numpy() > 0.0).all()


def test_permuting_the_classes_changes_nothing(rng):
    teacher, student = rng.normal(size=(2, 8, 5)).astype("float32")
    order = rng.permutation(5)
    loss = SoftTargets(2.0, reduction=None)
    np.testing.assert_allclose(
        loss(teacher[:, order], student[:, order]), loss(teacher, student), atol=1e-5
    )


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        # A class that the teacher rules out; then one that both rule out.
        ([0.0, 0.0, -np.inf], [0.0, 0.0, 0.0], np.log(1.5)),
        ([0.0, 0.0, -np.inf], [0.0, 0.0, -np.inf], 0.0),
        ([0.0, np.log(3.0), -np.inf], [0.0, 0.0, -np.inf], np.log(2) - 0.562335),
        # Certainty, by a large and by an infinite logit.
        ([1e4, 0.0, 0.0], [0.0, 0.0, 0.0], np.log(3.0)),
        ([3e38, 0.0, 0.0], [0.0, 0.0, 0.0], np.log(3.0)),
        ([np.inf, 0.0, 0.0], [0.0, 0.0, 0.0], np.log(3.0)),
        ([np.inf, 0.0, 0.0], [np.inf, 0.0, 0.0], 0.0),
        ([1e38, -1e38, 0.0], [1e38, -1e38, 0.0], 0.0),
    ],
)
def test_limits_are_numbers(teacher, student, expected):
    loss = SoftTargets(temperature=1.0)
    assert float(loss(np.array([teacher]), np.array([student]))) == pytest.approx(
        expected, abs=1e-5
    )
    assert np.isfinite(gradient(loss, np.array([teacher]), np.array([student]))).all()


def test_a_nan_logit_is_not_hidden():
    assert np.isnan(float(SoftTargets()(np.array([[np.nan, 0.0]]), np.zeros((1, 2)))))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_compared_in_float32(rng, dtype):
    teacher, student = (
        keras.ops.cast(v, dtype) for v in rng.normal(scale=8.0, size=(2, 16, 10))
    )
    value = SoftTargets(8.0)(teacher, student)
    exact = [
        keras.ops.convert_to_numpy(keras.ops.cast(v, "float32"))
        for v in (teacher, student)
    ]
    assert value.dtype == "float32"
    assert float(value) == pytest.approx(oracle(*exact, 8.0).mean(), rel=1e-5)


def test_sample_weights_and_reduction_are_those_of_keras(rng):
    teacher, student = rng.normal(size=(2, 4, 3))
    weights = np.array([0.0, 1.0, 2.5, 0.5])
    values = oracle(teacher, student, 4.0)
    loss = SoftTargets()
    assert float(loss(teacher, student, sample_weight=weights)) == pytest.approx(
        (weights * values).sum() / 4, rel=1e-5
    )
    assert float(
        loss.compute_loss(teacher, student, sample_weight=weights)
    ) == pytest.approx((weights * values).sum() / 4, rel=1e-5)
    assert float(SoftTargets(reduction="sum")(teacher, student)) == pytest.approx(
        values.sum(), rel=1e-5
    )


def test_masked_positions_do_not_count(rng):
    teacher, student = rng.normal(size=(2, 2, 3, 5)).astype("float32")
    mask = np.array([[True, True, False], [True, False, False]])
    logits = tf.convert_to_tensor(student)
    logits._keras_mask = tf.convert_to_tensor(mask)
    expected = oracle(teacher, student, 4.0)[mask].mean()
    assert float(SoftTargets()(teacher, logits)) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_moves_in_compiled_code(rng):
    teacher, student = rng.normal(size=(2, 4, 3)).astype("float32")
    loss = SoftTargets(1.0)
    compiled = tf.function(lambda: loss(teacher, student), jit_compile=True)
    for temperature in (1.0, 5.0):
        loss.temperature.assign(temperature)
        expected = oracle(teacher, student, temperature).mean()
        assert float(compiled()) == pytest.approx(expected, rel=1e-4)
    loss.temperature = 2.0
    assert float(compiled()) == pytest.approx(
        oracle(teacher, student, 2.0).mean(), rel=1e-4
    )


def test_config_round_trip_keeps_the_present_temperature(rng):
    loss = SoftTargets(2.0, reduction="sum", name="kd")
    loss.temperature.assign(6.0)
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, SoftTargets)
    assert (
        copy.get_config()
        == loss.get_config()
        == {
            "name": "kd",
            "reduction": "sum",
            "temperature": 6.0,
            "divergence": "forward",
            "standardize": False,
        }
    )
    teacher, student = rng.normal(size=(2, 4, 3))
    assert float(copy(teacher, student)) == float(loss(teacher, student))


def test_it_works_as_a_loss_in_compile(rng):
    x, logits = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.0), SoftTargets(2.0))
    value = model.evaluate(x, logits, verbose=0)
    expected = oracle(logits, model.predict(x, verbose=0), 2.0).mean()
    assert value == pytest.approx(expected, rel=1e-5)


class TestInKerasDistiller:
    """The same loss under `keras.distillation.Distiller`, with its contract."""

    @staticmethod
    def models(activation=None):
        return [
            keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(3, activation=activation)]
            )
            for _ in range(2)
        ]

    def test_gives_the_true_divergence(self, rng):
        # Keras's own default takes KL over raw logits: 0.7324 where 5.2828 is right.
        x = rng.normal(size=(8, 4)).astype("float32")
        teacher, student = self.models()
        expected = oracle(teacher(x), student(x), 3.0).mean()
        distiller = keras.distillation.Distiller(
            teacher, student, SoftTargets(3.0), student_loss_weight=0.0
        )
        distiller.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
        logs = distiller.fit(x, np.zeros((8, 3)), verbose=0).history
        assert logs["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_refuses_softmax_heads(self):
        teacher, student = self.models("softmax")
        with pytest.raises(ValueError, match=r"`SoftTargets` needs logits.*ends in a"):
            keras.distillation.Distiller(teacher, student, SoftTargets())


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match=r"must be above 0\. Received: temperature="):
        SoftTargets(temperature)
    with pytest.raises(ValueError, match="must be above 0"):
        SoftTargets().temperature = temperature


@pytest.mark.parametrize("temperature", [np.nan, np.inf])
def test_temperature_must_be_finite(temperature):
    with pytest.raises(ValueError, match="`temperature` must be finite. Received"):
        SoftTargets(temperature)


@pytest.mark.parametrize("temperature", ["warm", None, True])
def test_temperature_must_be_a_number(temperature):
    with pytest.raises(TypeError, match="`temperature` must be a number. Received"):
        SoftTargets(temperature)


@pytest.mark.parametrize("shape", [(2, 4), (2, 1), (2, 3, 3), (3, 3)])
def test_shapes_must_match(shape):
    with pytest.raises(ValueError, match=r"same shape\. Received: teacher \(2, 3\)"):
        SoftTargets()(np.zeros((2, 3)), np.zeros(shape))


def test_several_outputs_are_refused():
    with pytest.raises(ValueError, match="one output of each model. Received: student"):
        SoftTargets().validate_outputs(np.zeros((2, 3)), [np.zeros((2, 3))])


def test_compatible_shapes():
    assert compatible_shapes((None, 3), (8, None))
    assert not compatible_shapes((8, 3), (8, 4))
    assert not compatible_shapes((8,), (8, 4))
