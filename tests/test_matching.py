"""Which layers are matched where nothing is said."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from kdlite.distill.losses import AttentionTransfer, SimilarityPreserving
from kdlite.distill.matching import match_stages


def network(widths, name="network", extra=False):
    """A stage for each width, halved between them."""
    x = inputs = keras.Input((16, 16, 1))
    x = layers.Rescaling(2.0)(x)
    for stage, width in enumerate(widths):
        if stage:
            x = layers.ZeroPadding2D(1)(x)
            x = layers.MaxPooling2D()(x)
            x = layers.Cropping2D(((0, 1), (0, 1)))(x)
        x = layers.Conv2D(width, 3, padding="same", name=f"conv{stage}")(x)
        if extra:
            x = layers.BatchNormalization(name=f"bn{stage}")(x)
            y = layers.Conv2D(width, 1, name=f"mix{stage}")(x)
            x = layers.ReLU(name=f"end{stage}")(x + y)
            x = layers.Dropout(0.1)(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(4, 1)(x)  # of one position
    outputs = layers.Dense(3)(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name=name)


def test_the_last_layer_at_each_resolution_is_matched():
    found = match_stages(network([2, 3]), network([4, 5, 6], extra=True))
    assert list(found) == [("conv0", "end0"), ("conv1", "end1")]
    assert all(isinstance(loss, AttentionTransfer) for loss in found.values())
    assert len(set(map(id, found.values()))) == 2


def test_nested_models_are_gone_into():
    inner = network([4, 5], name="inner", extra=True)
    backbone = keras.Model(inner.inputs, inner.get_layer("end1").output, name="body")
    inputs = keras.Input((16, 16, 1))
    pooled = layers.GlobalAveragePooling2D()(backbone(inputs))
    teacher = keras.Model(inputs, layers.Dense(3)(pooled))
    found = match_stages(network([2, 3]), teacher)
    assert list(found) == [("conv0", "body/end0"), ("conv1", "body/end1")]


def test_a_network_of_keras_applications():
    teacher = keras.applications.MobileNetV2(
        (32, 32, 1), alpha=0.35, weights=None, classes=3
    )
    small = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(2, 3, strides=2, padding="same", name="a"),
            layers.Conv2D(3, 3, strides=2, padding="same", name="b"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    assert list(match_stages(small, teacher)) == [
        ("a", "block_1_expand_relu"),
        ("b", "block_3_expand_relu"),
    ]


def test_without_maps_layers_are_matched_by_depth():
    def dense(*widths):
        hidden = [
            layer
            for i, width in enumerate(widths)
            for layer in (
                layers.Dense(width, name=f"dense{i}"),
                layers.BatchNormalization(),
                layers.ReLU(),
            )
        ]
        return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(3)])

    found = match_stages(dense(4, 4), dense(8, 8, 8, 8))
    assert list(found) == [("dense0", "dense1"), ("dense1", "dense3")]
    assert all(isinstance(loss, SimilarityPreserving) for loss in found.values())
    assert list(match_stages(dense(4, 4, 4), dense(8))) == [
        ("dense0", "dense0"),
        ("dense1", "dense0"),
        ("dense2", "dense0"),
    ]


def test_what_cannot_be_matched():
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="flat")
    with pytest.raises(
        ValueError,
        match=r"layers of the same stage\. Received: student 'flat' with 0 layers "
        r"before the head, teacher 'network' with maps at 2 resolutions \(halvings "
        r"\[0, 1\]\)\. Fix: name pairs",
    ):
        match_stages(flat, network([2, 3]))
    unbuilt = keras.Sequential([layers.Dense(3)], name="unbuilt")
    with pytest.raises(ValueError, match="know their inputs. Received: teacher 'unbui"):
        match_stages(network([2]), unbuilt)
