"""Outliers that leave no levels to the rest of an input."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import kdlite
from kdlite.lite.outliers import outliers
from kdlite.lite.verification import VerificationError


def step_of(x) -> float:
    return float(np.ptp(x)) / 255


@pytest.mark.parametrize("value", [-9999.0, 1e4, 1e30])
@pytest.mark.parametrize("shape", [(600, 6), (200, 10, 4), (60, 6, 6, 3)])
def test_a_missing_value_is_found(rng, shape, value) -> None:
    x = rng.normal(size=shape).astype("float32")
    odd = np.zeros(len(x), bool)
    odd[::10] = True
    x.reshape(len(x), -1)[odd, 1] = value
    found = outliers({"z": np.ones((len(x), 2)), "x": x}, {"z": 1.0, "x": step_of(x)})
    assert found is not None and found.input == "x" and found.samples == odd.sum()
    assert (found.others == np.flatnonzero(~odd)).all()
    assert value in (pytest.approx(found.lowest), pytest.approx(found.highest))
    low, high = found.quartiles
    assert -1 < low < -0.4 and 0.4 < high < 1
    json.dumps(found.to_dict(), allow_nan=False)
    text = str(found)
    assert "input 'x' reaches from" in text and "half of its values lie between" in text


@pytest.mark.parametrize(
    "case", ["normal", "heavy tails", "sparse", "strokes", "scales", "float", "whole"]
)
def test_what_has_no_outliers(rng, case) -> None:
    x = rng.normal(size=(300, 6)).astype("float32")
    step = None
    if case == "heavy tails":
        x = np.exp(1.5 * x)
    elif case == "sparse":  # zero is on a level of its own
        x = np.where(rng.random(x.shape) < 0.05, 1000.0, 0.0)
    elif case == "strokes":  # dark noise, and in each sample something bright
        x = rng.uniform(0, 0.001, (100, 8, 8, 1))
        x[:, 3:5, 3:5] = 1.0
    elif case == "scales":  # one column is all that the levels are for
        x = x * np.array([1e5, 1, 1, 1, 1, 1])
    elif case == "whole":
        x = rng.integers(0, 5, (300, 6))
        x[0, 0] = 100_000
    elif case == "float":
        x[0, 0] = 1e9
        assert outliers({"x": x}, {"x": None}) is None
        assert outliers({"x": x}, {}) is None
        return
    assert outliers({"x": x}, {"x": step or step_of(x)}) is None


def test_too_few_without_outliers(rng) -> None:
    x = rng.normal(size=(20, 4))
    x[:5, 0] = 1e6
    assert outliers({"x": x}, {"x": step_of(x)}) is None
    x[4, 0] = 0.0
    found = outliers({"x": x}, {"x": step_of(x)})
    assert found is not None and len(found.others) == 16


def test_one_value_a_sample_is_no_channel(rng) -> None:
    assert outliers({"x": rng.normal(size=30)}, {"x": 100.0}) is None


# --- whole files


def dense_net(*last: keras.layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(16, activation="relu"),
            *(last or [keras.layers.Dense(3, name="o")]),
        ]
    )


@pytest.mark.parametrize("verified", ["on the same", "held out"])
def test_a_file_of_which_outliers_have_all_levels_is_refused(
    verified, tmp_path, rng
) -> None:
    def samples() -> np.ndarray:
        x = rng.normal(size=(300, 6)).astype("float32")
        x[rng.random(x.shape) < 0.01] = -9999.0
        return x

    model, x = dense_net(), samples()
    held = {"verify_data": samples()} if verified == "held out" else {}
    with pytest.raises(VerificationError, match="without outliers: input 'x'") as err:
        kdlite.export(model, tmp_path / "m.tflite", "int8", calibration_data=x, **held)
    assert "reaches from -9999 to" in str(err.value) and not list(tmp_path.iterdir())
    json.dumps(err.value.report.to_dict(), allow_nan=False)
    # Whatever has no steps is not hurt.
    result = kdlite.export(model, tmp_path / "m.tflite", "float16", **held)
    assert result.verification.passed and result.verification.ordinary == ()
    clean = np.clip(x, -5, 5)
    result = kdlite.export(model, tmp_path / "c.tflite", "int8", calibration_data=clean)
    assert result.verification.passed


def test_an_offset_in_the_output_is_refused_with_a_way_out(tmp_path, rng) -> None:
    x = rng.normal(size=(200, 6)).astype("float32")
    model = dense_net(
        keras.layers.Dense(1, activation="tanh"),
        keras.layers.Rescaling(3.0, offset=2000.0, name="year"),
    )
    path = tmp_path / "m.tflite"
    with pytest.raises(VerificationError, match="'year' varies by .* wide, as its"):
        kdlite.export(model, path, "int8", calibration_data=x)
    result = kdlite.export(
        model, path, "int8", calibration_data=x, overrides={"year": "float32"}
    )
    (output,) = result.verification.outputs
    assert output.step is None and output.follows_db > 20
    # Without samples enough, or where a sigmoid has its own step, nothing is asked.
    sure = dense_net(
        keras.layers.Dense(
            1, bias_initializer=keras.initializers.Constant(12), activation="sigmoid"
        )
    )
    passed = kdlite.export(sure, tmp_path / "s.tflite", "int8", calibration_data=x)
    (output,) = passed.verification.outputs
    assert output.fixed_step and 0 < output.varies < output.step
    assert output.follows_db < 3


def test_what_is_lost_of_the_labels_is_told(tmp_path, rng) -> None:
    x = rng.normal(size=(400, 6)).astype("float32")
    model = dense_net()
    # Classes differ by little of what the scores have in common.
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel[:, :1] + 0.04 * kernel, bias])
    y = model.predict(x, verbose=0).argmax(1)
    with pytest.warns(UserWarning, match="'o' loses .* where Keras has 1.0000"):
        result = kdlite.export(
            model, tmp_path / "m.tflite", "int8", calibration_data=x, verify_data=(x, y)
        )
    assert "careful: output 'o' loses" in str(result)
    assert result.to_dict()["verification"]["cautions"]
