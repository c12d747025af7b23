"""Golden vectors: pixels that anyone can make again, and what the file makes of them.

They travel in the file, so that an app can prove on a phone that its runtime does what
LiteRT did here. The pixels are a formula and no samples: nothing of a user's data is in
a file that is handed on.

    state <- 1664525 state + 1013904223  (mod 2^32),  pixel = state div 2^24

Vector `k` starts from `state = k + 1` and fills, row by row and channel by channel, a
grid of squares; their side grows with `k`, from noise to large areas.

Outputs are text, and may be more than the model itself: those of a mask are a value a
pixel. So they take an eighth of the model at most, where that is between 4 and 64 KiB,
or else the nearer of the two. There are fewer vectors then; and an output of which not
even one has room is not among them.

Reference:
    The generator: Press et al., Numerical Recipes in C, 2nd edition, section 7.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdlite.lite.runtime import TFLiteModel

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

_VECTORS = 8
_PATTERN = "squares-1"
_SHARE = 8
_LEAST_BYTES, _MOST_BYTES = 4 * 2**10, 64 * 2**10
# Of a value in `kdlite.json`, with the line and the indent that it has there.
_VALUE_BYTES = 20


def golden_pixels(shape: tuple[int, int, int], count: int = _VECTORS) -> Array:
    """Makes the pixels.

    Args:
        shape: `(height, width, channels)`.
        count: How many images.

    Returns:
        uint8 of shape `(count, height, width, channels)`.

    Example:
        >>> golden_pixels((2, 2, 1), 1)[0, :, :, 0]
        array([[ 60,  94], [129, 180]], dtype=uint8)
    """
    height, width, channels = shape
    images = np.empty((count, *shape), np.uint8)
    for k in range(count):
        side = max(1, min(height, width) * 2 ** (k % 4) // 32)
        rows, columns = -(-height // side), -(-width // side)
        state, values = k + 1, []
        for _ in range(rows * columns * channels):
            state = (1664525 * state + 1013904223) % 2**32
            values.append(state >> 24)
        grid = np.array(values, np.uint8).reshape(rows, columns, channels)
        images[k] = grid.repeat(side, 0).repeat(side, 1)[:height, :width]
    return images


def golden_vectors(blob: bytes, image_range: Range | None) -> dict[str, Any] | None:
    """Runs the pixels through a file.

    Args:
        blob: A `.tflite`.
        image_range: What 0 and 255 stand for in the file's input.

    Returns:
        The outputs by name as real values, with the quantization step that each moves
        in (None for one that is computed in float), for as many vectors and outputs as
        there is room for, up to the first that is not finite; None for a file that does
        not take a single image of known range, or has no such outputs.

    Raises:
        ValueError: If LiteRT cannot run the file.

    Example:
        ``golden_vectors(Path("student.tflite").read_bytes(), (0.0, 255.0))["count"]``
    """
    model = TFLiteModel(blob)
    shapes = [tensor.shape for tensor in model.inputs]
    if image_range is None or len(shapes) != 1 or not _is_image(shapes[0]):
        return None
    low, high = image_range
    _, height, width, channels = shapes[0]
    # As an app does it: (pixel - mean) / std, by the numbers of the file's metadata.
    std = np.float32(255 / (high - low))
    mean = np.float32(-low * 255 / (high - low))

    def run(count: int) -> dict[str, Array]:
        pixels = golden_pixels((height, width, channels), count)
        outputs = model.predict((pixels.astype(np.float32) - mean) / std)
        if not isinstance(outputs, dict):
            outputs = {model.outputs[0].name: outputs}
        return outputs

    # The file may say no sizes, as where lengths are left open.
    sizes = {name: values[0].size for name, values in run(1).items()}
    names, count = _fitting(sizes, len(blob))
    if not names:
        return None
    outputs = {name: values for name, values in run(count).items() if name in names}
    # Pixels that are like no image of the model's may have no result: a logarithm.
    finite = np.all(
        [np.isfinite(values).reshape(count, -1).all(1) for values in outputs.values()],
        axis=0,
    )
    count = int(np.cumprod(finite).sum())
    if not count:
        return None
    return {
        "pattern": _PATTERN,
        "count": count,
        "outputs": {
            # Nine digits are enough for any float32.
            name: [[float(f"{v:.9g}") for v in np.ravel(row)] for row in values[:count]]
            for name, values in outputs.items()
        },
        "steps": {name: model.content.step(name) for name in outputs},
    }


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and min(shape) > 0 and shape[-1] in (1, 3)


def _fitting(sizes: Mapping[str, int], model_bytes: int) -> tuple[set[str], int]:
    """Which outputs there is room for, the smallest first, and in how many vectors."""
    room = min(max(model_bytes // _SHARE, _LEAST_BYTES), _MOST_BYTES) // _VALUE_BYTES
    names: set[str] = set()
    total = 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        if total + sizes[name] > room:
            break
        names.add(name)
        total += sizes[name]
    return names, min(_VECTORS, room // max(total, 1))
