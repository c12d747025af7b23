"""Reading and fusing a student, and what cannot be quantized."""

from __future__ import annotations

import inspect
import operator

import keras
import numpy as np
import pytest
from keras import layers
from quantizing import calibrate

from kdlite.compress import graph
from kdlite.compress.integer_graph import IntegerGraph
from kdlite.compress.qat import for_export, quantize_aware


def model(*stack, shape=(6, 6, 4)):
    return keras.Sequential([keras.Input(shape), *stack], name="net")


def ops_of(student):
    return [(op.kind, op.name) for op in IntegerGraph(student).ops]


def test_convolution_batch_norm_and_relu_become_two_operations():
    student = model(
        layers.Conv2D(4, 3, name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(name="relu"),
    )
    graph = IntegerGraph(student)
    assert [(op.kind, op.name) for op in graph.ops] == [
        ("kernel", "bn"),
        ("relu", "relu"),
    ]
    assert graph.ops[0].batch_norm is not None


def test_batch_norm_folds_into_nothing_but_the_kernel_right_before_it():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization(name="after_relu")(x)
    y = layers.Conv2D(4, 3, name="used_twice")(x)
    z = layers.BatchNormalization(name="beside")(y)
    student = keras.Model(inputs, layers.Add(name="sum")([y, z]))
    assert ops_of(student) == [
        ("kernel", "a_linear"),
        ("relu", "a"),
        ("kernel", "after_relu"),
        ("kernel", "used_twice"),
        ("kernel", "beside"),
        ("arithmetic", "sum"),
    ]


@pytest.mark.parametrize(
    ("stack", "absorbed"),
    [
        ([layers.Rescaling(0.5, -1.0), layers.Conv2D(4, 3)], True),
        ([layers.Rescaling(0.5), layers.Conv2D(4, 3, padding="same")], True),
        # Folded, the padding would add zeros before the offset instead of after it.
        ([layers.Rescaling(0.5, -1.0), layers.Conv2D(4, 3, padding="same")], False),
        ([layers.Rescaling(0.5), layers.ZeroPadding2D(), layers.Conv2D(4, 3)], True),
        (
            [layers.Rescaling(2.0, 1.0), layers.ZeroPadding2D(), layers.Conv2D(4, 3)],
            False,
        ),
        ([layers.Rescaling(0.5, 1.0), layers.Flatten(), layers.Dense(2)], True),
        ([layers.Rescaling(np.arange(1.0, 5.0)), layers.Conv2D(4, 1)], True),
        ([layers.Rescaling(np.arange(1.0, 5.0)), layers.Conv2D(4, 1, groups=2)], False),
        (
            [layers.Rescaling(np.arange(1.0, 5.0)), layers.Flatten(), layers.Dense(2)],
            False,
        ),
        ([layers.Rescaling(0.0, 1.0), layers.Conv2D(4, 3)], False),
        ([layers.Rescaling(0.5), layers.MaxPooling2D(), layers.Conv2D(4, 3)], False),
        ([layers.Rescaling(0.5, -1.0), layers.RandomFlip(), layers.Conv2D(4, 3)], True),
        ([layers.Rescaling(0.5), layers.Dropout(0.1), layers.Conv2D(4, 3)], True),
        ([layers.Rescaling(0.5, 1.0), layers.Dropout(0.1), layers.Conv2D(4, 3)], False),
        (
            [layers.Rescaling(0.5, -1.0), layers.RandomZoom(0.1), layers.Conv2D(4, 3)],
            True,
        ),
        (
            [
                layers.Rescaling(0.5, -1.0),
                layers.RandomRotation(0.1, "constant"),
                layers.Conv2D(4, 3),
            ],
            False,
        ),
        (
            [layers.Rescaling(0.5), layers.GaussianNoise(0.1), layers.Conv2D(4, 3)],
            False,
        ),
    ],
)
def test_a_rescaling_goes_into_the_kernel_where_that_is_exact(stack, absorbed):
    kernels = [op for op in IntegerGraph(model(*stack)).ops if op.kind == "kernel"]
    assert len(kernels) == (1 if absorbed else 2)
    assert not absorbed or np.any(kernels[0].scale != 1.0)
    assert absorbed or kernels[0].margin > 0


def test_two_rescalings_are_composed():
    student = model(
        layers.Rescaling(2.0, 1.0), layers.Rescaling(3.0, 5.0), layers.Dense(2)
    )
    (kernel,) = IntegerGraph(student).ops
    assert (kernel.scale, kernel.offset) == (6.0, 8.0)


def test_models_in_models_are_read_through():
    inner = model(
        layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="bn")
    )
    inputs = keras.Input((6, 6, 4))
    outer = keras.Model(inputs, layers.ReLU(name="relu")(inner(inputs, training=False)))
    graph = IntegerGraph(model(outer, layers.Flatten(name="flat")))
    assert [op.name for op in graph.ops] == ["bn", "relu", "flat"]
    # What the call held in inference mode stays there.
    assert graph.ops[0].frozen_statistics


# The layers that Keras calls with `training`, and that act in training alone.
IN_TRAINING_ALONE = [
    *(layers.Dropout(0.5), layers.AlphaDropout(0.5), layers.GaussianDropout(0.5)),
    *(layers.SpatialDropout1D(0.5), layers.SpatialDropout2D(0.5)),
    *(layers.SpatialDropout3D(0.5), layers.GaussianNoise(0.3)),
    *(layers.RandomCrop(8, 8), layers.RandomFlip(), layers.RandomRotation(0.5)),
    *(layers.RandomTranslation(0.3, 0.3), layers.RandomZoom((0.3, 0.5))),
    *(layers.RandomShear(0.5, 0.5), layers.RandomPerspective(1.0)),
    *(layers.RandomElasticTransform(1.0), layers.RandomBrightness(0.5)),
    *(layers.RandomContrast(0.5), layers.RandomSaturation(0.5)),
    *(layers.RandomHue(0.5), layers.RandomGrayscale(1.0)),
    layers.RandomColorJitter(brightness_factor=0.5),
    *(layers.RandomColorDegeneration(0.5), layers.RandomInvert(1.0)),
    *(layers.RandomPosterization(2), layers.RandomSharpness(0.5)),
    *(layers.RandomGaussianBlur(1.0, kernel_size=3), layers.RandomErasing(1.0)),
    *(layers.Solarization(0.5), layers.AugMix(), layers.CutMix(), layers.MixUp()),
    layers.RandAugment(),
]
# Others that are called with `training`: they do something in inference too, or, as
# Equalization, cannot be part of a Keras model.
IN_INFERENCE = set(
    "Attention AutoContrast BatchNormalization Bidirectional CenterCrop ConvLSTM1D "
    "AdditiveAttention ContrastLimitedAdaptiveHistogramEqualization ConvLSTM2D "
    "ConvLSTM3D Dense EinsumDense Equalization FlaxLayer GRU GRUCell JaxLayer LSTM "
    "GroupQueryAttention LSTMCell Lambda MaxNumBoundingBoxes MultiHeadAttention "
    "Pipeline RNN Resizing SimpleRNN "
    "SimpleRNNCell SpectralNormalization StackedRNNCells TFSMLayer TimeDistributed "
    "TorchModuleWrapper".split()
)


def test_each_layer_of_keras_is_known_to_act_in_inference_or_not():
    told = {
        name
        for name, kind in vars(layers).items()
        if isinstance(kind, type)
        and issubclass(kind, keras.Layer)
        and "training" in inspect.signature(kind.call).parameters
    }
    alone = {type(layer).__name__ for layer in IN_TRAINING_ALONE}
    assert told == alone | IN_INFERENCE
    assert alone | {"ActivityRegularization"} == {
        kind.__name__ for kind in graph.IN_TRAINING_ALONE
    }


@pytest.mark.parametrize("layer", IN_TRAINING_ALONE, ids=lambda x: type(x).__name__)
def test_what_acts_in_training_alone_does_so_when_quantized(layer, rng):
    shape = {"1D": (8, 3), "3D": (8, 8, 3, 1)}.get(type(layer).__name__[-2:], (8, 8, 3))
    x = rng.uniform(0, 255, (4, *shape)).astype("float32")
    student = model(layers.Activation("relu"), layer, layers.Flatten(), shape=shape)
    qat = quantize_aware(student, input_range=(0.0, 255.0))
    (copy,) = (x for x in qat.layers if type(x) is type(layer))
    assert copy is not layer
    assert np.array_equal(layer(x, training=False), x)
    assert np.array_equal(copy(x, training=False), x)
    if isinstance(layer, layers.RandomCrop):  # To the size that the images have.
        return
    still = qat(x, training=False)
    # Chance may leave a batch as it is, but not 9 of them.
    assert any(not np.array_equal(copy(x, training=True), x) for _ in range(9))
    assert any(not np.array_equal(qat(x, training=True), still) for _ in range(9))


@pytest.mark.parametrize("layer", IN_TRAINING_ALONE, ids=lambda x: type(x).__name__)
def test_what_acts_in_training_alone_is_none_in_inference_mode(layer):
    shape = {"1D": (8, 3), "3D": (8, 8, 3, 1)}.get(type(layer).__name__[-2:], (8, 8, 3))
    inputs = keras.Input(shape)
    inner = keras.Sequential([keras.Input(shape), layer])
    x = layers.Dense(3, name="d")(inner(inputs, training=False))
    assert ops_of(keras.Model(inputs, x)) == [("kernel", "d")]


def test_an_activity_regularization_goes_on_regularizing():
    student = model(layers.ActivityRegularization(0.1), layers.Dense(2), shape=(4,))
    qat = quantize_aware(student, input_range=(-1.0, 1.0))
    qat(np.ones((2, 4), "float32"), training=True)
    np.testing.assert_allclose(np.asarray(qat.losses[0]), 0.1 * 4, rtol=0.02)


def test_a_lambda_that_is_left_in_float_keeps_its_function(rng):
    numpy_of_here = np
    twice = lambda x, by: x * numpy_of_here.float32(by)  # noqa: E731
    student = model(
        layers.Dense(4, name="d"),
        layers.Lambda(twice, arguments={"by": 2.0}, name="twice"),
        shape=(4,),
    )
    qat = quantize_aware(student, overrides={"twice": "float32"})
    calibrate(qat, rng.normal(size=(64, 4)))
    x = rng.normal(size=(8, 4)).astype("float32")
    np.testing.assert_allclose(qat(x), student(x), atol=0.1)
    np.testing.assert_allclose(for_export(qat)(x), qat(x), atol=1e-5)


def test_a_layer_that_cannot_be_made_again_is_an_error_that_names_it():
    inside = layers.TimeDistributed(layers.Lambda(lambda x: x + 1), name="each")

    class Scaled(layers.Layer):
        def __init__(self, by, **kwargs):
            super().__init__(**kwargs)
            self.by = by

        def get_config(self):
            return super().get_config()

        def call(self, x):
            return x * self.by

    for layer, why in ((inside, "Python lambda"), (Scaled(2.0, name="own"), "by")):
        with pytest.raises(ValueError, match="Received: layer .*Fix: ") as caught:
            IntegerGraph(model(layer, shape=(3, 4)), [layer.name])
        assert repr(layer.name) in str(caught.value)
        assert why in str(caught.value) and "safe_mode" not in str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [operator.add, operator.sub, operator.mul, operator.truediv],
)
@pytest.mark.parametrize(
    "number", [2.0, 2, np.float32(2), np.float64(2), np.int64(2), np.array(2.0)]
)
def test_numbers_are_numbers_whoever_they_come_from(operation, number):
    inputs = keras.Input((4,))
    outputs = layers.Dense(3, name="d")(operation(inputs, number))
    (op,) = IntegerGraph(keras.Model(inputs, outputs)).ops
    wanted = {"add": (1, 2), "sub": (1, -2), "mul": (2, 0), "truediv": (0.5, 0)}
    assert (op.kind, op.name) == ("kernel", "d")
    assert (op.scale, op.offset) == wanted[operation.__name__]


class OwnDense(layers.Dense):
    pass


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class OwnFunctional(keras.Model):
    def __init__(self):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(2)(inputs), name="own_functional")

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) + 1


def in_training_mode():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dropout(0.5, name="mc")(inputs, training=True))


def shared(second):
    inputs = keras.Input((4,))
    dense = layers.Dense(4, name="twice")
    norm = layers.BatchNormalization(name="norm")
    return keras.Model(inputs, second(norm(dense(inputs)), dense, norm))


def twice_and_normalized(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(
        inputs, layers.BatchNormalization(name="norm")(layer(layer(inputs)))
    )


def siamese(second, first=None):
    """A block with a normalization that is called behind a rescaling, too."""
    block = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()]
    )
    inputs = keras.Input((4,)), keras.Input((4,))
    calls = [
        block(before(x) if before else x)
        for before, x in zip((first, second), inputs, strict=True)
    ]
    return keras.Model(inputs, layers.Add()(calls))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: keras.Sequential([layers.Dense(2)], name="s"), "built.*model='s'"),
        (OwnCall, "'own' of the subclass OwnCall.*keras.Model.inputs, outputs"),
        (OwnFunctional, "'own_functional' of the subclass OwnFunctional"),
        (
            lambda: model(OwnCall(), shape=(4,)),
            "'own' of the subclass OwnCall.*Rebuild it",
        ),
        (
            lambda: model(OwnDense(2, name="d")),
            "not have this layer. .*'d' of class OwnDense. Leave it in float, over",
        ),
        (
            lambda: model(layers.ConvLSTM1D(2, 3, name="loop"), shape=(4, 8, 2)),
            "layer 'loop' of class ConvLSTM1D",
        ),
        (
            lambda: keras.Model(
                (x := keras.Input((4, 8))),
                layers.MultiHeadAttention(2, 2, name="mha")(x, x),
            ),
            "layer 'mha' of class MultiHeadAttention",
        ),
        (
            lambda: keras.Model((x := keras.Input((4,))), keras.ops.exp(x + 1.0)),
            "layer .* of class Exp",
        ),
        (
            lambda: model(layers.Dense(2, name="d", dtype="mixed_float16")),
            "dtype policy float32. .*'d' with 'mixed_float16'",
        ),
        (
            lambda: model(layers.MaxPooling2D(data_format="channels_first", name="p")),
            "'p' cannot be quantized as it is.*channels_first'. Use 'channels_last'",
        ),
        (
            lambda: model(layers.Dense(2, activity_regularizer="l2")),
            "activity regularizer. Remove it",
        ),
        (
            lambda: model(layers.BatchNormalization(axis=1)),
            "axis=1.* Use the last axis",
        ),
        (lambda: model(layers.BatchNormalization(renorm=True)), "renorm=True"),
        (
            lambda: model(layers.Normalization(mean=0.0, variance=1.0, invert=True)),
            "Normalization with .*invert=True",
        ),
        (lambda: model(layers.ReLU(1.0)), "max_value=1.0.*Use ReLU or ReLU6"),
        (lambda: model(layers.ReLU(negative_slope=0.1)), "Use ReLU or ReLU6"),
        (
            lambda: model(layers.Dense(2, activation="selu", name="d")),
            "'relu', 'relu6', 'softmax', .*, 'silu', .*'linear'.*'selu' in layer 'd'",
        ),
        (
            lambda: model(layers.RandomCrop(4, 4, name="crop"), shape=(6, 6, 3)),
            r"'crop' cannot .* images of \(6, 6\) and crops of \(4, 4\).*in the data",
        ),
        (in_training_mode, "held in training mode. Received: layer 'mc'"),
        (
            lambda: keras.Model((x := keras.Input((4,), dtype="int64")), x),
            "must be float32, uint8 or, for an Embedding, int32. .*int64",
        ),
        (
            lambda: shared(lambda x, dense, norm: dense(x)),
            "'twice' called twice, once with 'norm' and once with nothing else folded",
        ),
        (
            lambda: shared(lambda x, dense, norm: norm(layers.Dense(4, name="d")(x))),
            "layer 'norm' called twice, behind 'twice' and behind 'd'",
        ),
        (
            lambda: shared(lambda x, dense, norm: norm(layers.ReLU()(x))),
            "layer 'norm' called twice, behind 'twice' and on its own",
        ),
        (
            lambda: twice_and_normalized(
                layers.SeparableConv2D(3, 3, padding="same", name="parted"), (4, 4, 3)
            ),
            "'parted' called twice, once with nothing else and once with 'norm' folded",
        ),
        (
            lambda: twice_and_normalized(
                layers.EinsumDense("abc,cd->abd", (None, 3), name="product"), (4, 3)
            ),
            "'product' called twice, once with nothing .* once with 'norm' folded",
        ),
        (
            lambda: siamese(layers.Rescaling(0.5, name="half")),
            "called twice, once with nothing else and once with 'half' folded",
        ),
        (
            lambda: siamese(
                layers.Rescaling(0.5, name="half"), layers.Rescaling(2.0, name="double")
            ),
            "called twice, once with 'double' and once with 'half' folded into it",
        ),
    ],
)
def test_what_cannot_be_quantized_is_an_error_that_names_it(make, text):
    with pytest.raises(ValueError, match=text):
        IntegerGraph(make())
