"""Balance: gradients of equal norm, whatever the units of the losses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import (
    Hint,
    MultiLabelSoftTargets,
    Regression,
    SoftTargets,
)

N, FEATURES, CLASSES = 16, 4, 3


def classifier(seed, activation=None, policy=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(CLASSES, activation=activation, dtype=policy),
        ],
        name=f"m{seed}",
    )


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def x(rng):
    return rng.normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture
def y(rng):
    return rng.integers(0, CLASSES, N)


def distil(student, teacher, x, y, learning_rate=1.0, loss=None, **options):
    arguments = {"hard_loss_weight": 0.3, "soft_loss_weight": 0.7}
    distiller = Distiller(
        student, teacher, loss or SoftTargets(5.0), balance="gradient", **arguments
    )
    distiller.compile(
        keras.optimizers.SGD(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=student.layers[-1].activation is keras.activations.linear
        ),
        **options,
    )
    return distiller, distiller.fit(x, y, batch_size=N, verbose=0).history


def gradients(student, teacher, x, y, temperature=5.0):
    """On the logits, of both losses, in float64."""
    s, t = (
        x.astype("float64") @ m.layers[-1].get_weights()[0]
        + m.layers[-1].get_weights()[1]
        for m in (student, teacher)
    )
    hard = (softmax(s) - np.eye(CLASSES)[y]) / N
    soft = temperature * (softmax(s / temperature) - softmax(t / temperature)) / N
    return hard, soft


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        (None, {"jit_compile": False}),
        (None, {"run_eagerly": True}),
        ("softmax", {"jit_compile": True}),
        ("softmax", {"run_eagerly": True}),
    ],
)
def test_the_gradients_have_equal_norms(x, y, activation, options):
    student, teacher = classifier(0, activation), classifier(7)
    hard, soft = gradients(student, teacher, x, y)
    scale = np.linalg.norm(hard) / np.linalg.norm(soft)
    before = student.get_weights()
    _, logs = distil(student, teacher, x, y, **options)
    assert logs["soft_loss_scale"][0] == pytest.approx(scale, rel=1e-5)
    total = 0.3 * logs["hard_loss"][0] + 0.7 * scale * logs["soft_loss"][0]
    assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
    # And the student moves by just these, the scale being no part of the gradient.
    step = x.astype("float64").T @ (0.3 * hard + 0.7 * scale * soft)
    np.testing.assert_allclose(before[0] - student.get_weights()[0], step, atol=2e-6)


def test_the_units_of_a_loss_do_not_matter(x, y):
    class Times(SoftTargets):
        def values(self, *arguments):
            return 1000.0 * super().values(*arguments)

    steps = []
    for loss in (SoftTargets(5.0), Times(5.0)):
        student = classifier(0)
        _, logs = distil(student, classifier(7), x, y, loss=loss, run_eagerly=True)
        steps.append(student.get_weights()[0])
    np.testing.assert_allclose(*steps, atol=1e-5)


def test_without_labels_or_differences_the_scale_is_bounded(x, y):
    _, logs = distil(classifier(0), classifier(7), x, None, run_eagerly=True)
    assert logs["soft_loss_scale"] == [1.0]
    _, logs = distil(classifier(0), classifier(0), x, y, run_eagerly=True)
    assert 1.0 <= logs["soft_loss_scale"][0] <= 1e4
    assert np.isfinite(logs["loss"][0])


def test_each_output_is_balanced_on_its_own(x, rng):
    def model(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((FEATURES,))
        outputs = {
            "tags": layers.Dense(2, activation="sigmoid")(inputs),
            "box": layers.Dense(2)(inputs),
            "free": layers.Dense(2)(inputs),
        }
        return keras.Model(inputs, outputs)

    student = model(0)
    losses = {
        "tags": MultiLabelSoftTargets(2.0),
        "box": Regression(bounded=False),
        "free": Regression(bounded=False),
    }
    distiller = Distiller(student, model(7), losses, balance="gradient")
    distiller.compile(
        keras.optimizers.SGD(0.0),
        {"tags": "binary_crossentropy", "box": "mse", "free": None},
        run_eagerly=True,
    )
    y = {
        "tags": rng.integers(0, 2, (N, 2)),
        "box": 50.0 * rng.normal(size=(N, 2)),
        "free": np.zeros((N, 2)),
    }
    logs = distiller.fit(x, y, batch_size=N, verbose=0, validation_data=(x, y)).history
    s, t = student(x)["box"].numpy(), distiller.teacher(x)["box"].numpy()
    expected = np.linalg.norm(s - y["box"]) / np.linalg.norm(s - t)
    assert logs["box_soft_loss_scale"][0] == pytest.approx(expected, rel=1e-4)
    assert logs["free_soft_loss_scale"] == [1.0]  # no label pulls on it
    assert 0.0 < logs["tags_soft_loss_scale"][0] != 1.0
    assert not [name for name in logs if "val" in name and "scale" in name]


def test_half_precision_is_balanced_in_float32(x, y):
    student, teacher = classifier(0, "softmax", "mixed_float16"), classifier(7)
    distiller, logs = distil(student, teacher, x, y, 0.0, run_eagerly=True)
    hard, soft = gradients(student, teacher, x, y)
    scale = np.linalg.norm(hard) / np.linalg.norm(soft)
    # Logits in half precision: three digits.
    assert logs["soft_loss_scale"][0] == pytest.approx(scale, rel=5e-3)


def test_losses_on_features_are_left_as_they_are(x, y):
    def deep(seed):
        keras.utils.set_random_seed(seed)
        body = layers.Dense(5, name="body")
        return keras.Sequential([keras.Input((FEATURES,)), body, layers.Dense(CLASSES)])

    logs = []
    for balance in (None, "gradient"):
        distiller = Distiller(
            deep(0), deep(7), feature_losses={("body", "body"): Hint()}, balance=balance
        )
        distiller.compile(
            keras.optimizers.SGD(0.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        logs.append(distiller.fit(x, y, batch_size=N, verbose=0).history)
    features = [name for name in logs[0] if "hint" in name]
    assert features and all(logs[0][name] == logs[1][name] for name in features)
    soft = logs[0]["soft_loss"][0] * (logs[1]["soft_loss_scale"][0] - 1.0) * 0.9
    difference = logs[1]["loss"][0] - logs[0]["loss"][0]
    assert difference == pytest.approx(soft, rel=1e-4)


def test_it_is_saved(x, y, tmp_path):
    distiller, _ = distil(classifier(0), classifier(7), x, y, 0.1, run_eagerly=True)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    loaded.teacher = distiller.teacher
    assert loaded.balance == "gradient"
    logs = [d.fit(x, y, batch_size=N, verbose=0).history for d in (distiller, loaded)]
    assert logs[0] == logs[1]


def test_there_is_one_way_to_balance():
    with pytest.raises(ValueError, match="must be 'gradient' or None.*'norm'"):
        Distiller(classifier(0), classifier(7), balance="norm")
