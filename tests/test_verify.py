"""A file against its Keras model: every figure by an oracle, every difference found."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from converting import converted
from keras import layers

from kdlite.lite.convert import export
from kdlite.lite.verify import VerificationError, VerificationReport, compare, verify


def classifier(seed: int, name: str = "small") -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="x")
    return keras.Model(inputs, layers.Dense(4, name="scores")(inputs), name=name)


def save(model: keras.Model, path) -> None:
    path.write_bytes(converted(model))


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
    path = folder / "float.tflite"
    save(model, path)
    return path


@pytest.fixture(scope="module")
def int8_file(model, folder, data):
    path = folder / "int8.tflite"
    return export(model, path, "int8", calibration_data=data[0]).path


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
    two = compare("y", told, (levels + 2) * float(step), step=float(step))
    assert two.within_one_step == 0.0


def test_values_that_are_no_numbers() -> None:
    wanted = np.array([[1.0, np.nan, np.inf, 4.0]])
    told = np.array([[1.0, np.nan, np.inf, np.nan]])
    report = compare("y", told, wanted)
    # That Keras has a NaN as well is not the file's fault; nor is an equal infinity.
    assert report.nan_count == 1
    assert report.largest_difference == 0.0 and report.largest_value == 4.0
    assert "1 NaN" in str(report)


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
    scores = model.predict(data[0], verbose=0)
    assert output.keras_metric == (scores.argmax(1) == data[1]).mean()
    assert report.require(top1_agreement=1.0, max_drop_points=0.0) is report
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["passed"] and plain["outputs"][0]["metric"] == "top-1"
    assert "120 samples: float32" in str(report)


def test_an_int8_file_is_measured_in_its_steps(int8_file, model, data) -> None:
    report = verify(int8_file, model, data)
    (output,) = report.outputs
    assert output.step and sum(output.histogram) == 120 * 4
    assert report.quantization == "int8" and report.float_ops == ()
    report.require(share_within_one_step=0.9, max_steps=3)
    with pytest.raises(VerificationError, match="max_steps of output 'scores'") as err:
        report.require(max_steps=0.0)
    assert err.value.report is report and len(err.value.problems) == 1


def test_another_models_file_is_found(file, data) -> None:
    report = verify(file, classifier(9), data)
    with pytest.raises(
        VerificationError, match="top1_agreement of output 'scores' is .*less than 0.99"
    ):
        report.require(top1_agreement=0.99)


def test_outputs_that_are_swapped_are_found(folder, data) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    heads = [layers.Dense(4, name=name)(inputs) for name in ("first", "second")]
    model = keras.Model(inputs, heads)
    save(model, folder / "heads.tflite")
    verify(folder / "heads.tflite", model, data[0]).require(top1_agreement=1.0)
    swapped = keras.models.clone_model(model)
    weights = model.get_weights()
    swapped.set_weights([*weights[2:], *weights[:2]])
    report = verify(folder / "heads.tflite", swapped, data[0])
    with pytest.raises(VerificationError) as err:
        report.require(top1_agreement=0.99)
    assert len(err.value.problems) == 2
    named = verify(folder / "heads.tflite", model, (data[0], {"second": data[1]}))
    assert [output.metric for output in named.outputs] == ["", "top-1"]
    with pytest.raises(ValueError, match="Targets of several outputs must be a map"):
        verify(folder / "heads.tflite", model, data)
    with pytest.raises(ValueError, match="named like the outputs.*Received: 'third'"):
        verify(folder / "heads.tflite", model, (data[0], {"third": data[1]}))


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
    assert verify(folder / "nan.tflite", bad, data[0]).passed


def test_normalisation_inside_the_file_is_known(folder, model, rng) -> None:
    x = rng.uniform(0, 255, (40, 6)).astype("float32")
    path = folder / "normalised.tflite"
    export(model, path, mean=120.0, std=60.0)
    report = verify(path, model, x).require(top1_agreement=1.0)
    assert report.outputs[0].within_one_step == 1.0


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
        ({"max_steps": 1}, "`max_steps` needs an output that is quantized"),
        ({"share_within_one_step": 0.9}, "needs an output that is quantized"),
        ({"max_drop_points": 1}, "`max_drop_points` needs class indices"),
    ],
)
def test_limits_that_nothing_can_be_held_against(file, model, data, limits, text):
    with pytest.raises(ValueError, match=text):
        verify(file, model, data[0]).require(**limits)


def test_agreement_needs_scores(folder, rng) -> None:
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(1, name="y")(inputs))
    save(model, folder / "regression.tflite")
    report = verify(folder / "regression.tflite", model, rng.normal(size=(5, 2)))
    with pytest.raises(ValueError, match="`top1_agreement` needs an output of scores"):
        report.require(top1_agreement=0.9)


def test_a_lost_point_is_found(rng) -> None:
    wanted = np.eye(2)[rng.integers(0, 2, 100)]
    told = wanted.copy()
    told[:3] = told[:3, ::-1]
    output = compare("y", told, wanted, target=wanted.argmax(1))
    report = VerificationReport("f", 1, 100, (output,), (), "float32")
    report.require(max_drop_points=3.0)
    with pytest.raises(VerificationError, match="max_drop_points of output 'y' is 3,"):
        report.require(max_drop_points=2.9)
