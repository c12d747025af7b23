from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from converting import converted

import kdlite
from kdlite.lite.names import by_name, check_names, graph_names, named, output_names

layers = keras.layers

PAIRS = [
    ("left.img", "left_img"),
    ("a b", "a_b"),
    ("x:0", "x_0"),
    ("für", "f_r"),
    ("日", "月"),
    ("x", "X"),
    ("<b>", "1"),
    ("a|b", "*a*"),
]


def two_inputs(first: str, second: str) -> keras.Model:
    """Each input, and each output, is of another scale."""
    a, b = keras.Input((4,), name=first), keras.Input((4,), name=second)
    h, k = (layers.Dense(3, activation="relu")(x) for x in (a, b))
    one = layers.Dense(2, name="one")(layers.Concatenate()([h, k]))
    two = layers.Dense(2, name="two")(k)
    model = keras.Model([a, b], {second: one, first: two})
    generator = np.random.default_rng(3)
    model.set_weights([generator.normal(size=w.shape) for w in model.get_weights()])
    return model


def samples(first: str, second: str, count: int = 120) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    return {
        first: generator.normal(size=(count, 4)).astype("float32"),
        second: generator.normal(3, 5, size=(count, 4)).astype("float32"),
    }


def by_litert(path, x: dict[str, np.ndarray], signature=None) -> dict[str, np.ndarray]:
    """What LiteRT says, by the names that it reads in the file itself."""
    runner = Interpreter(str(path)).get_signature_runner(signature)
    count = len(next(iter(x.values())))
    rows = [runner(**{n: a[k : k + 1] for n, a in x.items()}) for k in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def check(path, model, x, signature=None, within=1e-5) -> None:
    few = {name: array[:20] for name, array in x.items()}
    told, wanted = by_litert(path, few, signature), model.predict(few, verbose=0)
    assert set(told) == set(wanted)
    for name, values in wanted.items():
        assert np.abs(told[name] - values).mean() <= within * np.abs(values).max(), name


@pytest.mark.parametrize("names", PAIRS)
def test_a_file_has_the_names_of_keras(tmp_path, names) -> None:
    model, x = two_inputs(*names), samples(*names)
    path = tmp_path / "m.tflite"
    result = kdlite.export(
        model, path, verify_data=x, labels={names[0]: ["cat", "dog"]}
    )
    check(path, model, x)
    for tensors in (result.inputs, result.outputs):
        assert {tensor.name for tensor in tensors} == set(names)
    about = kdlite.read_metadata(path)
    assert {t.name: t.labels for t in about.outputs} == {
        names[0]: ("cat", "dog"),
        names[1]: (),
    }
    assert {t.name for t in about.inputs} == set(names)
    assert {output.name for output in result.verification.outputs} == set(names)
    assert kdlite.verify(path, model, x).passed
    # The same as Keras's, with values that tell them apart.
    swapped = dict(zip(names, list(x.values())[::-1], strict=True))
    check(path, model, swapped)


# An error of 8-bit levels, where a swap is one of the values' own size.
@pytest.mark.parametrize(
    ("quantization", "options"),
    [
        ("int8", {}),
        ("int8", {"engine": "aeq"}),
        ("int16x8", {}),
        ("dynamic", {}),
        ("int8", {"overrides": {"two": "float32"}, "allow_float_ops": ()}),
    ],
)
def test_every_recipe_has_them(tmp_path, quantization, options) -> None:
    names = ("left.img", "left_img")
    model, x = two_inputs(*names), samples(*names)
    path = tmp_path / "m.tflite"
    if quantization != "dynamic":
        options = {**options, "calibration_data": x}
    kdlite.export(model, path, quantization, verify_data=x, **options)
    check(path, model, x, within=0.03)
    again = tmp_path / "again.tflite"
    kdlite.export(model, again, quantization, verify_data=x, **options)
    assert again.read_bytes() == path.read_bytes()


def test_a_quantization_aware_model_has_them(tmp_path) -> None:
    names = ("a-b", "a_b")
    model, x = two_inputs(*names), samples(*names)
    model = kdlite.quantize_aware(model)
    model.compile("sgd", "mse")
    model.fit(x, model.predict(x, verbose=0), verbose=0)
    path = tmp_path / "m.tflite"
    kdlite.export(model, path, "int8", verify_data=x)
    check(path, model, x, within=0.03)


def test_a_quantization_aware_model_that_gives_its_input_back(tmp_path) -> None:
    x = keras.Input((4,), name="x")
    student = keras.Model(x, [layers.Dense(3, name="h")(x), x])
    model = kdlite.quantize_aware(student)
    values = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(values, student.predict(values, verbose=0), verbose=0)
    path = tmp_path / "m.tflite"
    for io in ("float32", "int8"):
        result = kdlite.export(
            model, path, "int8", io=io, verify_data=values, overwrite=True
        )
        assert [tensor.name for tensor in result.inputs] == ["x"]
        assert {tensor.name for tensor in result.outputs} == {"h", "x"}
        about = kdlite.read_metadata(path)
        assert [tensor.name for tensor in about.inputs] == ["x"]
        assert {tensor.name for tensor in about.outputs} == {"h", "x"}


def test_several_signatures_have_them(tmp_path) -> None:
    first, second = two_inputs("a-b", "a_b"), two_inputs("a_b", "a-b")
    x = samples("a-b", "a_b")
    path = tmp_path / "m.tflite"
    kdlite.export({"one": first, "two": second}, path, verify_data=x)
    check(path, first, x, "one")
    check(path, second, x, "two")
    assert kdlite.verify(path, {"one": first, "two": second}, x).passed


def test_golden_vectors_and_rounded_pixels_go_by_them(tmp_path) -> None:
    image = keras.Input((8, 8, 3), name="bild für")
    h = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    outputs = {"cls-top": layers.Dense(3)(h), "cls_top": layers.Dense(2)(h)}
    model = keras.Model(image, outputs)
    x = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3)).astype("float32")
    path = tmp_path / "m.tflite"
    kdlite.export(
        model, path, "int8", calibration_data=x, input_range=(0.0, 255.0), io="uint8"
    )
    golden = kdlite.read_metadata(path).provenance["golden"]
    assert {n: len(v[0]) for n, v in golden["outputs"].items()} == {
        "cls-top": 3,
        "cls_top": 2,
    }
    assert set(golden["steps"]) == set(outputs)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "cls-top" in card and "bild für" in card


def test_one_input_of_a_file_stands_for_no_two() -> None:
    x = samples("a-b", "a_b", 4)
    a = keras.Input((4,), name="a_b")
    file = converted(keras.Model(a, layers.Dense(2, name="y")(a)))
    i, j = keras.Input((4,), name="a-b"), keras.Input((4,), name="a_b")
    model = keras.Model([i, j], layers.Dense(2, name="y")(i + j))
    with pytest.raises(ValueError, match="must have the same inputs.*'a_b' in the fil"):
        kdlite.verify(file, model, x)


def test_swapped_names_are_found() -> None:
    model, x = two_inputs("a", "b"), samples("a", "b", 8)
    file = converted(model)
    same, swapped = {"a": "a", "b": "b"}, {"a": "b", "b": "a"}
    assert named(file, same, same) is file
    assert kdlite.verify(file, model, x).passed
    assert not kdlite.verify(named(file, swapped, same), model, x).passed
    assert not kdlite.verify(named(file, same, swapped), model, x).passed
    both = {"a": "a", "b": "a"}
    with pytest.raises(ValueError, match="must have the same outputs"):
        kdlite.verify(named(file, same, both), model, x)


def test_a_file_with_tensorflows_own_names_is_still_compared() -> None:
    model, x = two_inputs("a-b", "c d"), samples("a-b", "c d", 8)
    file = converted(model)  # whose signature nobody has renamed
    assert {t.name for t in kdlite.inspect(file).inputs} == {"a_b", "c_d"}
    assert kdlite.verify(file, model, x).passed


def test_keys_of_a_mapping_are_the_names(tmp_path) -> None:
    """As `fit()` and `predict()` take them, whatever the tensors are called."""
    a, b = keras.Input((4,), name="zz"), keras.Input((4,), name="aa")
    with pytest.warns(UserWarning, match="must match the names"):
        model = keras.Model({"aa": a, "zz": b}, {"y": layers.Dense(2)(a - 3 * b)})
    x = samples("aa", "zz")
    path = tmp_path / "m.tflite"
    kdlite.export(model, path, "int8", calibration_data=x, verify_data=x)
    check(path, model, x, within=0.03)


def test_samples_by_tensorflows_name_will_do(tmp_path) -> None:
    model, x = two_inputs("left.img", "ids"), samples("left.img", "ids", 8)
    path = tmp_path / "x.npz"
    np.savez(path, left_img=x["left.img"], ids=x["ids"])
    assert kdlite.verify(converted(model), model, path).passed


def test_graph_names_are_each_there_once() -> None:
    assert graph_names(["b", "a_1", "image"]) == {n: n for n in ("a_1", "b", "image")}
    names = ["a", "A", "a_1", "ä", "ö", "_a", "a-1", ""]
    found = graph_names(names)
    assert found == graph_names(names[::-1])
    assert set(found) == set(names)
    assert len({name.lower() for name in found.values()}) == len(names)
    assert all(name.isidentifier() for name in found.values())


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([("a", "b"), ("a_b",)], ["a_b_1", "a_b"]),
        ([("lstm",), ("lstm",), ("lstm_1",)], ["lstm", "lstm_2", "lstm_1"]),
        ([("a", "0"), ("a", "1"), ("a_1",)], ["a_0", "a_1_1", "a_1"]),
        ([("x",), ("x", "1")], ["x", "x_1"]),
    ],
)
def test_an_output_whose_name_it_is_keeps_it(paths, names) -> None:
    assert output_names(paths) == names


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", "b", "a"], "inputs must have names that differ.*'a' 2 times"),
        ([""], "must have names of one line of text, not empty.*''"),
        (["a\0b"], r"one line of text.*'a\\x00b'"),
        (["a\nb"], r"one line of text.*'a\\nb'"),
        (["\ud800"], r"one line of text.*'\\ud800'"),
    ],
)
def test_names_that_no_file_can_have(names, text) -> None:
    with pytest.raises(ValueError, match=text):
        check_names("inputs", names)


def test_an_output_without_a_name_is_refused_before_conversion(tmp_path) -> None:
    x = keras.Input((4,), name="x")
    with pytest.raises(ValueError, match="outputs must have names of one line"):
        kdlite.export(keras.Model(x, {"": x * 2, "b": x + 1}), tmp_path / "m.tflite")


def test_a_name_is_guessed_only_where_one_is_meant() -> None:
    assert by_name(["a-b", "c"], ["c", "a_b"]) == {"a-b": "a_b", "c": "c"}
    assert by_name(["a-b", "a_b"], ["a_b"]) == {"a_b": "a_b"}
    assert by_name(["a-b", "a.b"], ["a_b", "a b"]) == {}
    assert by_name(["a-b"], ["a_b", "a b"]) == {}
