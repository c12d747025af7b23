"""Golden vectors: pixels that anyone can make again, and what the file makes of them.

They travel in the file, so that an app can prove on a phone that its runtime does what
LiteRT did here. The pixels are a formula and no samples: nothing of a user's data is in
a file that is handed on.

    state <- 1664525 state + 1013904223  (mod 2^32),  pixel = state div 2^24

Vector `k` starts from `state = k + 1` and fills, row by row and channel by channel, a
grid of squares; their side grows with `k`, from noise to large areas.

Reference:
    The generator: Press et al., Numerical Recipes in C, 2nd edition, section 7.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdlite.lite.runtime import TFLiteModel

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

_VECTORS = 8
_PATTERN = "squares-1"


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
        in (None for one that is computed in float); None for a file that does not take
        a single image of known range.

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
    pixels = golden_pixels((height, width, channels))
    # As an app does it: (pixel - mean) / std, by the numbers of the file's metadata.
    std = np.float32(255 / (high - low))
    mean = np.float32(-low * 255 / (high - low))
    outputs = model.predict((pixels.astype(np.float32) - mean) / std)
    if not isinstance(outputs, dict):
        outputs = {model.outputs[0].name: outputs}
    return {
        "pattern": _PATTERN,
        "count": len(pixels),
        "outputs": {
            # Nine digits are enough for any float32.
            name: [[float(f"{v:.9g}") for v in np.ravel(row)] for row in values]
            for name, values in outputs.items()
        },
        "steps": {name: model.content.step(name) for name in outputs},
    }


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and min(shape) > 0 and shape[-1] in (1, 3)
