"""tensorflow-model-optimization, in a process of its own.

It needs tf_keras, and importing it makes `tf.keras` Keras 2 for the whole process. So
`TfmotProcess` starts this very file as a script. What goes to it and comes back are
pickled messages, through pipes that nothing else has; what TensorFlow prints goes into
a file. The script imports nothing of kdlite.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__)
_LAST_LINES = 5
_RANGE_OF_ZEROS = 1e-3

Message = dict[str, Any]


class CompressionError(RuntimeError):
    """tensorflow-model-optimization failed, or took too long."""


class TfmotProcess:
    """The other process; to be used in a `with` statement, which leaves none behind.

    Args:
        time_limit_s: Seconds after which it is stopped; None for as long as it takes.

    Raises:
        CompressionError: In `send` and `receive`, if the process is gone.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        self._limit_s = time_limit_s
        self._too_long = False
        self._printed = tempfile.TemporaryFile()
        environment = {
            **os.environ,
            "TF_USE_LEGACY_KERAS": "1",
            # This process has the device; two would fight over its memory.
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "1",
        }
        # -P: the modules beside the script must not be taken for others of their name.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(_SCRIPT)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
        )
        self._timer = threading.Timer(time_limit_s or 0.0, self._stop)
        if time_limit_s is not None:
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> TfmotProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not sent
                if pipe is not None:
                    pipe.close()
        self._process.wait()
        self._printed.close()

    def send(self, message: Message) -> None:
        """Sends a message; waits while the process is busy."""
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pickle.dump(message, pipe, protocol=5)
                pipe.flush()
        except (BrokenPipeError, ValueError):
            raise self._gone() from None

    def receive(self) -> Message:
        """Waits for an answer and returns it."""
        try:
            answer: Message = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError):
            raise self._gone() from None
        return answer

    def _stop(self) -> None:
        self._too_long = True
        self._process.kill()

    def _gone(self) -> CompressionError:
        code = self._process.wait()
        if self._too_long:
            return CompressionError(
                "tensorflow-model-optimization must be done within "
                f"{self._limit_s:g} s, and was stopped. Fix: raise `time_limit_s`, or "
                "train for fewer epochs."
            )
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace").strip()
        last = "\n".join(printed.splitlines()[-_LAST_LINES:])
        how = f"was ended by signal {-code}" if code < 0 else "stopped"
        return CompressionError(
            f"The process of tensorflow-model-optimization {how}. Its last words: "
            f"{last or 'none'}"
        )


# From here on, what runs in the other process.


class _Refused(Exception):
    """Something that tfmot does not do; the text is for the user."""


class _Fresh(dict[str, Any]):
    """A dictionary that gives out copies."""

    def __getitem__(self, key: str) -> Any:
        return copy.copy(super().__getitem__(key))


class _Worker:
    """A twin, and what tfmot makes of it."""

    def __init__(self, plan: Message, weights: list[list[Any]]) -> None:
        import tf_keras

        self._keras = tf_keras
        kinds = tf_keras.layers
        self.layers = []
        for place, (kind, arguments) in enumerate(plan["layers"]):
            if not hasattr(kinds, kind):
                raise _Refused(f"tf_keras has no layer {kind}: layer_{place}")
            self.layers.append(getattr(kinds, kind)(**arguments, name=f"layer_{place}"))
        tensors = {}
        for number, shape, dtype in plan["inputs"]:
            tensors[number] = tf_keras.Input(shape, dtype=dtype, name=f"input_{number}")
        inputs = list(tensors.values())
        self._tensors = {}
        for place, taken, output, inference in plan["calls"]:
            given = [tensors[number] for number in taken]
            options = {"training": False} if inference else {}
            tensors[output] = self.layers[place](
                given if len(given) > 1 else given[0], **options
            )
            self._tensors[place] = tensors[output]
        for layer, values in zip(self.layers, weights, strict=True):
            layer.set_weights(values)
        self.whole = tf_keras.Model(inputs, tensors[plan["output"]])
        self.model = tf_keras.Model(inputs, tensors[plan["logits"]])
        self._calls = [place for place, *_ in plan["calls"]]
        self._masks: dict[int, Any] = {}
        self.finish: Any = None

    def prune(self, chosen: dict[int, Message]) -> None:
        """Wraps layers so that a growing part of their weights is held at zero."""
        from tensorflow_model_optimization.python.core.sparsity.keras import (
            prune,
            prune_registry,
            pruning_schedule,
        )

        def wrapped(layer: Any) -> Any:
            settings = chosen.get(self._place(layer.name))
            if settings is None:
                return layer
            if not prune_registry.PruneRegistry.supports(layer):
                raise _Refused(f"tfmot prunes no {type(layer).__name__}: {layer.name}")
            options = {k: v for k, v in settings.items() if k != "schedule"}
            name, arguments = settings["schedule"]
            schedule = getattr(pruning_schedule, name)(**arguments)
            return prune.prune_low_magnitude(
                layer, pruning_schedule=schedule, **options
            )

        self.model = self._keras.models.clone_model(self.model, clone_function=wrapped)
        self._pruned = [x for x in self.model.layers if hasattr(x, "pruning_obj")]
        for layer in self._pruned:
            layer.pruning_step.assign(0)
        self.finish = self._finish_pruning

    def cluster(self, chosen: dict[int, tuple[int, bool]]) -> None:
        """Wraps layers so that their weights are a few shared values."""
        from tensorflow_model_optimization.python.core.clustering.keras import (
            cluster,
        )

        def wrapped(layer: Any) -> Any:
            count, keep_zeros = chosen.get(self._place(layer.name), (0, False))
            if not count:
                return layer
            return cluster._cluster_weights(
                layer,
                count,
                cluster.CentroidInitialization.KMEANS_PLUS_PLUS,
                preserve_sparsity=keep_zeros,
            )

        self.model = self._keras.models.clone_model(self.model, clone_function=wrapped)
        self.finish = self._finish_clustering

    def quantize(
        self, outputs_only: list[int], keep_zeros: bool, keep_clusters: bool, x: Any
    ) -> None:
        """Makes the model round as the integer model will."""
        import tensorflow_model_optimization as tfmot
        from tensorflow_model_optimization.python.core.quantization.keras import (
            default_8bit as scheme,
        )
        from tensorflow_model_optimization.python.core.quantization.keras.collab_opts import (  # noqa: E501
            cluster_preserve,
            prune_preserve,
        )

        api = tfmot.quantization.keras
        configs = scheme.default_8bit_quantize_configs
        registry = scheme.default_8bit_quantize_registry.Default8BitQuantizeRegistry()

        def annotated(layer: Any) -> Any:
            config = None
            if self._place(layer.name) in outputs_only:
                config = configs.Default8BitOutputQuantizeConfig()
            elif not self._is_quantized(layer, registry):
                raise _Refused(
                    "tfmot's quantization-aware training does not take "
                    f"{type(layer).__name__}: {layer.name}"
                )
            return api.quantize_annotate_layer(layer, quantize_config=config)

        model = self._keras.models.clone_model(self.model, clone_function=annotated)
        if keep_clusters:
            module = cluster_preserve.default_8bit_cluster_preserve_quantize_scheme
            made = module.Default8BitClusterPreserveQuantizeScheme(keep_zeros)
            known = made.get_quantize_registry()
            # One that all layers share forgets the zeros of all after the first layer
            # that has none.
            known._config_quantizer_map = _Fresh(known._config_quantizer_map)
            made.get_quantize_registry = lambda: known
        elif keep_zeros:
            module = prune_preserve.default_8bit_prune_preserve_quantize_scheme
            made = module.Default8BitPrunePreserveQuantizeScheme()
        else:
            made = scheme.default_8bit_quantize_scheme.Default8BitQuantizeScheme()
        if keep_zeros:
            self._masks = {
                place: [value != 0 for value in layer.get_weights()]
                for place, layer in enumerate(self.layers)
            }
        extra = {
            "Default8BitOutputQuantizeConfig": configs.Default8BitOutputQuantizeConfig
        }
        with api.quantize_scope(extra):
            self.model = api.quantize_apply(model, made)
        self._begin_with_ranges(x)
        self.finish = self._finish_quantization

    def _is_quantized(self, layer: Any, registry: Any) -> bool:
        if type(layer) is self._keras.layers.BatchNormalization:
            return True  # the patterns that it is part of were looked at before
        return bool(registry.supports(layer))

    def _begin_with_ranges(self, x: Any) -> None:
        """Sets the ranges that tfmot begins with at -6 to 6, whatever the values are.

        Its mean of 1000 steps would hold on to these for the whole of a short training.
        """
        places = [p for p in self._calls if p in self._tensors]
        probe = self._keras.Model(
            self.whole.inputs, [self._tensors[place] for place in places]
        )
        found = probe(x, training=False)
        values = dict(zip(places, found if len(places) > 1 else [found], strict=True))
        for place, variables in self._range_variables().items():
            if place in values:
                reached = values[place].numpy()
                lowest = min(0.0, float(reached.min()))
                highest = max(0.0, float(reached.max()))
                variables["min_var"].assign(lowest)
                variables["max_var"].assign(max(highest, lowest + _RANGE_OF_ZEROS))

    def _range_variables(self) -> dict[int, Any]:
        """Returns by layer the variables of the range of its output."""
        found = {}
        for wrapper in self.model.layers:
            place = self._place(wrapper.name.removeprefix("quant_"))
            if place < 0:
                continue
            if getattr(wrapper, "_output_quantizers", None):
                found[place] = wrapper._output_quantizer_vars
            for activation in getattr(wrapper, "_quantize_activations", []):
                if hasattr(activation, "_post_activation_vars"):
                    found[place] = activation._post_activation_vars
        return found

    def train(self, settings: Message, receive: Any, answer: Any) -> None:
        """Takes batches until there are no more; answers each with its figures."""
        import tensorflow as tf

        keras, model = self._keras, self.model
        optimizer = keras.optimizers.Adam(settings["learning_rate"])
        temperature = settings["temperature"]
        hard_weight, soft_weight = settings["hard"], settings["soft"]
        variables = model.trainable_variables

        @tf.function(reduce_retracing=True)
        def step(x: Any, y: Any, soft: Any, sample_weight: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                total: Any = 0.0
                by_name = {}
                if y is not None:
                    if y.dtype.is_floating:
                        hard = tf.nn.softmax_cross_entropy_with_logits(y, logits)
                        truth = tf.argmax(y, -1)
                    else:
                        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                        truth = tf.cast(y, tf.int64)
                    by_name["accuracy"] = tf.reduce_mean(
                        tf.cast(tf.argmax(logits, -1) == truth, tf.float32)
                    )
                    total += hard_weight * hard
                if soft is not None:
                    target = tf.nn.log_softmax(soft / temperature)
                    found = tf.nn.log_softmax(logits / temperature)
                    divergence = tf.reduce_sum(
                        tf.exp(target) * (target - found), axis=-1
                    )
                    # Gradients shrink with T^2.
                    total += soft_weight * temperature**2 * divergence
                axes = list(range(1, total.shape.rank))
                total = tf.reduce_mean(total, axis=axes) if axes else total
                if sample_weight is not None:
                    total *= sample_weight
                loss = tf.reduce_mean(total) + tf.add_n([0.0, *model.losses])
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(
                (g, v)
                for g, v in zip(gradients, variables, strict=True)
                if g is not None
            )
            return {"loss": loss, **by_name}

        while (batch := receive())["kind"] == "batch":
            optimizer.learning_rate.assign(batch["learning_rate"])
            x = [tf.constant(values) for values in batch["x"]]
            others = (batch[key] for key in ("y", "soft", "weight"))
            figures = step(x, *(v if v is None else tf.constant(v) for v in others))
            answer({name: float(value) for name, value in figures.items()})

    def _finish_pruning(self) -> list[list[Any]]:
        for layer in self._pruned:
            layer.pruning_obj.weight_mask_op()
        return [layer.get_weights() for layer in self.layers]

    def _finish_clustering(self) -> list[list[Any]]:
        from tensorflow_model_optimization.python.core.clustering.keras import (
            cluster,
        )

        stripped = cluster.strip_clustering(self.model)
        by_place = {self._place(layer.name): layer for layer in stripped.layers}
        return [
            by_place.get(place, layer).get_weights()
            for place, layer in enumerate(self.layers)
        ]

    def _finish_quantization(self) -> list[list[Any]]:
        weights = [layer.get_weights() for layer in self.layers]
        for wrapper in self.model.layers:
            place = self._place(wrapper.name.removeprefix("quant_"))
            if place < 0 or not weights[place]:
                continue
            kernels = [variable for variable, *_ in wrapper._weight_vars]
            if kernels:
                # The kernel itself is a rounded tensor by now.
                bias = getattr(wrapper.layer, "bias", None)
                weights[place] = [v.numpy() for v in (*kernels, bias) if v is not None]
            else:
                weights[place] = wrapper.layer.get_weights()
            for k, kept in enumerate(self._masks.get(place, [])[: len(kernels)]):
                weights[place][k] = weights[place][k] * kept
        return weights

    def ranges(self) -> dict[int, tuple[float, float]]:
        """Returns by layer the range that its output is rounded in."""
        return {
            place: (float(v["min_var"].numpy()), float(v["max_var"].numpy()))
            for place, v in self._range_variables().items()
        }

    @staticmethod
    def _place(name: str) -> int:
        """Returns which layer of the plan it is; -1 for one of tfmot's own."""
        found = re.search(r"layer_(\d+)$", name)
        return int(found[1]) if found else -1


def _serve(receive: Any, answer: Any) -> None:
    first = receive()
    import tf_keras

    tf_keras.utils.set_random_seed(first["seed"])
    try:
        worker = _Worker(first["plan"], first["weights"])
        answer({"outputs": worker.whole(first["probe"], training=False).numpy()})
        message = receive()  # that it is equal, and what to do
        getattr(worker, message["stage"])(**message["options"])
    except _Refused as err:
        answer({"refused": str(err)})
        return
    except Exception as err:  # whatever tfmot raises, of its many refusals
        text = " ".join(str(err).split())
        answer({"refused": f"it says {type(err).__name__}: {text}"})
        return
    answer({"ready": True})
    worker.train(message["training"], receive, answer)
    result: Message = {"weights": worker.finish()}
    if message["stage"] == "quantize":
        result["ranges"] = worker.ranges()
        result["outputs"] = worker.model(first["probe"], training=False).numpy()
    answer(result)


def _main() -> None:
    # A stop is the other process's to make: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints
    # Keras 3 would import them where they are installed: a quarter of all that is
    # imported, and of no use here.
    for name in ("matplotlib", "sklearn"):
        sys.modules[name] = None  # type: ignore[assignment]
    import tensorflow_model_optimization  # noqa: F401 (done while the twin is planned)

    def answer(message: Message) -> None:
        pickle.dump(message, answers, protocol=5)
        answers.flush()

    with contextlib.suppress(EOFError, BrokenPipeError):  # the other process is gone
        _serve(lambda: pickle.load(sys.stdin.buffer), answer)


if __name__ == "__main__":
    _main()
