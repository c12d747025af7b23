"""The losses on outputs, each against a float64 oracle written from its paper."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import (
    DIST,
    NKD,
    DecoupledKD,
    HardLabel,
    LogitMSE,
    MultiLabelSoftTargets,
    PixelSoftTargets,
    Regression,
    SequenceSoftTargets,
    SoftTargets,
)
from kdlite.distill.losses.outputs import weighted_loss

Array = np.ndarray
CLASSES = 5


# --- the oracles: probabilities in float64, loops where the paper has sums


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(-1)


def reverse(t, s, y, temperature=3.0):
    return temperature**2 * kl(softmax(s / temperature), softmax(t / temperature))


def jensen_shannon(t, s, y, temperature=3.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def standardized(t, s, y, temperature=2.0):
    t, s = ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) for x in (t, s))
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))


def logit_mse(t, s, y):
    return ((t - s) ** 2).mean(-1)


def centered_mse(t, s, y):
    return logit_mse(t - t.mean(-1, keepdims=True), s - s.mean(-1, keepdims=True), y)


def hard_label(t, s, y):
    rows = np.indices(t.shape[:-1])
    return -np.log(softmax(s)[(*rows, t.argmax(-1))])


def by_row(value):
    """Makes an oracle of one row that of any shape."""

    def oracle(t, s, y):
        result = np.zeros(t.shape[:-1])
        for index in np.ndindex(result.shape):
            result[index] = value(t[index], s[index], y[index])
        return result

    return oracle


@by_row
def decoupled(t, s, y, temperature=4.0, alpha=1.0, beta=8.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    b = [np.array([x[y], 1.0 - x[y]]) for x in (p, q)]
    rest = [np.delete(x, y) / (1.0 - x[y]) for x in (p, q)]
    return temperature**2 * (alpha * kl(*b) + beta * kl(*rest))


@by_row
def nkd(t, s, y, temperature=2.0, gamma=1.5):
    target = -softmax(t)[y] * np.log(softmax(s)[y])
    p, q = (softmax(np.delete(x, y) / temperature) for x in (t, s))
    return target - gamma * temperature**2 * (p * np.log(q)).sum()


def dist(t, s, y, temperature=4.0, beta=1.0, gamma=2.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    inter = np.zeros(t.shape[:-1])
    for index in np.ndindex(inter.shape):
        inter[index] = 1 - np.corrcoef(p[index], q[index])[0, 1]
    columns = zip(*(x.reshape(-1, x.shape[-1]).T for x in (p, q)), strict=True)
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in columns])
    return temperature**2 * (beta * inter + gamma * intra)


def multi_label(t, s, y, temperature=2.0):
    p, q = (1 / (1 + np.exp(-x / temperature)) for x in (t, s))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * each.mean(-1)


@by_row
def regression(t, s, y, margin=1.65):
    error, bound = ((s - y) ** 2).mean(), ((t - y) ** 2).mean()
    return error if error + margin > bound else 0.0


def imitation(t, s, y):
    return ((t - s) ** 2).mean(-1)


def by_position(t, s, y, temperature=2.0):
    result = np.zeros(t.shape[:-1])
    for index in np.ndindex(result.shape):
        if y[index] != IGNORED:
            p, q = softmax(t[index] / temperature), softmax(s[index] / temperature)
            result[index] = temperature**2 * kl(p, q)
    return result


def by_class_map(t, s, y, temperature=4.0):
    """Each class map, of the pixels that count, as one distribution."""
    result = np.zeros(t.shape[:-1])
    for sample in range(len(t)):
        counted = y[sample] != IGNORED
        maps = [
            kl(softmax(a[counted] / temperature), softmax(b[counted] / temperature))
            for a, b in zip(
                np.moveaxis(t[sample], -1, 0),
                np.moveaxis(s[sample], -1, 0),
                strict=True,
            )
        ]
        result[sample][counted] = temperature**2 * np.mean(maps)
    return result


IGNORED = 0

# Each loss, its oracle, and what the paper says of it at equality and under shifts.
CASES = {
    "reverse": (lambda: SoftTargets(3.0, divergence="reverse"), reverse),
    "jensen_shannon": (
        lambda: SoftTargets(3.0, divergence="jensen_shannon"),
        jensen_shannon,
    ),
    "standardized": (lambda: SoftTargets(2.0, standardize=True), standardized),
    "logit_mse": (LogitMSE, logit_mse),
    "centered_mse": (lambda: LogitMSE(center=True), centered_mse),
    "hard_label": (HardLabel, hard_label),
    "decoupled": (DecoupledKD, decoupled),
    "nkd": (lambda: NKD(2.0), nkd),
    "dist": (lambda: DIST(4.0, intra_weight=2.0), dist),
    "multi_label": (MultiLabelSoftTargets, multi_label),
    "regression": (lambda: Regression(margin=1.65), regression),
    "imitation": (lambda: Regression(bounded=False), imitation),
    "sequence": (lambda: SequenceSoftTargets(ignore_class=IGNORED), by_position),
    "pixels": (lambda: PixelSoftTargets(2.0, ignore_class=IGNORED), by_position),
    "class_maps": (
        lambda: PixelSoftTargets(over="positions", ignore_class=IGNORED),
        by_class_map,
    ),
}
ZERO_AT_EQUALITY = set(CASES) - {"hard_label", "nkd", "regression"}
SHIFT_INVARIANT = set(CASES) - {"logit_mse", "multi_label", "regression", "imitation"}
COPIES = {"logit_mse", "centered_mse", "regression", "imitation"}
# Shapes of a sequence's and an image's outputs; the others take any.
SHAPES = {"sequence": [(3, 4, 7), (2, 3, 5), (5, 2, 10)]} | dict.fromkeys(
    ["pixels", "class_maps"], [(2, 3, 2, 10), (1, 5, 4, 3), (3, 2, 2, 5)]
)
SMALL = {"sequence": (2, 3, CLASSES)} | dict.fromkeys(
    ["pixels", "class_maps"], (2, 3, 1, CLASSES)
)

each = pytest.mark.parametrize("case", CASES)


def made(case: str, reduction: str | None = None):
    loss = CASES[case][0]()
    loss.reduction = reduction
    return loss


def given_to(loss, teacher, labels):
    return (teacher, labels) if loss.uses_labels else teacher


def drawn(rng, shape, scale=3.0, case=None):
    teacher, student = rng.normal(scale=scale, size=(2, *shape)).astype("float32")
    if case == "regression":
        return teacher, student, rng.normal(scale=scale, size=shape).astype("float32")
    return teacher, student, rng.integers(shape[-1], size=shape[:-1])


@each
@pytest.mark.parametrize("index", range(3))
def test_values_equal_the_oracle(rng, case, index):
    shape = SHAPES.get(case, [(16, CLASSES), (3, 4, 7), (2, 3, 2, 10)])[index]
    teacher, student, labels = drawn(rng, shape, case=case)
    loss = made(case)
    values = loss(given_to(loss, teacher, labels), student).numpy()
    expected = CASES[case][1](
        teacher.astype("float64"), student.astype("float64"), labels
    )
    assert values.shape == shape[:-1]
    assert values.dtype == "float32"
    error = np.abs(values - expected)
    assert error.max() <= 1e-6 * np.abs(expected).max()


@each
def test_gradient_is_that_of_finite_differences(rng, case):
    teacher, student, labels = drawn(rng, SMALL.get(case, (3, CLASSES)), 1.0, case)
    loss, oracle = made(case, "sum"), CASES[case][1]
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss(given_to(loss, teacher, labels), variable)
    numeric, step = np.zeros(student.shape), 1e-5
    for index in np.ndindex(student.shape):
        up, down = student.astype("float64"), student.astype("float64")
        up[index] += step
        down[index] -= step
        pair = (oracle(teacher.astype("float64"), x, labels).sum() for x in (up, down))
        numeric[index] = (next(pair) - next(pair)) / (2 * step)
    np.testing.assert_allclose(
        tape.gradient(value, variable), numeric, atol=2e-5, rtol=1e-4
    )
    assert np.abs(numeric).max() > 1e-3


@pytest.mark.parametrize("case", sorted(ZERO_AT_EQUALITY))
def test_equal_logits_give_zero(rng, case):
    teacher, _, labels = drawn(rng, SMALL.get(case, (8, CLASSES)))
    loss = made(case)
    values = loss(given_to(loss, teacher, labels), teacher).numpy()
    assert np.abs(values).max() < 2e-5


@pytest.mark.parametrize("case", sorted(SHIFT_INVARIANT))
def test_a_shift_of_all_logits_changes_nothing(rng, case):
    teacher, student, labels = drawn(rng, SMALL.get(case, (8, CLASSES)))
    loss = made(case)
    plain = loss(given_to(loss, teacher, labels), student)
    shifted = loss(given_to(loss, teacher + 3.0, labels), student - 5.0)
    np.testing.assert_allclose(shifted, plain, rtol=1e-4, atol=1e-4)


@each
@settings(max_examples=15, deadline=None)
@given(
    logits=arrays(
        "float32",
        (2, 6, CLASSES),
        elements=st.floats(-1e9, 1e9, width=32)
        | st.sampled_from([np.inf, -np.inf, 3e38, -3e38, 0.0]),
    ),
    labels=arrays("int32", (6,), elements=st.integers(-1, CLASSES - 1)),
)
def test_extreme_logits_give_numbers(case, logits, labels):
    loss = made(case)
    if case in COPIES:  # the logits, their size included
        logits = np.clip(logits, -1e9, 1e9)
    logits = logits.reshape(2, *SMALL.get(case, (6, CLASSES)))
    labels = labels.reshape(logits.shape[1:-1])
    if case == "regression":
        labels = np.repeat(labels[..., None], CLASSES, axis=-1)
    variable = tf.Variable(logits[1])
    with tf.GradientTape() as tape:
        values = loss(given_to(loss, logits[0], labels), variable)
    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, variable).numpy()).all()


@each
def test_half_precision_is_compared_in_float32(rng, case):
    teacher, student, labels = drawn(rng, SMALL.get(case, (6, CLASSES)), case=case)
    loss = made(case)
    half = teacher.astype("float16"), student.astype("float16")
    values = loss(given_to(loss, half[0], labels), half[1])
    assert values.dtype == "float32"
    rounded = [x.astype("float32") for x in half]
    np.testing.assert_array_equal(
        values, loss(given_to(loss, rounded[0], labels), rounded[1])
    )


@each
def test_configs_make_the_loss_again(rng, case):
    loss = made(case, "sum")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    teacher, student, labels = drawn(rng, SMALL.get(case, (4, CLASSES)), case=case)
    pair = given_to(loss, teacher, labels)
    assert float(copy(pair, student)) == float(loss(pair, student))


@each
def test_sample_weights_act(rng, case):
    shape = SMALL.get(case, (6, CLASSES))
    teacher, student, labels = drawn(rng, shape, case=case)
    loss, weights = made(case), rng.uniform(size=shape[:-1]).astype("float32")
    pair = given_to(loss, teacher, labels)
    values = loss(pair, student).numpy()
    summed = made(case, "sum")(pair, student, sample_weight=weights)
    assert float(summed) == pytest.approx((values * weights).sum(), rel=1e-5)


def pair_of_models():
    def model(units, name):
        return keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(units, activation="tanh"),
                keras.layers.Dense(CLASSES),
            ],
            name=name,
        )

    return model(4, "student"), model(8, "teacher")


@each
def test_it_compiles(rng, case):
    teacher, student, labels = drawn(rng, SMALL.get(case, (4, CLASSES)), case=case)
    loss = made(case)
    pair = given_to(loss, teacher, labels)
    compiled = tf.function(lambda: loss(pair, student), jit_compile=True)
    np.testing.assert_allclose(compiled(), loss(pair, student), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case, options",
    [
        ("decoupled", {"jit_compile": False}),
        ("nkd", {"jit_compile": True}),
        ("dist", {"run_eagerly": True}),
        ("hard_label", {"run_eagerly": True}),
    ],
)
def test_it_trains_in_the_distiller(rng, case, options):
    x = rng.normal(size=(16, 4)).astype("float32")
    y = rng.integers(CLASSES, size=16)
    student, teacher = pair_of_models()
    loss = CASES[case][0]()
    distiller = Distiller(
        student, teacher, loss, hard_loss_weight=0.0, soft_loss_weight=1.0
    )
    distiller.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    logs = distiller.fit(x, y, batch_size=16, verbose=0).history
    expected = CASES[case][1](
        *(model(x).numpy().astype("float64") for model in (teacher, student)), y
    )
    assert logs["soft_loss"][0] == pytest.approx(expected.mean(), rel=2e-5, abs=1e-6)


def tags(x, activation):
    return keras.layers.Dense(CLASSES, activation=activation)(x)


def tokens(x, activation):
    x = keras.layers.Reshape((2, 2))(x)
    return keras.layers.Dense(CLASSES, activation=activation)(x)


def pixels(x, activation):
    x = keras.layers.Reshape((2, 1, 2))(x)
    return keras.layers.Conv2D(CLASSES, 1, activation=activation)(x)


HEADS = {
    "multi_label": (tags, "sigmoid", "binary_crossentropy", lambda x: (x > 0) * 1.0),
    "regression": (tags, "relu", "mse", lambda x: np.exp(x)),
    "sequence": (tokens, "softmax", "sparse_categorical_crossentropy", None),
    "pixels": (pixels, "softmax", "sparse_categorical_crossentropy", None),
    "class_maps": (pixels, "softmax", "sparse_categorical_crossentropy", None),
}


# XLA compiles each loss in `test_it_compiles`, and here those that leave out samples.
@pytest.mark.parametrize(
    ("case", "options"),
    [(case, {"run_eagerly": True}) for case in HEADS]
    + [(case, {"jit_compile": True}) for case in ("regression", "class_maps")],
)
def test_heads_of_every_kind_train(rng, case, options):
    head, activation, hard_loss, labels_of = HEADS[case]
    x = rng.normal(size=(16, 4)).astype("float32")
    inputs = keras.Input((4,))
    student, teacher = (keras.Model(inputs, head(inputs, activation)) for _ in "st")
    before = [  # what the activation is put on
        keras.Model(inputs, head(inputs, None)) for _ in "st"
    ]
    for model, plain in zip((teacher, student), before, strict=True):
        model.set_weights([3.0 * w for w in model.get_weights()])
        plain.set_weights(model.get_weights())
    shape = student.output_shape[1:]
    if labels_of is not None:
        y = labels_of(rng.normal(size=(16, *shape))).astype("float32")
    else:
        y = rng.integers(CLASSES, size=(16, *shape[:-1]))
    loss, oracle = CASES[case]
    distiller = Distiller(student, teacher, loss(), 0.0, 1.0)
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss, **options)
    logs = distiller.fit(x, y, batch_size=16, verbose=0).history
    outputs = (teacher, student) if case == "regression" else before
    values = oracle(*(model(x).numpy().astype("float64") for model in outputs), y)
    counted = (
        values[y != IGNORED] if CASES[case][0]().needs == "class logits" else values
    )
    assert logs["soft_loss"][0] == pytest.approx(counted.mean(), rel=2e-5)


@pytest.mark.parametrize("case", ["standardized", "decoupled", "dist"])
def test_keras_own_distiller_takes_it(rng, case):
    x = rng.normal(size=(16, 4)).astype("float32")
    y = rng.integers(CLASSES, size=16)
    student, teacher = pair_of_models()
    theirs = keras.distillation.Distiller(
        teacher, student, CASES[case][0](), student_loss_weight=0.0
    )
    theirs.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    logs = theirs.fit(x, y, batch_size=16, verbose=0).history
    scores = [model(x).numpy().astype("float64") for model in (teacher, student)]
    # It hands on no labels: the teacher's first choice is the target.
    expected = CASES[case][1](*scores, scores[0].argmax(-1))
    assert logs["distillation_loss"][0] == pytest.approx(
        expected.mean(), rel=2e-5, abs=1e-6
    )


# --- labels


@pytest.mark.parametrize("loss", [DecoupledKD(reduction=None), NKD(reduction=None)])
def test_labels_come_in_every_form(rng, loss):
    teacher, student, labels = drawn(rng, (6, CLASSES))
    expected = loss((teacher, labels), student)
    for form in (labels[:, None], np.eye(CLASSES)[labels], labels.astype("float32")):
        np.testing.assert_array_equal(loss((teacher, form), student), expected)


@pytest.mark.parametrize("loss", [DecoupledKD(reduction=None), NKD(reduction=None)])
def test_without_a_label_the_teacher_chooses(rng, loss):
    teacher, student, labels = drawn(rng, (6, CLASSES))
    chosen = teacher.argmax(-1)
    expected = loss((teacher, np.where(np.arange(6) < 3, chosen, labels)), student)
    some = np.where(np.arange(6) < 3, -1, labels)
    np.testing.assert_array_equal(loss((teacher, some), student), expected)
    np.testing.assert_array_equal(
        loss(teacher, student), loss((teacher, chosen), student)
    )


def test_labels_of_another_shape(rng):
    teacher, student, _ = drawn(rng, (6, CLASSES))
    with pytest.raises(ValueError, match=r"class indices or one-hot rows.*\(6, 3\)"):
        DecoupledKD()((teacher, np.zeros((6, 3))), student)


# --- the parts of the losses


def test_soft_targets_are_decoupled_kd_with_the_teachers_own_weights(rng):
    """Equation 5 of the paper: alpha 1, and beta the teacher's doubt of the target."""
    teacher, student, labels = drawn(rng, (8, CLASSES))
    p = softmax(teacher.astype("float64") / 4.0)[np.arange(8), labels]
    parts = [
        DecoupledKD(4.0, alpha, beta, reduction=None)((teacher, labels), student)
        for alpha, beta in ((1.0, 0.0), (0.0, 1.0))
    ]
    whole = SoftTargets(4.0, reduction=None)(teacher, student)
    np.testing.assert_allclose(parts[0] + (1.0 - p) * parts[1], whole, rtol=1e-5)


def test_standardized_targets_do_not_hang_on_the_scale(rng):
    teacher, student, _ = drawn(rng, (8, CLASSES))
    loss = SoftTargets(2.0, standardize=True)
    assert float(loss(teacher, student)) == pytest.approx(
        float(loss(teacher * 10.0, student * 0.1)), rel=1e-4
    )
    flat = np.zeros((1, CLASSES), "float32")
    assert float(loss(flat, flat)) == 0.0


@pytest.mark.parametrize("swapped", [False, True])
def test_the_two_divergences_are_each_others_mirror(rng, swapped):
    teacher, student, _ = drawn(rng, (8, CLASSES))
    forward = SoftTargets(2.0)(teacher, student)
    assert float(SoftTargets(2.0, "reverse")(student, teacher)) == float(forward)
    both = SoftTargets(1.0, "jensen_shannon", reduction=None)
    np.testing.assert_allclose(
        both(teacher, student), both(student, teacher), rtol=1e-5
    )
    assert (both(teacher * 100, -teacher * 100).numpy() <= np.log(2.0) + 1e-6).all()


# --- errors


@pytest.mark.parametrize("kind", [SoftTargets, DecoupledKD, NKD, DIST])
def test_temperatures_are_checked(kind):
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        kind(0.0)
    with pytest.raises(TypeError, match="`temperature` must be a number"):
        kind(None)
    loss = kind(2.0)
    loss.temperature = 5.0
    assert float(loss.temperature) == 5.0


@pytest.mark.parametrize(
    "kind, name",
    [
        (DecoupledKD, "target_weight"),
        (DecoupledKD, "other_weight"),
        (NKD, "other_weight"),
        (DIST, "inter_weight"),
        (DIST, "intra_weight"),
    ],
)
def test_weights_are_checked(kind, name):
    with pytest.raises(ValueError, match=f"`{name}` must be 0 or more.*-1.0"):
        kind(**{name: -1.0})
    with pytest.raises(ValueError, match=f"`{name}` must be finite.*nan"):
        kind(**{name: float("nan")})
    with pytest.raises(TypeError, match=f"`{name}` must be a number.*'much'"):
        kind(**{name: "much"})


def test_divergences_are_named():
    with pytest.raises(ValueError, match="`divergence` must be one of forward, .*'KL'"):
        SoftTargets(divergence="KL")


def test_classes_to_ignore_are_integers():
    for kind in (SequenceSoftTargets, PixelSoftTargets):
        with pytest.raises(TypeError, match="`ignore_class` must be a label.*'pad'"):
            kind(ignore_class="pad")


def test_what_is_compared_has_its_shape():
    with pytest.raises(
        ValueError, match=r"`SequenceSoftTargets` .*positions, c.*SoftT"
    ):
        SequenceSoftTargets()(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`PixelSoftTargets` .*height, width, class"):
        PixelSoftTargets()(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"must be 'classes' or .*over='channels'"):
        PixelSoftTargets(over="channels")
    with pytest.raises(ValueError, match=r"shape of the values.*labels \(2, 4\)"):
        Regression()((np.zeros((2, 3)), np.zeros((2, 4))), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="`margin` must be 0 or more"):
        Regression(margin=-1.0)


# --- positions, and values


@pytest.mark.parametrize("case", ["sequence", "pixels"])
def test_positions_to_ignore_leave_the_mean_of_the_others(rng, case):
    teacher, student, labels = drawn(rng, SHAPES[case][0])
    values = CASES[case][1](
        teacher.astype("float64"), student.astype("float64"), labels
    )
    loss = made(case, "sum_over_batch_size")
    expected = values[labels != IGNORED].mean()
    assert float(loss((teacher, labels), student)) == pytest.approx(expected, rel=1e-5)
    weights = rng.uniform(size=len(labels)).astype("float32")
    shape = (-1,) + (1,) * (labels.ndim - 1)
    expected = (values * weights.reshape(shape)).sum() / (labels != IGNORED).sum()
    weighted = weighted_loss(loss, teacher, student, weights, labels)
    assert float(weighted) == pytest.approx(expected, rel=1e-5)
    every = np.full_like(labels, IGNORED)
    assert float(loss((teacher, every), student)) == 0.0


@pytest.mark.parametrize("masked", ["teacher", "student", "both"])
def test_padding_that_either_model_masks_is_left_out(rng, masked):
    teacher, student, _ = drawn(rng, (2, 3, CLASSES))
    first, second = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]]) > 0
    values = SoftTargets(2.0, reduction=None)(teacher, student).numpy()
    teacher, student = map(tf.convert_to_tensor, (teacher, student))
    kept = first if masked == "teacher" else second
    if masked in ("teacher", "both"):
        teacher._keras_mask = tf.convert_to_tensor(first)
    if masked in ("student", "both"):
        student._keras_mask = tf.convert_to_tensor(second)
    kept = first & second if masked == "both" else kept
    loss = weighted_loss(SequenceSoftTargets(2.0), teacher, student)
    assert float(loss) == pytest.approx(values[kept].mean(), rel=1e-5)


def test_labels_and_masks_leave_out_both(rng):
    teacher, student, labels = drawn(rng, (2, 3, CLASSES))
    kept = np.array([[1, 1, 0], [1, 1, 0]]) > 0
    values = SoftTargets(2.0, reduction=None)(teacher, student).numpy()
    student = tf.convert_to_tensor(student)
    student._keras_mask = tf.convert_to_tensor(kept)
    loss = SequenceSoftTargets(2.0, ignore_class=int(labels[0, 0]))
    both = kept & (labels != labels[0, 0])
    given = weighted_loss(loss, teacher, student, None, labels)
    assert float(given) == pytest.approx(values[both].mean(), rel=1e-5)


def test_weights_of_pixels_act_on_class_maps(rng):
    teacher, student, labels = drawn(rng, (2, 3, 2, CLASSES))
    weights = rng.uniform(size=labels.shape).astype("float32")
    loss = PixelSoftTargets(over="positions")
    values = by_class_map(teacher.astype("float64"), student, labels + 1)
    assert float(loss(teacher, student, weights)) == pytest.approx(
        (values * weights).mean(), rel=1e-5
    )


def test_without_labels_the_teachers_values_stand_for_them(rng):
    teacher, student, _ = drawn(rng, (6, 2))
    np.testing.assert_array_equal(
        Regression(reduction=None)(teacher, student),
        Regression(bounded=False, reduction=None)(teacher, student),
    )


def test_one_value_takes_labels_of_either_rank(rng):
    teacher, student, labels = drawn(rng, (6, 1), case="regression")
    loss = Regression()
    assert float(loss((teacher, labels[:, 0]), student)) == float(
        loss((teacher, labels), student)
    )


def test_a_student_as_good_as_the_teacher_is_left_alone(rng):
    teacher, _, labels = drawn(rng, (6, 2), case="regression")
    assert float(Regression()((teacher, labels), teacher)) == 0.0
    assert float(Regression(margin=0.1)((teacher, labels), teacher)) > 0.0


def test_binary_labels_are_the_two_classes_of_a_softmax(rng):
    """A sigmoid of a logit is the softmax of it and zero."""
    teacher, student, _ = drawn(rng, (8, 1))
    pairs = [np.concatenate([x, np.zeros_like(x)], -1) for x in (teacher, student)]
    np.testing.assert_allclose(
        MultiLabelSoftTargets(3.0, reduction=None)(teacher, student),
        SoftTargets(3.0, reduction=None)(*pairs),
        rtol=1e-4,
        atol=1e-6,
    )
