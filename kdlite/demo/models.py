"""The demo's two networks: a convolutional teacher and a depthwise student."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

Tensor = Any

CLASSES = 10
# Keras's 0.99 needs hundreds of steps to forget the start, more than a short training
# of the student has.
_STUDENT_MOMENTUM = 0.9
IMAGE_SHAPE = (28, 28, 1)


def build_teacher() -> keras.Model:
    """Builds the demo's teacher: a residual convolutional net, about 1.16 M parameters.

    Takes raw pixels `(batch, 28, 28, 1)` in 0..255 and gives logits `(batch, 10)`.
    41.5 M multiply-accumulates an image.

    Returns:
        The untrained `keras.Model`.
    """
    inputs, x = _pixels()
    x = _conv(x, 32, name="stem")
    x = _conv(x, 48, strides=2, name="down")
    x = _residual(x, 48, 1, "block1")
    x = _residual(x, 112, 2, "block2")
    x = _residual(x, 112, 1, "block3")
    x = _residual(x, 224, 2, "block4")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    outputs = layers.Dense(CLASSES, name="logits")(x)
    return keras.Model(inputs, outputs, name="fashion_teacher")


def build_student(width: float = 1.0) -> keras.Model:
    """Builds the demo's student: a depthwise-separable residual net.

    Takes raw pixels `(batch, 28, 28, 1)` in 0..255 and gives logits `(batch, 10)`. Full
    resolution gets few channels: there a channel costs most, in int8 above all. The
    first step down is a regular convolution, which sees more than a depthwise one.

    Args:
        width: Factor on all channel counts, rounded to multiples of 8. At 1.0 the
            student has about 38 thousand parameters.

    Returns:
        The untrained `keras.Model`.

    Example:
        >>> from kdlite.demo.models import build_student
        >>> build_student().output_shape
        (None, 10)
    """

    def channels(count: int) -> int:
        return max(8, int(count * width / 8 + 0.5) * 8)

    inputs, x = _pixels()
    x = _conv(x, channels(8), momentum=_STUDENT_MOMENTUM, name="stem")
    x = _conv(x, channels(32), strides=2, momentum=_STUDENT_MOMENTUM, name="down")
    x = _separable(x, channels(32), 1, "block1")
    x = _separable(x, channels(64), 2, "block2")
    x = _separable(x, channels(64), 1, "block3")
    x = _separable(x, channels(120), 2, "block4")
    x = _separable(x, channels(120), 1, "block5")
    # No dropout: a net of this size has nothing to spare.
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(CLASSES, name="logits")(x)
    return keras.Model(inputs, outputs, name="fashion_student")


def _pixels() -> tuple[Tensor, Tensor]:
    inputs = keras.Input(IMAGE_SHAPE, name="image")
    return inputs, layers.Rescaling(1 / 255.0, name="rescale")(inputs)


def _conv(
    x: Tensor,
    filters: int,
    strides: int = 1,
    kernel: int = 3,
    relu: bool = True,
    momentum: float = 0.99,
    *,
    name: str,
) -> Tensor:
    x = layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=momentum, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _residual(x: Tensor, filters: int, strides: int, name: str) -> Tensor:
    y = _conv(x, filters, strides, name=f"{name}_1")
    y = _conv(y, filters, relu=False, name=f"{name}_2")
    if strides > 1:
        x = layers.AveragePooling2D(strides, padding="same", name=f"{name}_pool")(x)
    if x.shape[-1] != filters:
        x = _conv(x, filters, kernel=1, relu=False, name=f"{name}_skip")
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _separable(x: Tensor, filters: int, strides: int, name: str) -> Tensor:
    y = layers.DepthwiseConv2D(
        3, strides=strides, padding="same", use_bias=False, name=f"{name}_dw"
    )(x)
    y = layers.BatchNormalization(momentum=_STUDENT_MOMENTUM, name=f"{name}_dw_bn")(y)
    y = layers.ReLU(name=f"{name}_dw_relu")(y)
    y = _conv(y, filters, kernel=1, momentum=_STUDENT_MOMENTUM, name=f"{name}_pw")
    if strides == 1 and x.shape[-1] == filters:
        y = layers.Add(name=f"{name}_add")([x, y])
    return y
