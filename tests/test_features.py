"""The losses on features, each against a float64 oracle written from its paper."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlite.distill.losses import (
    AttentionTransfer,
    ChannelWise,
    Contrastive,
    Correlation,
    Gram,
    Hint,
    MaskedGenerative,
    ProbabilisticTransfer,
    RelationalKD,
    SimilarityPreserving,
    VariationalInformation,
)

Array = np.ndarray


# --- the oracles: float64, loops where the paper has sums


def each_sample(value):
    """Makes an oracle of one sample, (positions, channels), that of a batch."""

    def oracle(t, s, loss):
        rows = [x.reshape(len(x), -1, x.shape[-1]) for x in (t, s)]
        return np.array([value(a, b, loss) for a, b in zip(*rows, strict=True)])

    return oracle


@each_sample
def hint(t, s, loss):
    return sum((a - b) ** 2 for a, b in zip(t.flat, s.flat, strict=True)) / t.size


@each_sample
def variational_information(t, s, loss):
    variance = np.log1p(np.exp(loss.variance.raw.numpy().astype("float64"))) + 1e-5
    # Minus the logarithm of the normal density, without its constant.
    density = np.exp(-((t - s) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return (-np.log(density) - 0.5 * np.log(2 * np.pi)).mean()


@each_sample
def attention_transfer(t, s, loss):
    q = [(np.abs(x) ** loss.power).sum(1) for x in (t, s)]
    return ((q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1])) ** 2).sum()


@each_sample
def channel_wise(t, s, loss, temperature=3.0):
    total = 0.0
    for c in range(t.shape[1]):
        p, q = (np.exp(x[:, c] / temperature) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        total += (p * np.log(p / q)).sum()
    return temperature**2 * total / t.shape[1]


@each_sample
def gram_of_positions(t, s, loss):
    means = []
    for x in (t, s):
        x = x / np.linalg.norm(x, axis=0)
        means.append(np.mean([np.outer(c, c) for c in x.T], axis=0))
    return ((means[0] - means[1]) ** 2).sum()


@each_sample
def gram_of_channels(t, s, loss):
    means = [np.mean([np.outer(p, p) for p in x], axis=0) for x in (t, s)]
    return ((means[0] - means[1]) ** 2).mean()


def convolved(x, layer):
    """A convolution of size 3 over every axis between the first and the last."""
    kernel, bias = (w.astype("float64") for w in layer.get_weights())
    spatial = x.ndim - 2
    padded = np.pad(x, [(0, 0), *[(1, 1)] * spatial, (0, 0)])
    total = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for offset in np.ndindex(*(3,) * spatial):
        window = tuple(
            slice(o, o + n) for o, n in zip(offset, x.shape[1:-1], strict=True)
        )
        total += padded[(slice(None), *window)] @ kernel[offset]
    return total + bias


def masked_generative(t, s, loss):
    draws = [*s.shape[:-1], 1] if s.ndim > 2 else list(s.shape)
    numbers = keras.random.uniform(draws, seed=keras.random.SeedGenerator(loss.seed))
    kept = s * (numbers.numpy() >= loss.ratio)
    generator = loss.generator
    hidden = np.maximum(convolved(kept, generator.hidden_layer), 0.0)
    rebuilt = convolved(hidden, generator.output_layer)
    return ((t - rebuilt) ** 2).mean(tuple(range(1, t.ndim)))


def of_vectors(value):
    def oracle(t, s, loss):
        return value(t.reshape(len(t), -1), s.reshape(len(s), -1), loss)

    return oracle


@of_vectors
def similarity_preserving(t, s, loss):
    g = [x @ x.T for x in (t, s)]
    g = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in g]
    return ((g[0] - g[1]) ** 2).sum(1) / len(t)


def huber(x):
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


@of_vectors
def relational(t, s, loss):
    n = len(t)
    norm = np.linalg.norm
    mean = [
        np.mean([norm(x[i] - x[j]) for i in range(n) for j in range(n) if i != j])
        for x in (t, s)
    ]
    values = np.zeros(n)
    for j in range(n):
        others = [i for i in range(n) if i != j]
        distances, angles = [], []
        for i in others:
            d = [norm(x[i] - x[j]) / m for x, m in zip((t, s), mean, strict=True)]
            distances.append(huber(d[0] - d[1]))
            for k in others:
                if k == i:
                    continue
                c = []
                for x in (t, s):
                    a, b = x[i] - x[j], x[k] - x[j]
                    c.append(a @ b / norm(a) / norm(b))
                angles.append(huber(c[0] - c[1]))
        values[j] = np.mean(distances) + 2.0 * np.mean(angles)
    return values


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@of_vectors
def probabilistic(t, s, loss):
    values = np.zeros(len(t))
    for i in range(len(t)):
        rows = [np.delete((cosines(x)[i] + 1) / 2, i) for x in (t, s)]
        p, q = (row / row.sum() for row in rows)
        values[i] = (p * np.log(p / q)).sum()
    return values


@of_vectors
def correlation(t, s, loss, gamma=0.4):
    def kernel(x):
        if loss.order is None:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            squared = ((x[:, None] - x[None]) ** 2).sum(-1)
            return np.exp(-gamma * squared)
        terms = [
            math.exp(-2 * gamma)
            * (2 * gamma) ** n
            / math.factorial(n)
            * cosines(x) ** n
            for n in range(loss.order + 1)
        ]
        return sum(terms)

    return ((kernel(t) - kernel(s)) ** 2).mean(1)


def contrastive(t, s, loss, bank=()):
    projected = []
    for x, layer in ((t, loss.teacher_space), (s, loss.student_space)):
        kernel, bias = (w.astype("float64") for w in layer.get_weights())
        x = x.reshape(len(x), -1, x.shape[-1]).mean(1) @ kernel + bias
        projected.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    g_t, g_s = projected
    values = np.zeros(len(t))
    for i in range(len(t)):
        negatives = [*np.delete(g_t, i, axis=0), *bank]
        share = len(negatives) / (loss.samples or len(negatives))

        def h(view, i=i, share=share):
            e = np.exp(view @ g_s[i] / 0.5)
            return e / (e + share)

        values[i] = -np.log(h(g_t[i])) - sum(np.log(1 - h(n)) for n in negatives)
    return values


# Each loss, its oracle, and what is added to the width of the teacher's features.
CASES = {
    "hint": (Hint, hint, 0),
    "variational_information": (
        lambda: VariationalInformation(2.0),
        variational_information,
        0,
    ),
    "masked_generative": (
        lambda: MaskedGenerative(0.4, seed=3),
        masked_generative,
        0,
    ),
    "attention": (AttentionTransfer, attention_transfer, 2),
    "attention_of_another_power": (
        lambda: AttentionTransfer(3.0),
        attention_transfer,
        2,
    ),
    "channel_wise": (lambda: ChannelWise(3.0), channel_wise, 0),
    "gram_of_positions": (Gram, gram_of_positions, 2),
    "gram_of_channels": (lambda: Gram("channels"), gram_of_channels, 0),
    "similarity": (SimilarityPreserving, similarity_preserving, 2),
    "relational": (RelationalKD, relational, 2),
    "probabilistic": (ProbabilisticTransfer, probabilistic, 2),
    "correlation": (Correlation, correlation, 2),
    "whole_correlation": (lambda: Correlation(order=None), correlation, 2),
    "contrastive": (lambda: Contrastive(6, 0.5, samples=50), contrastive, 2),
}
ZERO_AT_EQUALITY = set(CASES) - {
    "variational_information",
    "masked_generative",
    "contrastive",
}
WITHOUT_SCALE = {
    "attention",
    "attention_of_another_power",
    "gram_of_positions",
    "similarity",
    "relational",
    "probabilistic",
    "correlation",
    "whole_correlation",
}
TRAINED = {
    "variational_information": 1,
    "masked_generative": 4,
    "contrastive": 4,
}
MAPS = (5, 4, 3, 6)

each = pytest.mark.parametrize("case", CASES)


def made(case, reduction=None, shape=MAPS):
    loss = CASES[case][0]()
    loss.reduction = reduction
    teacher = (None, *shape[1:])
    loss.build(teacher, (*teacher[:-1], shape[-1] + CASES[case][2]))
    if case == "variational_information":
        raw = loss.variance.raw
        raw.assign(np.linspace(-1.0, 2.0, shape[-1]))
    return loss


def drawn(rng, case, shape=MAPS):
    teacher = rng.normal(size=shape).astype("float32")
    student = rng.normal(size=(*shape[:-1], shape[-1] + CASES[case][2]))
    return teacher, student.astype("float32")


def oracle(case, teacher, student, loss):
    return CASES[case][1](teacher.astype("float64"), student.astype("float64"), loss)


def shapes_of(case):
    vectors = (9, 5)
    if case.startswith(("attention", "channel_wise", "gram_of_positions")):
        vectors = (3, 2, 2, 2, 4)  # what is compared over positions needs some
    return [vectors, (6, 7, 4), MAPS]


@pytest.mark.parametrize(
    "case, shape", [(case, shape) for case in CASES for shape in shapes_of(case)]
)
def test_values_equal_the_oracle(rng, case, shape):
    if case == "masked_generative" and len(shape) == 2:
        shape = (3, 5, 4, 2)  # vectors have a test of their own
    teacher, student = drawn(rng, case, shape)
    loss = made(case, shape=shape)
    values = loss(teacher, student).numpy()
    expected = oracle(case, teacher, student, loss)
    assert values.shape == shape[:1]
    assert values.dtype == "float32"
    assert np.abs(values - expected).max() <= 1e-6 * np.abs(expected).max()


@each
def test_gradient_is_that_of_finite_differences(rng, case):
    shape = (4, 3, 2)
    teacher, student = drawn(rng, case, shape)
    loss = made(case, "sum", shape)
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss(teacher, variable)
    numeric, step = np.zeros(student.shape), 1e-5
    for index in np.ndindex(student.shape):
        up, down = student.astype("float64"), student.astype("float64")
        up[index] += step
        down[index] -= step
        pair = (oracle(case, teacher, x, loss).sum() for x in (up, down))
        numeric[index] = (next(pair) - next(pair)) / (2 * step)
    np.testing.assert_allclose(
        tape.gradient(value, variable), numeric, atol=2e-5, rtol=1e-4
    )
    assert np.abs(numeric).max() > 1e-3


@pytest.mark.parametrize("case", sorted(ZERO_AT_EQUALITY))
def test_equal_features_give_zero(rng, case):
    teacher, _ = drawn(rng, case)
    values = CASES[case][0]()(teacher, teacher)
    assert np.abs(values.numpy()).max() < 1e-6


@pytest.mark.parametrize("case", sorted(WITHOUT_SCALE))
def test_the_scale_of_features_changes_nothing(rng, case):
    teacher, student = drawn(rng, case)
    loss = made(case)
    np.testing.assert_allclose(
        loss(1e4 * teacher, 1e-4 * student), loss(teacher, student), rtol=1e-4
    )


@each
@settings(max_examples=8, deadline=None)
@given(
    features=arrays(
        "float32",
        (2, 3, 2, 2),
        elements=st.floats(-1e9, 1e9, width=32)
        | st.sampled_from([np.inf, -np.inf, 3e38, -3e38, 0.0, 1e-30]),
    )
)
def test_extreme_features_give_numbers(case, features):
    loss = CASES[case][0]()
    variable = tf.Variable(features[1])
    with tf.GradientTape() as tape:
        values = loss(features[0], variable)
    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, variable).numpy()).all()


@each
@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_batches_give_numbers(rng, case, size):
    teacher, student = drawn(rng, case, (size, *MAPS[1:]))
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        values = made(case)(teacher, variable)
    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, variable).numpy()).all()


@each
def test_half_precision_is_compared_in_float32(rng, case):
    half = [x.astype("float16") for x in drawn(rng, case)]
    values = made(case)(*half)
    assert values.dtype == "float32"
    loss = made(case)
    expected = oracle(case, *half, loss)
    if case not in TRAINED:  # others were made anew
        assert np.abs(values - expected).max() <= 1e-6 * np.abs(expected).max()


@each
def test_configs_make_the_loss_again(rng, case):
    loss = CASES[case][0]()
    loss.reduction = "sum"
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.name == loss.name == loss.get_config()["name"]


@each
def test_sample_weights_act(rng, case):
    teacher, student = drawn(rng, case)
    weights = rng.uniform(size=len(teacher)).astype("float32")
    loss = made(case)
    expected = oracle(case, teacher, student, loss) * weights
    loss.reduction = "sum_over_batch_size"
    weighted = loss(teacher, student, sample_weight=weights)
    assert float(weighted) == pytest.approx(expected.mean(), rel=1e-5)
    if case != "masked_generative":  # draws another mask
        again = loss.compute_loss(teacher, student, sample_weight=weights)
        assert float(again) == float(weighted)


# MaskedGenerative draws another mask for another shape: its own test is below.
@pytest.mark.parametrize(
    "case", [case for case in CASES if case != "masked_generative"]
)
def test_masked_positions_have_no_part(rng, case):
    """A padded batch has the values of one that never was, where it can be cut."""
    shape = (4, 6, 3)
    teacher, student = drawn(rng, case, shape)
    loss = made(case, shape=shape)
    padded = [tf.constant(np.where(np.arange(6)[:, None] < 4, x, 99.0)) for x in
              (teacher, student)]  # fmt: skip
    padded[1]._keras_mask = tf.constant(np.arange(6)[None] < np.full((4, 1), 4))
    np.testing.assert_allclose(
        loss(*padded), loss(teacher[:, :4], student[:, :4]), rtol=1e-5, atol=1e-6
    )


def test_a_masked_position_is_not_rebuilt(rng):
    loss = MaskedGenerative(0.0, reduction=None)
    teacher, student = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    mask = np.arange(6)[None] < np.array([[6], [4], [1], [0]])
    values = []
    for filler in (0.0, 50.0):
        tensor = tf.constant(np.where(mask[..., None], student, filler))
        tensor._keras_mask = tf.constant(mask)
        values.append(loss(np.where(mask[..., None], teacher, filler), tensor).numpy())
    np.testing.assert_array_equal(*values)
    assert values[0][3] == 0.0 and values[0][:3].min() > 0.0


@each
def test_it_compiles(rng, case):
    teacher, student = drawn(rng, case)
    loss, other = made(case), made(case)
    if case in TRAINED:
        for layer, twin in zip(
            *(list(vars(x).values()) for x in (loss, other)), strict=True
        ):
            if isinstance(layer, keras.layers.Layer):
                twin.set_weights(layer.get_weights())
    if case == "masked_generative":  # compiled, TensorFlow draws other numbers
        loss.generator._ratio = other.generator._ratio = 0.0
    compiled = tf.function(lambda: loss(teacher, student), jit_compile=True)
    np.testing.assert_allclose(compiled(), other(teacher, student), rtol=1e-4)


def test_keras_own_distiller_takes_it(rng):
    x = rng.normal(size=(16, 4)).astype("float32")
    student, teacher = (
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(5, name="hidden"),
                keras.layers.Dense(3, name="logits"),
            ]
        )
        for _ in range(2)
    )
    features = keras.distillation.FeatureDistillation(Hint(), "hidden", "hidden")
    for loss, layer, oracle in (
        (RelationalKD(), "logits", relational),
        (features, "hidden", hint),
    ):
        theirs = keras.distillation.Distiller(teacher, student, loss)
        theirs.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
        logs = theirs.fit(x, np.zeros((16, 3)), batch_size=16, verbose=0).history
        outputs = [
            keras.Model(model.inputs[0], model.get_layer(layer).output)(x)
            for model in (teacher, student)
        ]
        expected = oracle(*(np.asarray(o, "float64") for o in outputs), None).mean()
        found = logs["distillation_loss"][0]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


# --- what is trained in a loss


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained(rng, case):
    teacher, student = drawn(rng, case)
    loss = made(case)
    variables = [
        v
        for layer in vars(loss).values()
        if isinstance(layer, keras.layers.Layer)
        for v in layer.trainable_variables
    ]
    assert len(variables) == TRAINED.get(case, 0)
    with tf.GradientTape() as tape:
        value = loss(teacher, student)
    for gradient in tape.gradient(value, [v.value for v in variables]):
        assert np.abs(gradient.numpy()).max() > 0.0


def test_the_variance_begins_where_it_is_told():
    for start in (1e-3, 1.0, 5.0, 200.0):
        loss = VariationalInformation(start)
        loss.build((None, 3), (None, 3))
        np.testing.assert_allclose(loss.variance.value(), start, rtol=1e-4)


def test_the_best_variance_is_that_of_the_errors(rng):
    """The likelihood is largest there: its gradient vanishes."""
    scales = np.array([0.1, 1.0, 3.0])
    teacher = (rng.normal(size=(400, 3)) * scales).astype("float32")
    loss = VariationalInformation()
    loss.build((None, 3), (None, 3))
    raw, variance = loss.variance.raw, np.square(teacher.astype("float64")).mean(0)
    for factor, sign in ((1.0, 0.0), (4.0, 1.0), (0.25, -1.0)):
        raw.assign(np.log(np.expm1(factor * variance - 1e-5)))
        with tf.GradientTape() as tape:
            value = loss(teacher, np.zeros_like(teacher))
        gradient = tape.gradient(value, raw.value).numpy()
        assert (np.sign(np.where(np.abs(gradient) < 1e-5, 0.0, gradient)) == sign).all()


@pytest.mark.parametrize("over, ones", [("positions", (20, 1)), ("channels", (1, 20))])
def test_a_generator_hides_positions_or_channels(over, ones):
    loss = MaskedGenerative(0.5, over, seed=1)
    loss.build((None, 20, 20), (None, 20, 20))
    seen = []
    loss.generator.hidden_layer.call = lambda x: seen.append(x.numpy()) or x
    loss.generator.output_layer.call = lambda x: x
    for _ in range(2):
        loss(np.ones((3, 20, 20), "float32"), np.ones((3, 20, 20), "float32"))
    kept = seen[0]
    assert set(np.unique(kept)) == {0.0, 1.0}
    assert 0.3 < kept.mean() < 0.7
    first = kept[:, : ones[0], : ones[1]]
    np.testing.assert_array_equal(kept, np.broadcast_to(first, kept.shape))
    assert (seen[0] != seen[1]).any()


def test_a_generator_of_vectors_hides_channels(rng):
    teacher, student = rng.normal(size=(2, 8, 5)).astype("float32")
    loss = MaskedGenerative(0.5, seed=4, reduction=None)
    loss.build((None, 5), (None, 5))
    numbers = keras.random.uniform((8, 5), seed=keras.random.SeedGenerator(4)).numpy()
    hidden, output = (
        [w.astype("float64") for w in layer.get_weights()]
        for layer in (loss.generator.hidden_layer, loss.generator.output_layer)
    )
    x = np.maximum((student * (numbers >= 0.5)) @ hidden[0] + hidden[1], 0.0)
    expected = ((teacher - (x @ output[0] + output[1])) ** 2).mean(1)
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-5)


def test_a_bank_holds_the_last_teacher_features(rng):
    """Its negatives are those of the batches before, the oldest first to go."""
    loss = Contrastive(4, 0.5, bank=5, reduction=None)
    loss.build((None, 3), (None, 2))
    kernel, bias = (w.astype("float64") for w in loss.teacher_space.get_weights())
    bank: list[Array] = []
    for size in (2, 2, 4, 3, 7, 1):
        teacher = rng.normal(size=(size, 3)).astype("float32")
        student = rng.normal(size=(size, 2)).astype("float32")
        values = loss(teacher, student).numpy()
        expected = contrastive(
            teacher.astype("float64"), student.astype("float64"), loss, bank
        )
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        projected = teacher @ kernel + bias
        bank += list(projected / np.linalg.norm(projected, axis=1, keepdims=True))
        bank = bank[-5:]


def test_a_long_run_does_not_overflow_the_banks_count():
    loss = Contrastive(2, bank=3)
    loss.build((None, 2), (None, 2))
    for _ in range(9):
        loss(np.eye(2, dtype="float32"), np.eye(2, dtype="float32"))
    pushed = int(loss.queue.pushed)
    assert 3 <= pushed < 6
    assert pushed % 3 == 18 % 3


# --- errors


def test_features_must_fit():
    with pytest.raises(ValueError, match=r"same shape\. Received: teacher \(2, 3\), "):
        Hint()(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"same positions\. .*Fix: Distiller\(feature"):
        AttentionTransfer()(np.zeros((2, 3, 4)), np.zeros((2, 5, 4)))
    with pytest.raises(ValueError, match=r"same channels\. Received"):
        Gram("channels")(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))
    for loss in (ChannelWise(), AttentionTransfer()):
        for shape in ((2, 3), (2, 1, 1, 3)):  # constant, whatever the features
            with pytest.raises(ValueError, match="compares positions.*Fix: layers be"):
                loss(np.zeros(shape), np.ones(shape))
    with pytest.raises(ValueError, match=r"same batch\. Received"):
        RelationalKD()(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="Received: student features of type list"):
        Hint().validate_outputs(np.zeros((2, 3)), [np.zeros((2, 3))])


def test_a_loss_with_weights_is_for_one_pair():
    loss = VariationalInformation()
    loss.build((None, 4, 4, 3), (None, 4, 4, 3))
    loss.build((None, 8, 8, 3), (None, 8, 8, 3))  # the same channels
    with pytest.raises(ValueError, match=r"made for one pair .*a loss of its own"):
        loss.build((None, 4, 4, 5), (None, 4, 4, 5))
    plain = Hint()
    plain.build((None, 3), (None, 3))
    plain.build((None, 5), (None, 5))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: AttentionTransfer(0.5), "`power` must be 1 or more.*0.5"),
        (lambda: ChannelWise(0.0), "`temperature` must be above 0.*0.0"),
        (lambda: Gram("batch"), "`over` must be 'positions' or 'channels'.*'batch'"),
        (lambda: MaskedGenerative(1.0), "`ratio` must be below 1.*1.0"),
        (lambda: MaskedGenerative(-0.1), "`ratio` must be 0 or more.*-0.1"),
        (lambda: MaskedGenerative(over="all"), "`over` must be.*'all'"),
        (lambda: VariationalInformation(1e-6), "`initial_variance` must be above"),
        (lambda: RelationalKD(-1.0), "`distance_weight` must be 0 or more.*-1.0"),
        (lambda: RelationalKD(angle_weight=-1), "`angle_weight` must be 0 or more"),
        (lambda: Correlation(0.0), "`gamma` must be above 0"),
        (lambda: Correlation(order=0), "`order` must be a whole number from 1 on"),
        (lambda: Contrastive(0), "`dimensions` must be a whole number from 1 on"),
        (lambda: Contrastive(bank=-1), "`bank` must be a whole number from 0 on"),
        (lambda: Contrastive(samples=1.5), "`samples` must be a whole number.*1.5"),
        (lambda: Contrastive(temperature=-1.0), "`temperature` must be above 0"),
    ],
)
def test_arguments_are_checked(make, text):
    with pytest.raises(ValueError, match=text):
        make()
