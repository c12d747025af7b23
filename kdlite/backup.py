"""Training that a kill at any moment does not damage."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras

_UNFINISHED = "unfinished.weights.h5"


class Backup(keras.callbacks.Callback):
    """Keeps all of a model after each epoch, in a file that is whole or not there.

    As `keras.callbacks.BackupAndRestore`, which writes over the one file that it has:
    a kill while it writes leaves nothing to go on from, and one between the weights and
    the number of the epoch has an epoch trained twice.

    Args:
        folder: Where the file is kept, named for the epochs that are done.

    Example:
        >>> import numpy as np, tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> backup = Backup(Path(tempfile.mkdtemp()) / "backup")
        >>> backup.restore(model)
        0
        >>> x = np.zeros((4, 2))
        >>> _ = model.fit(x, x[:, :1], epochs=2, callbacks=[backup], verbose=0)
        >>> backup.epochs
        2
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    @property
    def epochs(self) -> int:
        """How many epochs are done: the `initial_epoch` of `fit`."""
        return max(self._kept(), default=0)

    def restore(self, model: keras.Model) -> int:
        """Puts back what was kept, optimizer included, and returns `epochs`."""
        kept = self._kept()
        if not kept:
            return 0
        epochs = max(kept)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(kept[epochs])
        return epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the model, then lets go of what was kept before."""
        before = self._kept()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.model.save_weights(self._folder / _UNFINISHED, overwrite=True)
        whole = self._folder / f"{epoch + 1}.weights.h5"
        os.replace(self._folder / _UNFINISHED, whole)
        for path in before.values():
            if path != whole:
                path.unlink()

    def remove(self) -> None:
        """Removes what was kept, if there is any."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self) -> dict[int, Path]:
        return {
            int(found[1]): path
            for path in self._folder.glob("*.weights.h5")
            if (found := re.fullmatch(r"(\d+)\.weights\.h5", path.name))
        }
