from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from kdlite.lite.associated_files import model_part
from kdlite.lite.metadata import (
    changed_since_written,
    read_metadata,
    write_metadata,
)
from kdlite.lite.metadata_schema import Metadata

LABELS = ["T-shirt/top", "Sac à main", "靴"]


def convert(
    function: Callable[..., dict[str, tf.Tensor]], shapes: dict[str, Any], folder: Path
) -> bytes:
    module = tf.Module()
    module.function = tf.function(
        function,
        input_signature=[
            tf.TensorSpec(shape, tf.float32, name) for name, shape in shapes.items()
        ],
    )
    tf.saved_model.save(
        module, str(folder), signatures={"serving_default": module.function}
    )
    return tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rng = np.random.default_rng(0)
    kernel = tf.constant(rng.normal(size=(3, 3, 3, 5)).astype(np.float32))
    dense = tf.constant(rng.normal(size=(180, 3)).astype(np.float32))

    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "VALID"))
        return {"scores": tf.reshape(x, (1, 180)) @ dense}

    folder = tmp_path_factory.mktemp("classifier")
    return convert(function, {"image": (1, 8, 8, 3)}, folder)


@pytest.fixture(scope="module")
def two_by_three(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two inputs without an image, three outputs, two of them of the same size."""

    def function(left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"zeta": left + right, "alpha": left - right, "sum": left[:, :2]}

    folder = tmp_path_factory.mktemp("two_by_three")
    return convert(function, {"left": (1, 4), "right": (1, 4)}, folder)


def described(model: bytes) -> bytes:
    return write_metadata(
        model,
        name="Clothes",
        description="Names clothes.",
        version="1.2",
        author="A. Nonymous",
        license="Apache-2.0",
        labels=LABELS,
        score_meaning="logit of each class",
        input_range=(-1.0, 1.0),
        provenance={"seeds": [1, 2], "recipe": {"weights": "int8"}},
    )


@pytest.fixture
def saved(classifier: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(described(classifier))
    return path


def run(model: bytes, image: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=model)
    runner = interpreter.get_signature_runner("serving_default")
    return runner(image=image)["scores"]


# --- a second reader: the published field numbers, and nothing of kdlite's


def uint(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def where(data: bytes, table: int, number: int) -> int:
    vtable = table - struct.unpack("<i", data[table : table + 4])[0]
    length = int.from_bytes(data[vtable : vtable + 2], "little")
    entry = vtable + 4 + 2 * number
    if 4 + 2 * number >= length:
        return 0
    offset = int.from_bytes(data[entry : entry + 2], "little")
    return table + offset if offset else 0


def follow(data: bytes, table: int, number: int) -> int:
    at = where(data, table, number)
    assert at, f"field {number} is absent"
    return at + uint(data, at)


def item(data: bytes, table: int, number: int, index: int) -> int:
    vector = follow(data, table, number)
    assert index < uint(data, vector)
    at = vector + 4 + 4 * index
    return at + uint(data, at)


def text(data: bytes, table: int, number: int) -> str:
    at = follow(data, table, number)
    return data[at + 4 : at + 4 + uint(data, at)].decode()


def floats(data: bytes, table: int, number: int) -> list[float]:
    at = follow(data, table, number)
    count = uint(data, at)
    return list(struct.unpack(f"<{count}f", data[at + 4 : at + 4 + 4 * count]))


def metadata_buffer(model: bytes) -> bytes:
    root = uint(model, 0)
    vector = follow(model, root, 6)
    for index in range(uint(model, vector)):
        entry = item(model, root, 6, index)
        if text(model, entry, 0) == "TFLITE_METADATA":
            buffer = item(model, root, 4, uint(model, where(model, entry, 1)))
            at = follow(model, buffer, 0)
            assert (at + 4) % 16 == 0
            return model[at + 4 : at + 4 + uint(model, at)]
    raise AssertionError("no TFLITE_METADATA")


def test_a_second_reader_finds_each_field_by_its_published_number(
    classifier: bytes,
) -> None:
    model = described(classifier)
    about = metadata_buffer(model)
    assert about[4:8] == b"M001"
    root = uint(about, 0)
    assert [text(about, root, n) for n in (0, 1, 2, 4, 5, 7)] == [
        "Clothes",
        "Names clothes.",
        "1.2",
        "A. Nonymous",
        "Apache-2.0",
        "1.0.0",
    ]
    provenance = item(about, root, 6, 0)
    assert text(about, provenance, 0) == "kdlite.json"
    assert about[where(about, provenance, 2)] == 1  # DESCRIPTIONS
    subgraph = item(about, root, 3, 0)

    image = item(about, subgraph, 2, 0)
    assert text(about, image, 0) == "image"
    content = follow(about, image, 3)
    assert about[where(about, content, 0)] == 2  # ImageProperties
    assert about[where(about, follow(about, content, 1), 0)] == 1  # RGB
    unit = item(about, image, 4, 0)
    assert about[where(about, unit, 0)] == 1  # NormalizationOptions
    options = follow(about, unit, 1)
    # -1 to 1 from 0 to 255: (x - 127.5) / 127.5
    assert floats(about, options, 0) == [127.5]
    assert floats(about, options, 1) == [127.5]
    stats = follow(about, image, 5)
    assert floats(about, stats, 0) == [1.0]  # max comes first
    assert floats(about, stats, 1) == [-1.0]

    scores = item(about, subgraph, 3, 0)
    assert text(about, scores, 0) == "scores"
    assert text(about, scores, 1) == "logit of each class"
    content = follow(about, scores, 3)
    assert about[where(about, content, 0)] == 1  # FeatureProperties
    labels = item(about, scores, 6, 0)
    assert text(about, labels, 0) == "labels.txt"
    assert about[where(about, labels, 2)] == 2  # TENSOR_AXIS_LABELS

    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        assert archive.namelist() == ["labels.txt", "kdlite.json"]
        assert archive.read("labels.txt").decode().split("\n") == LABELS
        assert json.loads(archive.read("kdlite.json"))["seeds"] == [1, 2]


# --- the model stays what it is


def test_the_model_gives_the_same_output(
    classifier: bytes, rng: np.random.Generator
) -> None:
    image = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        run(described(classifier), image), run(classifier, image)
    )


def test_the_model_stays_to_the_byte_and_aligned(classifier: bytes) -> None:
    model = described(classifier)
    place = model.index(classifier)
    assert place % 16 == 0
    assert model[4:8] == b"TFL3"
    # What is added: names, labels and provenance, a new root; not a second model.
    assert len(model) - len(classifier) < 2_000


def test_equal_arguments_give_equal_bytes(classifier: bytes) -> None:
    assert described(classifier) == described(classifier)
    assert write_metadata(
        classifier, name="a", provenance={"x": 1, "y": 2}
    ) == write_metadata(classifier, name="a", provenance={"y": 2, "x": 1})


# --- kdlite's own reader


def test_what_was_written_is_read(saved: Path) -> None:
    about = read_metadata(saved)
    assert (about.name, about.description) == ("Clothes", "Names clothes.")
    assert (about.version, about.author) == ("1.2", "A. Nonymous")
    assert (about.license, about.min_parser_version) == ("Apache-2.0", "1.0.0")
    assert about.labels == tuple(LABELS)
    (image,) = about.inputs
    assert (image.name, image.content, image.color_space) == ("image", "image", "rgb")
    assert (image.mean, image.std) == ((127.5,), (127.5,))
    assert (image.minimum, image.maximum) == ((-1.0,), (1.0,))
    (scores,) = about.outputs
    assert scores.description == "logit of each class"
    sealed = about.provenance.pop("sha256_before_archive")
    assert sealed == hashlib.sha256(model_part(saved.read_bytes())).hexdigest()
    assert about.provenance == {"seeds": [1, 2], "recipe": {"weights": "int8"}}
    assert set(about.files) == {"labels.txt", "kdlite.json"}
    assert about.min_runtime_version.startswith(("1.", "2."))


def test_a_bit_that_was_changed_is_found(saved: Path, classifier: bytes) -> None:
    whole = saved.read_bytes()
    assert changed_since_written(whole) == ""
    # In the model's last bytes, its first, and in the metadata before it.
    end = len(model_part(whole))
    for place in (end - 20, end - len(classifier) + 4, whole.index(b"Names clothes.")):
        broken = bytearray(whole)
        broken[place] ^= 1
        told = changed_since_written(bytes(broken))
        assert "not the one that was exported" in told and "SHA-256" in told
    # Of a file that says nothing of itself, nothing is known.
    assert changed_since_written(classifier) == ""
    assert changed_since_written(write_metadata(classifier, name="a")) == ""


def test_metadata_prints_and_goes_to_json(saved: Path) -> None:
    about = read_metadata(saved)
    assert str(about) == (
        "Clothes\n"
        "  description: Names clothes.\n"
        "  version: 1.2\n"
        "  author: A. Nonymous\n"
        "  license: Apache-2.0\n"
        "  input image: rgb image; (x - [127.5]) / [127.5]\n"
        "  output scores: features; 3 labels: T-shirt/top, Sac à main, 靴; "
        "logit of each class\n"
        "  file labels.txt: 27 bytes\n"
        f"  file kdlite.json: {len(about.files['kdlite.json'])} bytes"
    )
    plain = json.loads(json.dumps(about.to_dict()))
    assert plain["outputs"][0]["labels"] == LABELS
    assert plain["files"]["labels.txt"] == 27
    with pytest.raises(AttributeError):
        about.name = "other"  # type: ignore[misc]


def test_a_file_without_metadata_reads_as_empty(
    classifier: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(classifier)
    about = read_metadata(path)
    assert about == Metadata(min_runtime_version=about.min_runtime_version)
    assert about.min_runtime_version
    assert (about.labels, about.provenance, str(about)) == ((), None, "(no name)")


def test_only_a_name_is_needed(classifier: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(write_metadata(classifier, name="Clothes"))
    about = read_metadata(path)
    assert about.name == "Clothes"
    assert about.inputs[0].mean == about.inputs[0].std == ()
    assert not about.files


@pytest.mark.parametrize(
    ("arguments", "mean", "std"),
    [
        ({"input_range": (0.0, 255.0)}, (0.0,), (1.0,)),
        ({"input_range": (0.0, 1.0)}, (0.0,), (255.0,)),
        ({"mean": 127.5, "std": 63.75}, (127.5,), (63.75,)),
        ({"mean": [1, 2, 3], "std": [4, 5, 6]}, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        ({"mean": 1, "std": 2, "input_range": (0, 9)}, (1.0,), (2.0,)),
    ],
)
def test_normalisation(
    classifier: bytes,
    tmp_path: Path,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(write_metadata(classifier, name="a", **arguments))
    (image,) = read_metadata(path).inputs
    assert (image.mean, image.std) == (mean, std)


def test_several_inputs_and_outputs_by_name(
    two_by_three: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    labels = {"zeta": list("wxyz"), "alpha": list("abcd")}
    path.write_bytes(
        write_metadata(two_by_three, name="a", labels=labels, score_meaning="logit")
    )
    about = read_metadata(path)
    assert {tensor.name for tensor in about.inputs} == {"left", "right"}
    assert {tensor.content for tensor in about.inputs} == {"features"}
    by_name = {tensor.name: tensor for tensor in about.outputs}
    assert by_name["zeta"].labels == tuple("wxyz")
    assert by_name["alpha"].labels == tuple("abcd")
    assert by_name["sum"].labels == ()
    assert by_name["alpha"].description == "logit"
    assert by_name["sum"].description == ""
    # The order is the file's, by which readers count.
    signature = Interpreter(model_content=two_by_three).get_output_details()
    sizes = [int(detail["shape"][-1]) for detail in signature]
    assert [len(tensor.labels) or 2 for tensor in about.outputs] == sizes
    # A list is taken where it fits one output only.
    path.write_bytes(write_metadata(two_by_three, name="a", labels=["no", "yes"]))
    by_name = {tensor.name: tensor for tensor in read_metadata(path).outputs}
    assert by_name["sum"].labels == ("no", "yes")


# --- arguments that do not fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "A model must have a name. Received: name=''. Say in a few"),
        (
            {"labels": ["a", "b"]},
            "`labels` must be as many as one output has values. Received: 2 labels, "
            "outputs 'scores' of 3. Give one label a class, or labels={output",
        ),
        ({"labels": "abc"}, "`labels` must be as many as one output has values"),
        (
            {"labels": {"score": LABELS}},
            "`labels` must go by output name, as many as it has values. Received: 3 "
            "labels for 'score', outputs 'scores' of 3. Give one label a class.",
        ),
        (
            {"labels": ["a", "", "c"]},
            "A label must be one line of text. Received: '' for 'scores'. Give each",
        ),
        ({"labels": ["a", "b\nc", "d"]}, "A label must be one line of text"),
        ({"labels": ["a", "b\n", "d"]}, "A label must be one line of text"),
        ({"labels": [0, 1, 2]}, "A label must be one line of text. Received: 0"),
        (
            {"mean": 1.0},
            "`mean` and `std` go together. Received: mean=1.0, std=None. Give both",
        ),
        (
            {"mean": [1.0, 2.0], "std": 1.0},
            "`mean` must be one finite number, or one for each of 3 channels. "
            "Received: mean=[1.0, 2.0] for input 'image'. Give the numbers",
        ),
        (
            {"mean": 0.0, "std": 0.0},
            "`std` must be one finite number, or one for each of 3 channels, and not "
            "0. Received: std=0.0",
        ),
        ({"mean": float("nan"), "std": 1.0}, "`mean` must be one finite number"),
        (
            {"input_range": (1.0, 1.0)},
            "`input_range` must be two finite numbers, the lower first. Received: "
            "input_range=(1.0, 1.0). Give for example (0.0, 255.0).",
        ),
        ({"input_range": (0.0, float("inf"))}, "`input_range` must be two finite"),
        ({"input_range": (0.0, 1.0, 2.0)}, "`input_range` must be two finite"),
        (
            {"provenance": {"x": np.float32(1.0)}},
            "`provenance` must be plain JSON. Received: a value that is not (Object of "
            "type float32 is not JSON serializable). Turn arrays into lists",
        ),
        ({"provenance": {"x": float("nan")}}, "`provenance` must be plain JSON"),
    ],
)
def test_arguments_that_do_not_fit(
    classifier: bytes, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as raised:
        write_metadata(classifier, **{"name": "a", **arguments})
    assert message in str(raised.value)


def test_labels_that_fit_two_outputs_must_say_which(two_by_three: bytes) -> None:
    with pytest.raises(ValueError, match="Received: 4 labels, outputs '.*' of 4, '"):
        write_metadata(two_by_three, name="a", labels=list("abcd"))


def test_normalisation_of_one_of_two_feature_inputs_is_refused(
    two_by_three: bytes,
) -> None:
    with pytest.raises(
        ValueError,
        match="`mean`, `std` and `input_range` need an image input, or a single input. "
        r"Received: inputs \['.*', '.*'\]. Leave them out.",
    ):
        write_metadata(two_by_three, name="a", input_range=(0.0, 1.0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: b"", "Received: 0 bytes, where its identifier is b''"),
        (lambda model: model[:200], "past the end. Convert the Keras model again."),
        (described, "where metadata is there already. Convert the Keras"),
        (
            lambda model: model + described(model)[-600:],
            "where an archive is attached already",
        ),
    ],
)
def test_a_model_that_is_not_the_converters(
    classifier: bytes, spoil: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(ValueError) as raised:
        write_metadata(spoil(classifier), name="a")
    assert "`model` must be a .tflite as the converter makes it." in str(raised.value)
    assert message in str(raised.value)


# --- files that lie


def rejected(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError) as raised:
        read_metadata(path)
    message = str(raised.value)
    assert message.startswith("A .tflite must be a whole, well-formed file. Received:")
    assert message.endswith("Do not use it; copy or export it again.")
    return message


def test_no_tflite(tmp_path: Path) -> None:
    for data in (b"", b"TFL3", b"not a model at all", b"\0\0\0\0TFL2"):
        assert "its identifier is" in rejected(tmp_path / "f", data)


def test_cut_short(saved: Path) -> None:
    data = saved.read_bytes()
    step = max(len(data) // 300, 1)
    for length in range(0, len(data), step):
        rejected(saved, data[:length])


def test_a_missing_associated_file(saved: Path) -> None:
    data = saved.read_bytes()
    message = rejected(saved, data[: data.rindex(b"PK\x05\x06")])
    assert "the associated file 'kdlite.json' is missing" in message


def test_a_buffer_that_is_not_there(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    root = uint(data, 0)
    vector = follow(data, root, 6)
    for index in range(uint(data, vector)):
        at = where(data, item(data, root, 6, index), 1)
        data[at : at + 4] = (999).to_bytes(4, "little")
    assert "buffer 999 is named, of" in rejected(saved, bytes(data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "kdlite.json is no JSON (Expecting"),
        (b"[" * 100_000, "kdlite.json is no JSON ("),
        (b"[1]", "kdlite.json holds no JSON object"),
        (b'{"\xff": 1}', "kdlite.json is no UTF-8 text"),
    ],
)
def test_provenance_that_is_none(
    classifier: bytes, tmp_path: Path, content: bytes, message: str
) -> None:
    model = write_metadata(classifier, name="a", provenance={})
    head = model[: model.rindex(b"PK\x03\x04")]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("kdlite.json", content)
    assert message in rejected(tmp_path / "f", head + archive.getvalue())


def test_bytes_that_were_changed_are_read_or_refused(saved: Path) -> None:
    data = saved.read_bytes()
    random_ = random.Random(7)
    before = sorted(saved.parent.iterdir())
    refused = 0
    for _ in range(1_500):
        changed = bytearray(data)
        for _ in range(random_.choice([1, 2, 8, 64])):
            # The metadata is at the front, the archive at the back.
            place = random_.choice(
                [random_.randrange(1_500), -1 - random_.randrange(600)]
            )
            changed[place] = random_.choice([0, 255, random_.randrange(256)])
        saved.write_bytes(changed)
        try:
            assert isinstance(read_metadata(saved), Metadata)
        except ValueError:
            refused += 1
    assert 100 < refused < 1_400
    assert sorted(saved.parent.iterdir()) == before
