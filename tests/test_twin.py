from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from quantizing import randomize

from kdlite.compress._tfmot_process import TfmotProcess
from kdlite.compress.twin import _ARGUMENTS, _TRANSLATED, Twin

L2 = keras.regularizers.L2(1e-3)


def adapted() -> layers.Normalization:
    return layers.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1, 2, 3, 4])


# One of each, on images (8, 8, 4); where a layer has variants that matter, several.
ON_IMAGES = [
    layers.Conv2D(3, 3, strides=2, activation="relu6", kernel_regularizer=L2),
    layers.Conv2D(4, 3, dilation_rate=2, groups=2, activation="swish", use_bias=False),
    layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="sigmoid"),
    layers.DepthwiseConv2D(3, depth_multiplier=2, activation="gelu"),
    layers.SeparableConv2D(3, 3, padding="same", activation="relu"),
    layers.SeparableConv2D(3, 3, use_bias=False, depth_multiplier=2),
    layers.Dense(3, activation="softmax"),
    layers.Dense(3, activation="elu", kernel_constraint="non_neg"),
    layers.EinsumDense("abcd,de->abce", (8, 8, 3), bias_axes="e", activation="tanh"),
    layers.BatchNormalization(momentum=0.9, epsilon=1e-2),
    layers.BatchNormalization(axis=1, scale=False, center=False),
    layers.LayerNormalization(epsilon=1e-2),
    layers.GroupNormalization(2),
    layers.UnitNormalization(),
    layers.Rescaling(0.5, -0.1),
    adapted(),
    layers.Activation("softplus"),
    layers.Activation("mish"),
    layers.Activation("relu6"),
    layers.ReLU(6.0, negative_slope=0.1),
    layers.LeakyReLU(0.3),
    layers.ELU(0.7),
    layers.PReLU(shared_axes=(1, 2), alpha_initializer="uniform"),
    layers.Softmax(axis=1),
    layers.MaxPooling2D(3, strides=2, padding="same"),
    layers.AveragePooling2D(2),
    layers.GlobalMaxPooling2D(),
    layers.GlobalAveragePooling2D(keepdims=True),
    layers.Flatten(),
    layers.Reshape((16, 16)),
    layers.Permute((2, 1, 3)),
    layers.ZeroPadding2D(((1, 0), (2, 1))),
    layers.Cropping2D(1),
    layers.UpSampling2D(2, interpolation="nearest"),
    layers.UpSampling2D(2, interpolation="bilinear"),
    layers.Identity(),
    layers.Dropout(0.5),
    layers.SpatialDropout2D(0.5),
    layers.GaussianNoise(0.5),
    layers.GaussianDropout(0.5),
]
ON_SEQUENCES = [
    layers.Conv1D(3, 3, padding="causal", dilation_rate=2, activation="selu"),
    layers.Conv1DTranspose(3, 3, strides=2),
    layers.DepthwiseConv1D(3, activation="softsign"),
    layers.SeparableConv1D(3, 3, activation="relu"),
    layers.LSTM(3, return_sequences=True),
    layers.GRU(3),
    layers.GRU(3, reset_after=False, go_backwards=True),
    layers.SimpleRNN(3, activation="relu"),
    layers.MaxPooling1D(2),
    layers.AveragePooling1D(3, strides=1),
    layers.GlobalMaxPooling1D(),
    layers.GlobalAveragePooling1D(),
    layers.ZeroPadding1D((1, 2)),
    layers.Cropping1D((1, 2)),
    layers.UpSampling1D(2),
    layers.SpatialDropout1D(0.5),
]
ON_VOLUMES = [
    layers.Conv3D(2, 3, padding="same", activation="exponential"),
    layers.MaxPooling3D(2),
    layers.AveragePooling3D(2),
]
ON_PAIRS = [
    *(layers.Add(), layers.Subtract(), layers.Multiply(), layers.Average()),
    *(layers.Maximum(), layers.Minimum(), layers.Concatenate(axis=1)),
    layers.Dot(axes=2, normalize=True),
]


def zoo() -> tuple[keras.Model, list[str], list[int]]:
    """A model with a branch for each layer, their names and where each one ends."""
    image = keras.Input((8, 8, 4), name="image")
    ids = keras.Input((6,), dtype="int32", name="ids")
    sequence = layers.Reshape((16, 16))(image)
    volume = layers.Reshape((4, 4, 4, 4))(image)
    other = layers.Conv1D(16, 1)(sequence)
    found = [(type(layer).__name__, layer(image)) for layer in ON_IMAGES]
    found += [(type(layer).__name__, layer(sequence)) for layer in ON_SEQUENCES]
    found += [(type(layer).__name__, layer(volume)) for layer in ON_VOLUMES]
    found += [(type(layer).__name__, layer([sequence, other])) for layer in ON_PAIRS]
    found.append(("Embedding", layers.Embedding(9, 4)(ids)))
    flat = layers.Flatten()(image)
    found.append(("RepeatVector", layers.RepeatVector(2)(flat)))
    # Models inside, a layer that is called twice, operations of Keras tensors.
    shared = layers.Dense(3, activation="relu")
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(3, 1), layers.BatchNormalization()]
    )
    found.append(("nested", inner(image)))
    found.append(("shared", shared(layers.Conv2D(4, 1)(image))))
    found.append(("shared", shared(image)))
    found.append(("operators", 2.0 * sequence + other - 1.0))
    frozen = layers.BatchNormalization()
    found.append(("frozen", frozen(image, training=False)))
    ends = [layers.Flatten()(y) for _, y in found]
    model = keras.Model([image, ids], layers.Concatenate()(ends), name="zoo")
    sizes = np.cumsum([0, *(y.shape[-1] for y in ends)]).tolist()
    return model, [name for name, _ in found], sizes


def test_each_layer_computes_the_same_in_tf_keras(rng) -> None:
    model, names, ends = zoo()
    randomize(model, rng)
    covered = {type(x) for x in model._flatten_layers()}
    assert covered >= {*_ARGUMENTS, *_TRANSLATED}
    twin = Twin(model)
    # What acts in training alone is there, too.
    kinds = {type(layer).__name__ for layer in ON_IMAGES + ON_SEQUENCES}
    made_otherwise = {"SeparableConv2D", "Normalization"}
    assert {kind for kind, _ in twin.plan()["layers"]} >= kinds - made_otherwise
    x = [
        rng.normal(0, 2, (4, 8, 8, 4)).astype("float32"),
        rng.integers(0, 9, (4, 6)).astype("int32"),
    ]
    first = {"seed": 0, "plan": twin.plan(), "weights": twin.weights(), "probe": x}
    with TfmotProcess() as process:
        process.send(first)
        found = process.receive()["outputs"]
    expected = np.asarray(model(x, training=False))
    for name, (start, end) in zip(names, itertools.pairwise(ends), strict=True):
        wanted = expected[:, start:end]
        scale = max(1.0, np.abs(wanted).max())
        off = np.abs(wanted - found[:, start:end]).max()
        assert off <= 1e-5 * scale, name
    # Weights come back to where they came from.
    moved = [[value + 1 for value in values] for values in twin.weights()]
    copy = twin.with_weights(moved)
    for before, after in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(before + 1, after)


class Own(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.0

    def get_config(self):
        return {}


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


REFUSED = {
    "a layer of one's own": (
        lambda: Doubled(name="mine"),
        "layer 'mine' of class Doubled",
    ),
    "one that tf_keras lacks": (
        lambda: layers.RMSNormalization(name="rms"),
        "layer 'rms' of class RMSNormalization. Fix: build the student from",
    ),
    "another function of the same name": (
        lambda: layers.Dense(2, activation="hard_sigmoid", name="d"),
        r"layer 'd', Dense with activation='hard_sigmoid'\. Fix: use one of",
    ),
    "half precision": (
        lambda: layers.Dense(2, dtype="mixed_float16", name="d"),
        r"'mixed_float16'\. Fix: rebuild the student in float32",
    ),
    "an activity regularizer": (
        lambda: layers.Dense(2, activity_regularizer=L2, name="d"),
        r"an activity regularizer\. Fix: remove it",
    ),
    "a regularizer of one's own": (
        lambda: layers.Dense(2, kernel_regularizer=Own(), name="d"),
        r"layer 'd' with kernel_regularizer='Own'. Fix: use one of L1, L2",
    ),
    "a sigmoid at the end": (
        lambda: layers.Dense(2, activation="sigmoid", name="d"),
        r"last layer 'd' is a sigmoid\. Fix: two classes with a softmax",
    ),
    "renormalization": (
        lambda: layers.BatchNormalization(renorm=True, name="bn"),
        r"BatchNormalization with renorm=True\. Fix: leave it out",
    ),
    "normalization over other axes": (
        lambda: layers.Normalization(axis=(1, 2), mean=0.0, variance=1.0, name="n"),
        r"an axis other than the last, or invert\. Fix: use the last axis",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_twin_is_named(case) -> None:
    make, text = REFUSED[case]
    inputs = keras.Input((3, 4))
    with pytest.raises(ValueError, match=text):
        Twin(keras.Model(inputs, make()(inputs), name="net"))


def test_calls_without_a_twin_are_named() -> None:
    inputs = keras.Input((3, 4))
    states = layers.LSTM(2, return_state=True, name="lstm")(inputs)
    with pytest.raises(ValueError, match=r"'lstm'.*return_state=False"):
        Twin(keras.Model(inputs, states[0]))
    forced = layers.Dropout(0.5, name="drop")(inputs, training=True)
    with pytest.raises(ValueError, match=r"'drop'.*training=True in its call"):
        Twin(keras.Model(inputs, forced))
    masked = layers.Embedding(3, 2, mask_zero=True, name="words")
    ids = keras.Input((3,), dtype="int32")
    with pytest.raises(ValueError, match=r"'words'.*mask_zero=True"):
        Twin(keras.Model(ids, masked(ids)))
    two = [layers.Dense(2)(inputs), layers.Dense(2)(inputs)]
    with pytest.raises(ValueError, match=r"Received: 'two' with 2\. Fix:"):
        Twin(keras.Model(inputs, two, name="two"))


def test_a_layer_in_two_models_is_refused() -> None:
    both = layers.Dense(4, name="both")
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), both])
    with pytest.raises(ValueError, match=r"'net', whose copy has 4 of its 2 weights"):
        Twin(keras.Model(inputs, both(inner(inputs)), name="net"))


def test_a_softmax_is_cut_off_for_training() -> None:
    inputs = keras.Input((4,))
    for head in (
        [layers.Dense(2, activation="softmax")],
        [layers.Dense(2), layers.Softmax()],
        [layers.Dense(2), layers.Activation("softmax")],
    ):
        model = keras.Sequential([inputs, *head])
        twin = Twin(model)
        assert twin.logits != twin.output
        assert twin.calls[-1].inputs == (twin.logits,)
    twin = Twin(keras.Sequential([inputs, layers.Dense(2)]))
    assert twin.logits == twin.output


def test_patterns_name_layers_also_inside_models() -> None:
    block = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")],
        name="block",
    )
    twin = Twin(keras.Sequential([keras.Input((4,)), block, layers.Dense(2, name="h")]))
    paths = [layer.path for layer in twin.layers]
    assert paths == ["block/a", "block/b", "h"]
    assert twin.matching("block") == [0, 1]
    assert twin.matching("*/b") == [1]
    with pytest.raises(ValueError, match=r"'x'.*'block/a', 'block/b', 'h'"):
        twin.matching("x")
