"""A file against its Keras model: every figure by an oracle, every difference found."""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema_fb
from converting import converted
from keras import layers

from kdlite import batches
from kdlite.compress.qat import quantize_aware
from kdlite.compress.recipes import RECIPES
from kdlite.lite.convert import export
from kdlite.lite.metadata import changed_since_written, write_metadata
from kdlite.lite.output_report import OutputReport, compare
from kdlite.lite.serving import ServingModel
from kdlite.lite.tolerance import Tolerance
from kdlite.lite.verification import KernelRun, VerificationError, VerificationReport
from kdlite.lite.verify import verify


def classifier(seed: int, name: str = "small") -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="x")
    return keras.Model(inputs, layers.Dense(4, name="scores")(inputs), name=name)


def save(model: keras.Model, path, quantization: str = "float32"):
    path.write_bytes(converted(model, quantization))
    return path


def report_of(*outputs: OutputReport) -> VerificationReport:
    return VerificationReport("m.tflite", 1, 9, outputs, (), "int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return classifier(0)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(120, 6)).astype("float32"), rng.integers(0, 4, 120)


@pytest.fixture(scope="module")
def file(model, folder):
    return save(model, folder / "float.tflite")


@pytest.fixture(scope="module")
def heads() -> keras.Model:
    """Outputs that are not in the order of the alphabet."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    outputs = [layers.Dense(4, name=name)(inputs) for name in ("second", "first")]
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def heads_file(heads, folder):
    return save(heads, folder / "heads.tflite")


# --- figures


def test_figures_are_those_of_the_oracle(rng) -> None:
    step = 0.25
    wanted = np.round(rng.normal(0, 2, (50, 4)) / step) * step
    apart = rng.choice([0, 0, 0, 1, -1, 3, -12], size=wanted.shape)
    told = (wanted + apart * step).astype("float32")
    y = rng.integers(0, 4, 50)
    report = compare("y", told, wanted.astype("float32"), step=step, target=y)
    steps = np.abs(apart)
    assert report.largest_difference == 3.0 and report.largest_steps == 12
    assert report.rms_difference == pytest.approx(
        step * np.sqrt((steps**2.0).mean()), abs=1e-6
    )
    assert report.within_one_step == (steps <= 1).mean()
    assert report.histogram == tuple(
        (np.minimum(steps, 9) == n).sum() for n in range(10)
    )
    assert report.spread == pytest.approx(wanted.std())
    assert report.largest_value == np.abs(wanted).max()
    assert report.top1_agreement == (told.argmax(1) == wanted.argmax(1)).mean()
    assert report.metric == "top-1"
    assert report.keras_metric == (wanted.argmax(1) == y).mean()
    assert report.file_metric == (told.argmax(1) == y).mean()
    assert report.nan_count == 0
    assert "within one step" in str(report) and "9+ steps" in str(report)


def test_a_value_one_step_apart_by_float_arithmetic_is_within_one_step() -> None:
    step = np.float32(0.0123)
    levels = np.arange(-128, 128)[:, None]
    told = levels.astype("float32") * step
    report = compare("y", told, (levels + 1) * float(step), step=float(step))
    assert report.within_one_step == 1.0 and report.histogram[1] == 256
    report_of(report).require(max_steps=1, share_within_one_step=1.0)
    two = compare("y", told, (levels + 2) * float(step), step=float(step))
    assert two.within_one_step == 0.0
    with pytest.raises(VerificationError, match="share_within_one_step of output 'y'"):
        report_of(two).require(share_within_one_step=0.01)
    with pytest.raises(VerificationError, match="max_steps of output 'y' is 2, more"):
        report_of(two).require(max_steps=1)


def test_values_that_are_no_numbers() -> None:
    wanted = np.array([[1.0, 3.0, np.inf, 4.0]])
    told = np.array([[1.0, 3.0, np.inf, np.nan]])
    report = compare("y", told, wanted)
    # An equal infinity is not the file's fault.
    assert report.nan_count == 1
    assert report.largest_difference == 0.0 and report.largest_value == 4.0
    assert report.within_one_step == 0.75
    assert "1 NaN" in str(report)
    (problem,) = report_of(report).problems
    assert problem == "output 'y' has 1 NaN"
    in_steps = compare("y", told, np.array([[1.0, 3.0, 0.0, 4.0]]), step=0.5)
    assert in_steps.histogram == (2, *8 * [0], 1)


@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_model_without_numbers_proves_nothing(step, dtype) -> None:
    wanted = np.zeros((5, 2, 3), dtype)
    wanted[3, 1, 2] = np.nan
    text = "must give numbers.*Received: NaN in output 'y', first for sample 3. Fix: "
    for told in (wanted, np.zeros_like(wanted)):
        with pytest.raises(ValueError, match=text):
            compare("y", told, wanted, step=step)


def test_a_quantized_output_has_no_infinities() -> None:
    # Its step would be 1e34, and every value within one of all others.
    wanted = np.array([[1.0, 2.0], [-np.inf, 2.0]])
    with pytest.raises(
        ValueError, match="infinity, for a file whose steps end, in.*for sample 1"
    ):
        compare("y", wanted, wanted, step=1e34)
    assert compare("y", wanted, wanted).within_one_step == 1.0


def test_an_infinity_of_one_alone_is_far_away() -> None:
    wanted = np.array([[1.0, -np.inf, np.inf, 2.0]])
    told = np.array([[np.inf, -np.inf, 3.0, 2.0]])
    report = compare("y", told, wanted)
    assert report.largest_difference == np.inf and report.nan_count == 0
    assert report.within_one_step == 0.5
    assert report.largest_value == 2.0 and report.spread == 0.5
    in_steps = compare("y", told, np.array([[1.0, 1.0, 1.0, 2.0]]), step=0.5)
    assert in_steps.histogram == (1, 0, 0, 0, 1, 0, 0, 0, 0, 2)
    with pytest.raises(VerificationError, match="is inf, more than 100"):
        report_of(in_steps).require(max_steps=100)


def test_the_ends_of_float32_are_infinities() -> None:
    end = np.finfo(np.float32).max
    wanted = np.array([[1.0, -np.inf, np.inf, 2.0]], "float32")
    told = np.array([[1.0, -end, end, 2.0]], "float32")
    report = compare("y", told, wanted)
    assert report.largest_difference == 0.0 and report.within_one_step == 1.0
    for wrong in (-told, told * np.float32(0.999), np.where(told > 1e9, -1e9, told)):
        assert compare("y", wrong, wanted).largest_difference == np.inf
    assert compare("y", told, np.ones_like(told)).largest_difference == np.inf


@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic"])
def test_infinities_of_a_mask_are_met(folder, rng, quantization) -> None:
    class Masked(layers.Layer):
        def call(self, x):
            hidden = np.array([0, 0, -np.inf, 0, np.inf, 0], "float32")
            return {"sum": x + hidden, "where": keras.ops.where(x > 0, x, -np.inf)}

    inputs = keras.Input((40,), name="x")
    model = keras.Model(inputs, Masked()(layers.Dense(6)(layers.Dense(40)(inputs))))
    x = rng.normal(size=(50, 40)).astype("float32")
    path = folder / "masked.tflite"
    if quantization == "float32":
        report = export(model, path, verify_data=x).verification
        assert report.passed and np.isinf(model(x)["sum"]).any()
    else:
        # Near zero, rounding decides what `where` takes.
        model = keras.Model(inputs, {"sum": model.output["sum"]})

        def made():
            return export(model, path, quantization, verify_data=x, overwrite=True)

        if quantization == "float16":  # has none among its constants
            with pytest.raises(VerificationError, match="'sum' is infinite in one of"):
                made()
            return
        assert made().verification.passed
    free = keras.Model(inputs, {name: model.layers[-2].output for name in model.output})
    assert not verify(path, free, x).passed


@pytest.mark.parametrize("quantization", ["float16", "dynamic", "int8"])
def test_one_value_alone_is_held_by_its_size(folder, quantization) -> None:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((64,), name="x")
    hidden = layers.Dense(64, "relu")(layers.Dense(64, "relu")(inputs))
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 64)).astype("float32")
    large = x[np.argsort(-np.abs(model(x).numpy()[:, 0]))][:20]
    path = folder / f"one_{quantization}.tflite"
    ranges = x if quantization == "int8" else None
    export(model, path, quantization, calibration_data=ranges)
    for k in range(len(large)):
        report = verify(path, model, large[k : k + 1])
        assert report.passed, report.problems
        assert report.outputs[0].spread == report.outputs[0].largest_value > 0
    # Half as large is another model.
    model.layers[-1].set_weights([w / 2 for w in model.layers[-1].get_weights()])
    assert not verify(path, model, large[:1]).passed


def test_an_output_that_is_one_value_has_no_spread() -> None:
    wanted = np.full((4, 1), 3.0)
    report = compare("y", wanted, wanted, step=0.5)
    assert report.spread == report.largest_difference == report.rms_difference == 0.0
    assert report.within_one_step == 1.0 and report.histogram[0] == 4
    assert report.top1_agreement is None
    assert "0.0 steps of 0.5 apart, 100.00% within" in str(report)


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match=r"must be samples.*\(0, 3\) for 'y'"):
        compare("y", np.zeros((0, 3)), np.zeros((0, 3)))


def test_float_outputs_have_no_steps(rng) -> None:
    wanted = rng.normal(size=(9, 3))
    report = compare("y", wanted + 1e-6, wanted)
    assert report.histogram == () and report.largest_steps is None
    assert report.within_one_step == 1.0 and "equal but for rounding" in str(report)
    assert compare("y", wanted + 0.1, wanted).within_one_step == 0.0


def test_regression_has_an_error_and_no_agreement(rng) -> None:
    wanted, y = rng.normal(size=(9, 1)), rng.normal(size=(9, 1))
    report = compare("y", wanted + 0.5, wanted, target=y)
    assert report.top1_agreement is None
    assert report.metric == "mean absolute error"
    assert report.keras_metric == pytest.approx(np.abs(wanted - y).mean())
    assert report.file_metric == pytest.approx(np.abs(wanted + 0.5 - y).mean())


def test_values_that_move_by_less_than_a_step_are_told(rng) -> None:
    # One of two values has a range that the steps of the other cannot show.
    wanted = rng.normal(size=(50, 2)) * [100.0, 0.01]
    told = np.round(wanted)
    report = compare("y", told, wanted, step=1.0)
    assert report.varying == 0.5 and report.within_one_step == 1.0
    assert "50% of its values are the same for all samples in the file" in str(report)
    assert compare("y", wanted, wanted).varying == 1.0
    # What is constant in Keras too, but for float arithmetic, is left out.
    steady = wanted * [1.0, 0.0] + [0.0, 3.0]
    assert compare("y", np.round(steady), steady, step=1.0).varying == 1.0
    assert compare("y", np.ones(4), np.arange(4.0)).varying == 0.0
    assert compare("y", np.ones(1), np.ones(1)).varying == 1.0


def test_outputs_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"outputs of one shape.*\(2, 3\).*\(2, 4\)"):
        compare("y", np.zeros((2, 3)), np.zeros((2, 4)))


# --- whole files


def test_a_float_file_does_what_its_model_does(file, model, data) -> None:
    report = verify(file, model, data)
    (output,) = report.outputs
    assert output.name == "scores" and output.step is None
    assert output.top1_agreement == 1.0 and report.passed
    assert report.samples == 120 and report.file == "float.tflite"
    assert report.size_bytes == file.stat().st_size
    scores = model(data[0]).numpy()
    assert output.keras_metric == (scores.argmax(1) == data[1]).mean()
    assert report.require(top1_agreement=1.0, max_drop_points=0.0) is report
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["passed"] and plain["outputs"][0]["metric"] == "top-1"
    assert "120 samples: float32" in str(report)


def test_an_int8_file_is_measured_in_its_steps(model, folder, rng) -> None:
    x, y = rng.uniform(0, 1, (120, 6)).astype("float32"), rng.integers(0, 4, 120)
    report = verify(save(model, folder / "int8.tflite", "int8"), model, (x, y))
    (output,) = report.outputs
    assert output.step and sum(output.histogram) == 120 * 4
    assert report.quantization == "int8" and report.float_ops == ()
    report.require(
        share_within_one_step=0.9, max_steps=30, top1_agreement=0.9, max_drop_points=5
    )
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["outputs"][0]["largest_steps"] == output.largest_difference / (
        output.step
    )
    with pytest.raises(VerificationError, match="max_steps of output 'scores'") as err:
        report.require(max_steps=0.0)
    assert err.value.report is report and len(err.value.problems) == 1


@pytest.mark.parametrize(("at_once", "run"), [(70, [70, 50]), (50, [50, 20])])
def test_large_samples_are_run_in_parts(
    at_once, run, file, model, data, monkeypatch
) -> None:
    whole = verify(file, model, data)
    call, sizes = ServingModel.call, []

    def told(self, inputs, training=False):
        sizes.append(inputs["x"].shape[0])
        return call(self, inputs, training=training)

    monkeypatch.setattr(ServingModel, "call", told)
    monkeypatch.setattr(batches, "_VALUES", 6 * at_once)
    parts = verify(file, model, data)
    assert sizes == run
    assert parts.samples == 120
    assert parts.outputs[0].metric == whole.outputs[0].metric
    assert parts.outputs[0].largest_difference == pytest.approx(
        whole.outputs[0].largest_difference, abs=1e-6
    )


def test_another_models_file_is_found(file, data) -> None:
    report = verify(file, classifier(9), data)
    with pytest.raises(
        VerificationError, match="top1_agreement of output 'scores' is .*less than 0.99"
    ):
        report.require(top1_agreement=0.99)


def test_outputs_that_are_swapped_are_found(heads, heads_file, data) -> None:
    verify(heads_file, heads, data[0]).require(top1_agreement=1.0)
    swapped = keras.models.clone_model(heads)
    weights = heads.get_weights()
    swapped.set_weights([*weights[2:], *weights[:2]])
    report = verify(heads_file, swapped, data[0])
    with pytest.raises(VerificationError) as err:
        report.require(top1_agreement=0.99)
    problems = err.value.problems
    assert problems[:2] == report.problems and len(problems) == 4
    assert all(repr(name) in str(problems) for name in ("first", "second"))


# --- what export holds a file to


@pytest.fixture(scope="module")
def branched() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = layers.GlobalAveragePooling2D()(x)
    heads = {name: layers.Dense(5, name=name)(x) for name in ("a", "b")}
    return keras.Model(image, heads)


@pytest.fixture(scope="module")
def fresh() -> np.ndarray:
    return images(2)


def images(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (150, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def exported(branched, folder):
    made = {}

    def exported(quantization: str, **options):
        key = (quantization, *options)
        if key not in made:
            made[key] = folder / f"branched_{'_'.join(key)}.tflite"
            ranges = images(1) if quantization in ("int8", "int16x8", "int4") else None
            export(
                *(branched, made[key], quantization),
                **{"calibration_data": ranges, **options},
            )
        return made[key]

    return exported


@pytest.mark.parametrize(
    ("quantization", "options"),
    [
        *((name, {}) for name in RECIPES),
        ("int8", {"overrides": {"a": "float32"}}),
    ],
)
def test_an_honest_file_passes_on_other_data(
    branched, exported, fresh, quantization, options
) -> None:
    report = verify(exported(quantization, **options), branched, fresh)
    assert report.passed, report.problems
    (held,) = report.tolerances
    assert held.recipe == RECIPES[quantization] and not held.trained
    assert report.require() is report
    assert f"\nheld: {quantization}: no NaN" in str(report)
    assert report.to_dict()["rules"] == [str(held)]


@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic", "int8"])
def test_a_file_made_elsewhere_is_held_by_its_types(quantization, rng) -> None:
    keras.utils.set_random_seed(3)
    shape = (40,)  # kernels large enough for the converter to round
    plain, other = (
        keras.Sequential(
            [keras.Input(shape, name="x"), layers.Dense(32), layers.ReLU()]
        )
        for _ in range(2)
    )
    x = rng.uniform(0, 1, (120, *shape)).astype("float32")
    blob = converted(plain, quantization)
    report = verify(blob, plain, x)
    assert report.passed and report.tolerances[0].recipe == RECIPES[quantization]
    assert not verify(blob, other, x).passed


@pytest.mark.parametrize("quantization", ["float32", "int8", "int4"])
def test_wrong_files_do_not_pass(branched, exported, fresh, quantization) -> None:
    blob = exported(quantization).read_bytes()
    another = keras.models.clone_model(branched)
    another.set_weights([random_like(w) for w in branched.get_weights()])
    swapped = keras.models.clone_model(branched)
    swapped.set_weights(branched.get_weights())
    for name, other in (("a", "b"), ("b", "a")):
        weights = branched.get_layer(other).get_weights()
        swapped.get_layer(name).set_weights(weights)
    for model in (another, swapped):
        report = verify(blob, model, fresh)
        assert not report.passed and report.problems
        assert f"\nnot held: {quantization}: no NaN" in str(report)
        assert f"\nwrong: {report.problems[0]}" in str(report)
        assert report.to_dict()["passed"] is False
        with pytest.raises(VerificationError, match="differs by|is off by"):
            report.require()


def random_like(weight: np.ndarray) -> np.ndarray:
    return np.random.default_rng(weight.size).normal(size=weight.shape) * 0.4


@pytest.mark.parametrize(("off", "found"), [(1e-3, True), (1e-6, False)])
def test_one_weight_of_a_float_file(branched, exported, fresh, off, found) -> None:
    model = keras.models.clone_model(branched)
    model.set_weights(branched.get_weights())
    kernel = model.get_layer("a").kernel
    value = kernel.numpy()
    value[np.unravel_index(np.argmax(np.abs(value)), value.shape)] += off * 5
    kernel.assign(value)
    report = verify(exported("float32"), model, fresh)
    assert report.passed is not found
    assert ("output 'a' differs by" in str(report.problems)) is found


def test_a_file_of_a_quantization_aware_model_is_held_to_its_steps(folder) -> None:
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((6,), name="x"), layers.Dense(4)])
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, 120, 6)).astype("float32")
    qat = quantize_aware(student)
    qat.compile("adam", "mse")
    qat.fit(x, student.predict(x, verbose=0), epochs=2, verbose=0)
    path = folder / "trained.tflite"
    export(qat, path, "int8", verify_data=x)
    report = verify(path, qat, other)
    assert report.passed and report.tolerances[0].trained
    assert "held: int8, quantization-aware: no NaN, and 99% of the" in str(report)
    # One channel five steps off: noise to an int8 file, but not to one that is trained.
    step = report.outputs[0].step
    bias = next(w for w in qat.weights if w.path.endswith("bias"))
    bias.assign(bias.numpy() + 5 * step * np.eye(4)[0])
    off = verify(path, qat, other)
    assert not off.passed and "are within one quantization step" in off.problems[0]
    assert verify(path, student, other).passed


@pytest.mark.parametrize("quantization", ["float16", "int8", "int4"])
def test_a_file_that_was_changed_since_is_none_of_export(
    branched, exported, fresh, quantization
) -> None:
    blob = exported(quantization).read_bytes()
    model = schema_fb.Model.GetRootAs(blob, 0)
    graph = model.Subgraphs(0)
    places, kernels = [], []
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        buffer, steps = model.Buffers(tensor.Buffer()), tensor.Quantization()
        if not buffer.DataIsNone():
            # Where the vector lies that is the table's first field.
            place = buffer._tab.Vector(buffer._tab.Offset(4))
            kernels.append((buffer.DataLength(), place))
            places.append(place)
        if steps and steps.ScaleLength():  # scales, and zero points
            places += [steps._tab.Vector(steps._tab.Offset(n)) for n in (8, 10)]
    assert len(places) >= 5
    for place in places:
        broken = bytearray(blob)
        broken[place] ^= 1
        assert changed_since_written(bytes(broken))
    # Too little for any tolerance: the least bit of a weight.
    broken = bytearray(blob)
    broken[max(kernels)[1]] ^= 1
    report = verify(bytes(broken), branched, fresh)
    assert not report.passed
    assert "not the one that was exported" in report.problems[0]
    with pytest.raises(VerificationError, match="not the one that was exported"):
        report.require()


def test_few_samples_of_other_kernels_are_held_by_how_all_vary() -> None:
    wanted = np.repeat([[0.0], [1.0]], [16, 100], axis=0) + 1e-6
    told = wanted + 0.05
    tolerance = (Tolerance(RECIPES["dynamic"]),)
    all_of_them = compare("y", told, wanted)
    few = KernelRun("built-in", 1, 16, (compare("y", told[:16], wanted[:16]),))
    report = VerificationReport(
        "f", 1, 116, (all_of_them,), (), "dynamic", (few,), tolerance
    )
    assert report.passed
    wide = KernelRun("built-in", 1, 16, (compare("y", told[:16] + 1, wanted[:16]),))
    (problem,) = replace(report, kernels=(wide,)).problems
    assert "output 'y' is off by" in problem
    assert problem.endswith("with built-in kernels and 1 thread")


def test_targets_of_several_outputs(heads, heads_file, data) -> None:
    x, y = data
    right = [scores.numpy().argmax(1) for scores in heads(x)]
    by_name = dict(zip(("second", "first"), right, strict=True))
    batches = tf.data.Dataset.from_tensor_slices((x, by_name)).batch(50)
    for given in (
        (x, right),
        (x, tuple(right)),
        (x, by_name),
        batches,
        [(x[:50], [each[:50] for each in right]), (x[50:], [e[50:] for e in right])],
    ):
        outputs = verify(heads_file, heads, given).outputs
        assert [(o.metric, o.keras_metric) for o in outputs] == 2 * [("top-1", 1.0)]
    named = verify(heads_file, heads, (x, {"second": y})).outputs
    assert {o.name: o.metric for o in named} == {"first": "", "second": "top-1"}
    for wrong in (y, right[:1], [*right, y]):
        with pytest.raises(ValueError, match="Targets of several outputs must be a ma"):
            verify(heads_file, heads, (x, wrong))
    with pytest.raises(ValueError, match="named like the outputs.*Received: 'third'"):
        verify(heads_file, heads, (x, {"third": y}))


def test_several_inputs(folder, rng) -> None:
    zeta, alpha = keras.Input((2,), name="zeta"), keras.Input((3,), name="alpha")
    joined = layers.Concatenate()([zeta, alpha])
    model = keras.Model([zeta, alpha], layers.Dense(3, name="y")(joined))
    path = save(model, folder / "two.tflite")
    x = {"alpha": rng.normal(size=(9, 3)), "zeta": rng.normal(size=(9, 2))}
    y = rng.integers(0, 3, 9)
    wanted = verify(path, model, (x, y)).require(top1_agreement=1.0)
    listed = verify(path, model, ([x["zeta"], x["alpha"]], y))
    assert listed == wanted and wanted.outputs[0].metric == "top-1"
    with pytest.raises(ValueError, match="must name the model's inputs.*no 'alpha'"):
        verify(path, model, {"zeta": x["zeta"]})


def test_regression(folder, rng) -> None:
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(1, name="y")(inputs))
    path = save(model, folder / "regression.tflite")
    x, y = rng.normal(size=(5, 2)).astype("float32"), rng.normal(size=(5, 1))
    (output,) = verify(path, model, (x, y)).outputs
    error = np.abs(model(x) - y).mean()
    assert output.metric == "mean absolute error" and output.top1_agreement is None
    assert output.keras_metric == pytest.approx(error, rel=1e-5)
    assert output.file_metric == pytest.approx(error, rel=1e-5)
    report = verify(path, model, (x, y))
    assert f"mean absolute error: Keras {error:.4f}, file {error:.4f}" in str(report)
    with pytest.raises(ValueError, match="`top1_agreement` needs an output of scores"):
        report.require(top1_agreement=0.9)
    with pytest.raises(ValueError, match="`max_drop_points` needs class indices"):
        report.require(max_drop_points=1.0)


def test_nan_of_the_file_alone_is_a_problem(folder, data) -> None:
    def network(layer: keras.Layer) -> keras.Model:
        inputs = keras.Input((6,), name="x")
        return keras.Model(inputs, layer(inputs))

    bad = network(layers.Lambda(lambda x: keras.ops.log(x), name="y"))
    save(bad, folder / "nan.tflite")
    good = network(layers.Activation("relu", name="y"))
    report = verify(folder / "nan.tflite", good, data[0])
    assert not report.passed and "has" in report.problems[0]
    with pytest.raises(VerificationError, match="'y' has [0-9]+ NaN"):
        report.require()
    first = int(np.argmax((data[0] < 0).any(axis=1)))
    text = f"give numbers for the samples.*NaN in output 'y', first for sample {first}"
    with pytest.raises(ValueError, match=text):
        verify(folder / "nan.tflite", bad, data[0])
    assert verify(folder / "nan.tflite", bad, abs(data[0])).passed
    # Before anything is converted, which could crash or say something of no use.
    for quantization in ("float32", "int8"):
        measured = data[0] if quantization == "int8" else None
        with pytest.raises(ValueError, match=text):
            export(
                *(bad, folder / "bad.tflite", quantization),
                calibration_data=measured,
                verify_data=data[0],
            )
    assert not (folder / "bad.tflite").exists()


def test_a_quantization_aware_model_with_normalisation_inside(folder, rng) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="pixels")
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    scores = layers.Dense(4, name="scores")(x)
    student = quantize_aware(keras.Model(inputs, scores, name="student"), "int8")
    pixels = rng.integers(0, 256, (200, 6)).astype("float32")
    student((pixels - 100) / 50, training=True)
    path = folder / "aware.tflite"
    settings = {"mean": 100.0, "std": 50.0, "input_range": (0.0, 255.0)}
    export(student, path, "int8", io="uint8", **settings)
    # The plain model knows nothing of pixels; the file says what is before it.
    y = student((pixels - 100) / 50, training=False).numpy().argmax(1)
    report = verify(path, student, (pixels, y))
    report.require(share_within_one_step=0.99, max_steps=2, top1_agreement=0.97)
    (output,) = report.outputs
    assert report.quantization == "int8" and output.step
    assert sum(output.histogram) == 200 * 4
    assert output.keras_metric > 0.99


def test_the_files_own_word_on_normalisation(file, model, folder, rng) -> None:
    x = rng.uniform(0, 255, (40, 6)).astype("float32")
    inputs = keras.Input((6,), name="x")
    inside = keras.Model(
        inputs, model(layers.Rescaling(1 / 60, -2.0)(inputs)), name="inside"
    )

    def noted(blob: bytes, normalisation) -> OutputReport:
        path = folder / "noted.tflite"
        provenance = {"normalisation_inside": normalisation}
        path.write_bytes(write_metadata(blob, name="m", provenance=provenance))
        (output,) = verify(path, model, x).outputs
        return output

    told = {"mean": 120.0, "std": 60.0}
    assert noted(converted(inside), told).within_one_step == 1.0
    plain = file.read_bytes()
    assert noted(plain, told).within_one_step < 0.5
    for nothing in (None, "yes", 5):
        assert noted(plain, nothing).within_one_step == 1.0
    with pytest.raises(ValueError, match="`mean` and `std` go together"):
        noted(plain, {"mean": 3.0})


def test_targets_are_read_with_their_samples(file, model, data) -> None:
    x, _ = data
    y = model(x).numpy().argmax(1)
    halves = [(x[:60], y[:60]), (x[60:], y[60:])]
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(120).batch(50)
    for given in (shuffled, halves, iter(halves), lambda: iter(halves)):
        (output,) = verify(file, model, given).outputs
        assert output.metric == "top-1" and output.keras_metric == 1.0
    with pytest.raises(ValueError, match="`data` must end. Received: a dataset that"):
        verify(file, model, shuffled.repeat())
    for given in ((x, None), [(x, None)], [(x,)]):
        assert verify(file, model, given).outputs[0].metric == ""


def test_an_input_that_is_called_y(folder, data, tmp_path) -> None:
    inputs = keras.Input((6,), name="y")
    model = keras.Model(inputs, layers.Dense(4, name="scores")(inputs))
    np.savez(tmp_path / "named.npz", y=data[0])
    report = verify(
        save(model, folder / "y.tflite"), model, str(tmp_path / "named.npz")
    )
    assert report.samples == 120 and report.outputs[0].metric == ""


def test_lengths_that_one_of_both_leaves_open(folder, rng) -> None:
    def network(length: int | None) -> keras.Model:
        inputs = keras.Input((length, 2), name="x")
        return keras.Model(inputs, layers.Rescaling(2.0, name="y")(inputs))

    fixed = save(network(3), folder / "fixed.tflite")
    x = rng.normal(size=(5, 3, 2))
    verify(fixed, network(None), x).require()
    with pytest.raises(ValueError, match="must have the shape of the input"):
        verify(fixed, network(None), x[:, :2])
    signature = tf.function(lambda x: {"y": x * 2.0}).get_concrete_function(
        tf.TensorSpec((1, None, 2), name="x")
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [signature], tf.Module()
    )
    (folder / "open.tflite").write_bytes(converter.convert())
    for model in (network(3), network(None)):
        report = verify(folder / "open.tflite", model, x)
        assert report.outputs[0].within_one_step == 1.0
    with pytest.raises(ValueError, match=r"takes \(samples, 3, 2\)"):
        verify(folder / "open.tflite", network(3), x[:, :2])


def test_data_in_every_form(file, model, data, tmp_path) -> None:
    x, y = data
    np.savez(tmp_path / "named.npz", x=x, y=y)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(50)
    wanted = verify(file, model, data).to_dict()
    for given in (
        (x, y[:, None]),
        ({"x": x}, {"scores": y}),
        tmp_path / "named.npz",
        batches,
    ):
        assert verify(file, model, given).to_dict() == wanted
    for given in (x, {"x": x}, batches.map(lambda x, y: x), [x[:60], x[60:]]):
        report = verify(file, model, given)
        assert report.samples == 120 and report.outputs[0].metric == ""


# --- what cannot be compared


def test_wrong_use(file, model, data, folder) -> None:
    x, y = data
    with pytest.raises(FileNotFoundError):
        verify(folder / "no.tflite", model, data)
    with pytest.raises(TypeError, match="must be a Keras model"):
        verify(file, "model", data)
    with pytest.raises(ValueError, match="from 0 to 3. Received: 0 to 4"):
        verify(file, model, (x, np.arange(120) % 5))
    with pytest.raises(ValueError, match="Targets must be class indices"):
        verify(file, model, (x, y[:7]))
    with pytest.raises(ValueError, match="Targets must be class indices"):
        verify(file, model, (x, y.astype(str)))
    with pytest.raises(ValueError, match="`data` must be finite"):
        verify(file, model, np.full_like(x, np.nan))
    wide = keras.Sequential([keras.Input((7,)), layers.Dense(4)])
    with pytest.raises(ValueError, match=r"inputs of one shape.*\(6,\).*\(7,\)"):
        verify(file, wide, np.zeros((3, 7)))
    two = [keras.Input((6,), name=name) for name in ("a", "b")]
    with pytest.raises(ValueError, match="the same inputs. Received: 'x' in the file"):
        verify(file, keras.Model(two, layers.Add()(two)), data)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"top1_agreement": 99}, "must be a share, from 0 to 1. Received.*99"),
        ({"share_within_one_step": -0.1}, "must be a share"),
        ({"top1_agreement": np.nan}, "must be a share"),
        ({"max_steps": -1}, "`max_steps` must be at least 0. Received: max_steps=-1"),
        ({"max_steps": np.nan}, "`max_steps` must be at least 0. Received.*nan"),
        ({"max_drop_points": -0.5}, "`max_drop_points` must be at least 0"),
        ({"max_steps": 1}, "`max_steps` needs an output that is quantized"),
        ({"share_within_one_step": 0.9}, "needs an output that is quantized"),
        ({"max_drop_points": 1}, "`max_drop_points` needs class indices"),
    ],
)
def test_limits_that_nothing_can_be_held_against(file, model, data, limits, text):
    with pytest.raises(ValueError, match=text):
        verify(file, model, data[0]).require(**limits)


def test_a_lost_point_is_found(rng) -> None:
    wanted = np.eye(2)[rng.integers(0, 2, 100)]
    told = wanted.copy()
    told[:3] = told[:3, ::-1]
    output = compare("y", told, wanted, target=wanted.argmax(1))
    report = VerificationReport("f", 1, 100, (output,), (), "float32")
    report.require(max_drop_points=3.0)
    with pytest.raises(VerificationError, match="max_drop_points of output 'y' is 3,"):
        report.require(max_drop_points=2.9)


def test_each_limit_is_kept_to_the_last_digit(rng) -> None:
    step = 0.5
    wanted = np.eye(4)[rng.integers(0, 4, 50)] * 20 * step
    told = wanted.copy()
    told[:5] = np.roll(told[:5], 1, axis=1)  # 10 of 200 values, 20 steps apart
    told[5:, :] += step
    output = compare("y", told, wanted, step=step, target=wanted.argmax(1))
    report = report_of(output)
    kept = {
        "top1_agreement": 0.9,
        "max_steps": 20,
        "share_within_one_step": 0.95,
        "max_drop_points": 10,
    }
    assert report.require(**kept) is report
    broken = {
        "top1_agreement": 0.91,
        "max_steps": 19.9,
        "share_within_one_step": 0.951,
        "max_drop_points": 9.9,
    }
    for name, limit in broken.items():
        with pytest.raises(VerificationError, match=f"{name} of output 'y' is") as err:
            report.require(**{**kept, name: limit})
        assert len(err.value.problems) == 1
    with pytest.raises(VerificationError, match="file must do what the Keras") as err:
        report.require(**broken)
    assert len(err.value.problems) == 4 and err.value.report is report
    assert str(err.value).endswith(str(report))


def test_a_report_says_what_was_left_in_float(rng) -> None:
    output = compare("y", np.ones((2, 1)), np.ones((2, 1)), step=0.1)
    report = VerificationReport(
        "m.tflite", 1234, 2, (output,), ("NEG (norm)",), "mixed"
    )
    assert str(report).startswith(
        "m.tflite against Keras on 2 samples: mixed, 1,234 bytes, left in float: NEG"
    )
    assert report.to_dict()["float_ops"] == ["NEG (norm)"]


@pytest.mark.parametrize(("activation", "plain"), [("relu", True), ("elu", False)])
def test_other_kernels_are_run_where_there_are_some(activation, plain) -> None:
    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(3, activation=activation)]
    )
    report = verify(converted(model), model, np.ones((20, 4), "float32"))
    runs = [(run.kernels, run.threads, run.samples) for run in report.kernels]
    expected = [("xnnpack", 4, 16), ("built-in", 1, 16), ("built-in", 4, 16)]
    assert runs == expected + [("reference", 1, 16)] * plain
    for run in report.kernels:
        assert run.outputs[0].largest_difference < 1e-6
    assert "built-in kernels and 4 threads" in str(report)
    assert report.to_dict()["kernels"][0]["kernels"] == "xnnpack"
