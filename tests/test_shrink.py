"""Smaller models of the same kind: what keeps its width, what goes, what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.graph import functional
from kdlite.compress.shrink import shrunken
from kdlite.compress.summary import summary
from kdlite.compress.widths import narrowed


def by_name(model):
    return {layer.name: layer for layer in model.layers}


def runs(student, teacher):
    """The student takes what the teacher takes and returns what it returns."""
    teacher = functional(teacher, "A test")
    assert student.input_shape == teacher.input_shape
    assert student.output_shape == teacher.output_shape
    assert student.output_names == teacher.output_names
    x = [
        np.ones((2, *(n or 8 for n in tensor.shape[1:])), tensor.dtype)
        for tensor in teacher.inputs
    ]
    y = student(keras.tree.pack_sequence_as(teacher.input, x))
    for tensor in keras.tree.flatten(y):
        assert np.isfinite(tensor).all()


# --- which widths belong together


def residual():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(32, 3, padding="same", name="stem")(inputs)
    for k in range(4):
        y = layers.Conv2D(64, 3, padding="same", name=f"a{k}")(x)
        y = layers.BatchNormalization(name=f"n{k}")(y)
        y = layers.Conv2D(32, 3, padding="same", name=f"b{k}")(y)
        x = layers.ReLU(name=f"r{k}")(layers.Add(name=f"s{k}")([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="residual")


def joined():
    """Concatenations, one of them added to a single convolution; sums differ."""
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(20, 1, name="a")(inputs)
    b = layers.Conv2D(44, 1, name="b")(inputs)
    both = layers.Concatenate(name="both")([a, b, inputs])
    c = layers.Conv2D(67, 1, name="c")(inputs)
    x = layers.Add()([both, c])
    x = layers.Average()([layers.Conv2D(67, 1, name="d")(x), x])
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


def gated():
    """A squeeze-and-excitation gate, with the reshape that Keras's models have."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(48, 3, groups=3, name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(x)
    gate = layers.Reshape((1, 1, 96), name="reshape")(
        layers.GlobalAveragePooling2D()(x)
    )
    gate = layers.Conv2D(24, 1, activation="relu", name="squeeze")(gate)
    gate = layers.Conv2D(96, 1, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    return keras.Model(inputs, layers.Dense(7)(layers.Flatten()(x)))


def grouped():
    inputs = keras.Input((8, 8, 16))
    x = layers.Conv2D(96, 1, name="wide")(inputs)
    x = layers.Conv2D(96, 3, groups=32, name="cardinality")(x)
    x = layers.Conv2D(192, 3, groups=96, name="depthwise")(x)
    x = layers.GroupNormalization(32)(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


def decoder():
    """From a vector to an image, and back to the input's channels."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(32, 3, name="conv")(inputs))
    x = layers.Dense(4 * 4 * 40, name="spread")(layers.Dense(24, name="code")(x))
    x = layers.Reshape((4, 4, 40), name="image")(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, padding="same", name="up")(x)
    x = layers.Conv2D(3, 1, name="colours")(layers.UpSampling2D()(x))
    return keras.Model(
        inputs, layers.Add(name="sum")([x, layers.UpSampling2D()(inputs)])
    )


def detector():
    """Boxes and scores, by name; the reshape mixes channels and places."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, strides=2, padding="same", name="conv")(inputs)
    boxes = layers.Reshape((-1, 4), name="boxes")(layers.Conv2D(24, 1, name="b")(x))
    scores = layers.Reshape((-1, 5))(layers.Conv2D(30, 1, name="s")(x))
    return keras.Model(inputs, {"boxes": boxes, "scores": layers.Softmax()(scores)})


def towers():
    """Two inputs, a tower that both share, frozen, and a product of embeddings."""
    tower_in = keras.Input((6,), dtype="int32")
    x = layers.Embedding(50, 24, name="embedding")(tower_in)
    x = layers.Bidirectional(layers.LSTM(16), name="lstm")(x)
    tower = keras.Model(tower_in, layers.Dense(32, name="project")(x), name="tower")
    tower.trainable = False
    a, b = (keras.Input((6,), dtype="int32", name=name) for name in "ab")
    u, v = tower(a, training=False), tower(b, training=False)
    near = layers.Dot(-1, normalize=True, name="near")([u, v])
    hidden = layers.Dense(48, "relu", name="hidden")(layers.Concatenate()([u, v]))
    return keras.Model([a, b], [near, layers.Dense(3, name="kind")(hidden)])


def attention():
    inputs = keras.Input((6, 8))
    x = layers.EinsumDense("abc,cd->abd", (None, 48), bias_axes="d", name="in")(inputs)
    y = layers.MultiHeadAttention(4, 12, name="heads")(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(48, name="down")(layers.Dense(96, "gelu", name="up")(x))
    x = layers.Add()([x, y])
    x = layers.TimeDistributed(layers.Dense(40), name="steps")(x)
    x = layers.GRU(24, return_sequences=True, name="gru")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def shared():
    inputs = keras.Input((16, 3))
    conv = layers.Conv1D(40, 3, padding="same", name="twice")
    x = layers.Conv1D(24, 1, name="free")(inputs)
    x = conv(layers.Conv1D(40, 1, name="first")(x))
    x = layers.Permute((2, 1))(conv(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


MODELS = (
    *(residual, joined, gated, grouped, decoder, detector, towers, attention, shared),
)


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def teacher(request):
    return request.param()


@pytest.mark.parametrize("width", [0.5, 0.21, 0.03])
def test_narrower_and_still_whole(teacher, width) -> None:
    student = shrunken(teacher, width)
    runs(student, teacher)
    # Beneath a certain width every layer of a small model is at its narrowest.
    assert student.count_params() < teacher.count_params()
    assert all(v.trainable for v in student.trainable_variables)
    assert not {id(v) for v in student.variables} & {id(v) for v in teacher.variables}


def test_without_a_factor_nothing_is_narrower(teacher) -> None:
    assert shrunken(teacher).count_params() == teacher.count_params()


def test_every_free_width_follows_the_factor(teacher) -> None:
    student = shrunken(teacher, 0.5)
    kept = {  # that of an output, or of what must match the input or all of a sum
        *("head", "colours", "b", "s", "near", "kind", "twice", "first"),
        *("c", "d", "depthwise", "spread", "dw"),
    }
    found = 0
    for name, layer in by_name(teacher).items():
        for key in ("filters", "units"):
            old = getattr(layer, key, None)
            if old is None or name in kept or old <= 10:
                continue
            assert getattr(by_name(student)[name], key) == narrowed(old, 0.5)
            found += 1
    assert found


def test_sums_of_other_parts_and_gates_follow() -> None:
    layers_of = by_name(shrunken(joined(), 0.5))
    # 20 -> 12, 44 -> 24, and the input's 3 channels.
    assert layers_of["c"].filters == layers_of["d"].filters == 12 + 24 + 3
    layers_of = by_name(shrunken(gated(), 0.25))
    assert layers_of["conv"].filters == 12
    assert layers_of["excite"].filters == 2 * 12
    assert layers_of["reshape"].target_shape == (1, 1, 24)
    layers_of = by_name(shrunken(decoder(), 0.5))
    assert layers_of["image"].target_shape == (4, 4, 20)
    assert layers_of["spread"].units == 4 * 4 * 20
    layers_of = by_name(shrunken(grouped(), 0.25))
    assert layers_of["cardinality"].groups == 8
    assert layers_of["depthwise"].groups == layers_of["wide"].filters == 24
    assert layers_of["depthwise"].filters == 48
    layers_of = by_name(shrunken(towers(), 0.5))
    assert layers_of["lstm"].forward_layer.units == 8
    assert layers_of["lstm"].backward_layer.units == 8
    layers_of = by_name(shrunken(attention(), 0.5))
    assert layers_of["heads"].get_config()["num_heads"] == 2
    assert layers_of["steps"].layer.units == 20


def test_what_an_output_or_a_mixing_layer_holds_stays() -> None:
    assert by_name(shrunken(detector(), 0.25))["b"].filters == 24
    # The permutation moves the channels of a layer that is called twice.
    assert by_name(shrunken(shared(), 0.25))["twice"].filters == 40
    assert by_name(shrunken(decoder(), 0.25))["colours"].filters == 3


def test_statistics_of_the_data_stay_and_frozen_layers_train(rng) -> None:
    norm = layers.Normalization()
    norm.adapt(rng.normal(3.0, 2.0, (50, 4)).astype("float32"))
    dense = layers.Dense(32, trainable=False)
    teacher = keras.Sequential([keras.Input((4,)), norm, dense, layers.Dense(2)])
    student = shrunken(teacher, 0.5)
    np.testing.assert_array_equal(student.layers[1].mean, norm.mean)
    assert len(student.trainable_variables) == 4


def test_layers_that_cannot_be_told_to_train_are_copied() -> None:
    """SpatialDropout takes no `trainable`; and LoRA is of the teacher alone."""
    x = inputs = keras.Input((8, 8, 4))
    for drop in (layers.SpatialDropout2D, layers.GaussianDropout, layers.Dropout):
        x = drop(0.5)(layers.Conv2D(32, 3, padding="same", trainable=False)(x))
    x = layers.Dense(5, lora_rank=2)(layers.GlobalAveragePooling2D()(x))
    student = shrunken(keras.Model(inputs, x), 0.25)
    assert len(student.trainable_variables) == 8
    assert [layer.rate for layer in student.layers if hasattr(layer, "rate")] == [
        0.5
    ] * 3


def test_mixed_precision_becomes_float32() -> None:
    teacher = keras.Sequential(
        [keras.Input((4,)), layers.Dense(32, dtype="mixed_float16"), layers.Dense(2)]
    )
    assert shrunken(teacher, 0.5).layers[1].compute_dtype == "float32"


def test_layers_of_nested_models_have_names_of_their_own() -> None:
    base = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, name="head"), layers.ReLU(name="relu")],
        name="base",
    )
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, layers.Dense(3, name="head")(base(inputs)))
    student = shrunken(teacher, 0.5, name="small")
    assert student.name == "small"
    assert set(by_name(student)) >= {"base_head", "relu", "head"}
    # A model that is the output is found by its name.
    teacher = keras.Model(inputs, base(inputs))
    assert shrunken(teacher).output_names == teacher.output_names == ["base"]


# --- depth


def test_residual_blocks_go_from_the_end_of_each_stage() -> None:
    student = shrunken(residual(), depth=0.5)
    runs(student, residual())
    names = set(by_name(student))
    assert {"a0", "b0", "r0", "a1", "b1", "r1"} <= names
    assert not {"a2", "b2", "s2", "a3", "n3"} & names
    # The ReLU after a block that goes has nothing left to do.
    assert "r3" not in names
    # One stays: nothing else has the stage's shape.
    assert {"a0", "r0"} <= set(by_name(shrunken(residual(), depth=0.01)))


def test_without_residual_blocks_equal_layers_go() -> None:
    teacher = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, padding="same", name="one"),
            layers.Conv2D(16, 3, padding="same", name="two"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(16, 3, padding="same", name="three", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    student = shrunken(teacher, depth=0.5)
    runs(student, teacher)
    assert {"one", "two", "norm", "relu"} <= set(by_name(student))
    assert "three" not in by_name(student)


# --- depthwise-separable convolutions


def test_convolutions_become_separable() -> None:
    teacher = residual()
    student = shrunken(teacher, separable=True)
    runs(student, teacher)
    layers_of = by_name(student)
    # Three colours make nothing cheaper.
    assert type(layers_of["stem"]) is layers.Conv2D
    assert type(layers_of["a0"]) is layers.SeparableConv2D
    assert layers_of["a0"].padding == "same"
    macs = {row.name: row.macs for row in summary(student).layers}
    assert macs["a0"] == 64 * (9 * 32 + 32 * 64)
    sequence = keras.Sequential(
        [keras.Input((9, 8)), layers.Conv1D(8, 3, kernel_regularizer="l2", name="c")]
    )
    separable = by_name(shrunken(sequence, separable=True))["c"]
    assert type(separable) is layers.SeparableConv1D
    assert separable.depthwise_regularizer is not None


# --- what is refused


class Own(layers.Layer):
    def call(self, x):
        return x


def with_own():
    inputs = keras.Input((8,))
    x = layers.Dense(16)(Own(name="before")(inputs))
    return keras.Model(inputs, layers.Dense(2)(Own(name="own")(x)), name="custom")


def channels_first():
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(16, 1, data_format="channels_first", name="first")(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def linear():
    return keras.Sequential([keras.Input((4,)), layers.Dense(2)], name="linear")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: shrunken(linear(), 0.0), "`width` must be above 0.*width=0.0"),
        (lambda: shrunken(linear(), depth=2.0), "`depth` must be above 0.*depth=2.0"),
        (lambda: shrunken(linear(), 0.5), "width between.*'linear', where every"),
        (
            lambda: shrunken(linear(), depth=0.5),
            "`depth` needs blocks.*'linear', which",
        ),
        (lambda: shrunken(with_own(), 0.5), "layer 'own' of class Own. Replace it by"),
        (lambda: shrunken(channels_first(), 0.5), "layer 'first' with data_format="),
    ],
)
def test_errors_name_the_layer_and_the_way_out(call, text) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_a_teacher_is_a_keras_model() -> None:
    with pytest.raises(TypeError, match="must be a Keras model. Received: str. Load"):
        shrunken("teacher.keras")
