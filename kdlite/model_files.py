"""The model files that commands are given: loaded, or refused in a sentence.

Keras tells of a broken file in the words of whatever failed in it, and dumps a whole
configuration where a class is missing.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import keras

_MISSING_CLASS = re.compile(
    r"(?:Could not locate (?:class|function)|Could not deserialize (?:class|function)|"
    r"Unknown (?:layer|object|loss|optimizer)):? '(?:[^'>]*>)?([^'>]+)'"
)
_ZIP = b"PK"
_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_model(path: Path) -> keras.Model:
    """Loads a `.keras` (or old `.h5`) file.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no model file, is damaged, or is made of a class that is not
            known here.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"A model file must exist. Received: {path}, which is not there. Name a "
            ".keras file."
        )
    if path.is_dir():
        raise ValueError(
            f"A model must be a .keras file. Received: {path}, which is a folder. Save "
            "the model with model.save('name.keras')."
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_HDF5))
    known = start.startswith(_ZIP) or start == _HDF5
    if size and not known:
        raise ValueError(
            f"A model must be a .keras file. Received: {path}, which is another file. "
            "Save the model with model.save('name.keras')."
        )
    if not known or (start != _HDF5 and not zipfile.is_zipfile(path)):
        raise _damaged(path, f"of {size:,} bytes, without its end")
    try:
        return keras.models.load_model(path)
    except (zipfile.BadZipFile, OSError, EOFError) as err:
        raise _damaged(path, _first_line(err)) from err
    except Exception as err:  # whatever a broken file makes Keras raise
        missing = _MISSING_CLASS.search(str(err))
        if missing:
            raise ValueError(
                "The command line loads models of the layers of Keras and kdlite. "
                f"Received: {path}, which has {missing[1]!r}, a class of your own that "
                "no command can import. Fix: build the model of Keras's layers, or "
                "call kdlite in Python, from the program that defines the class."
            ) from err
        raise ValueError(
            f"A model must be a file that Keras can load. Received: {path}, and Keras "
            f"says: {_first_line(err)}. Save it with model.save('name.keras')."
        ) from err


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(
        f"A model must be a whole file. Received: {path}, which is damaged ({how}). "
        "Copy it again, or save the model anew."
    )


def _first_line(err: Exception) -> str:
    # Behind the dump of the configuration is what went wrong in it.
    text = str(err).rpartition("Exception encountered: ")[2].strip()
    return (text.splitlines() or [type(err).__name__])[0].rstrip(" .:")


def takes_several(model: keras.Model) -> bool:
    """Whether a model has several inputs.

    Args:
        model: The model.
    """
    return len(getattr(model, "inputs", None) or ()) > 1


def sample_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """Returns the shape of one sample, as a model takes it.

    Args:
        model: A model of one input.

    Returns:
        The shape; None where the model does not say, as a subclassed one that was
        never built.

    Raises:
        ValueError: It has several inputs.

    Example:
        >>> layers = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
        >>> sample_shape(keras.Sequential(layers))
        (28, 28, 1)
    """
    inputs: Any = getattr(model, "inputs", None)
    if inputs:
        shapes = [tensor.shape for tensor in inputs]
    else:
        shapes = _built_with(model)
    if len(shapes) > 1:
        raise ValueError(
            "This command takes models of one input. Received: model "
            f"{model.name!r} with {len(shapes)} inputs. Fix: in Python, give a mapping "
            "from input name to array to kdlite.SoftLabels.build, kdlite.Distiller or "
            "kdlite.check."
        )
    return tuple(shapes[0][1:]) if shapes else None


def _built_with(model: keras.Model) -> list[Any]:
    """The inputs' shapes that a subclassed model was built with, with the batch."""
    config: Any = model.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None:
        return list((config.get("shapes_dict") or {}).values())
    if isinstance(shape, dict):
        return list(shape.values())
    nested = any(isinstance(part, (list, tuple)) for part in shape)
    return list(shape) if nested else [shape]
