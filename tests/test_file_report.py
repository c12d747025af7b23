"""What is told of a file, for people and machines."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace

import keras
import pytest
from converting import converted
from keras import layers

from kdlite.lite.delegates import delegates
from kdlite.lite.file_report import FileReport, describe
from kdlite.lite.metadata import write_metadata
from kdlite.lite.metadata_schema import Metadata, TensorMetadata
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.size_report import size_report
from kdlite.lite.tflite_file import Signature
from kdlite.lite.tflite_reader import inspect
from kdlite.terminal import plain


@pytest.fixture(scope="module")
def blob() -> bytes:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="<image>"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ]
    )
    return write_metadata(
        converted(model, "int8"),
        name="tiny & small",
        author="A. Nobody",
        license="MIT",
        labels=["ant", "bee", "cat"],
    )


def test_memory_for_open_lengths_is_told_as_such(blob) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((None, 4)), layers.Conv1D(3, 3)])
    told = "bytes of memory for tensors, at 1 for each length that is open\n"
    assert told in str(describe(converted(model, "float32")))
    assert "bytes of memory for tensors\n" in str(describe(blob))


def test_all_is_told_in_lines_and_in_json(blob) -> None:
    report = describe(blob)
    text = str(report)
    for words in (
        "runs on TFLite 2.12 and newer",  # its Dense kernel has steps by channel
        "bytes of memory for tensors",
        "GPU takes ",
        "XNNPACK takes ",
        "tiny & small",
        "A. Nobody",
        "ant, bee, cat",
    ):
        assert words in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["min_runtime"] == "2.12"
    assert plain["arena_bytes"] == report.arena_bytes > 0
    assert plain["metadata"]["license"] == "MIT"
    assert plain["metadata"]["files"] == {"labels.txt": len(b"ant\nbee\ncat")}
    kernel = next(t for t in plain["tensors"] if t["shape"] == [4, 3, 3, 1])
    assert kernel["constant"] and kernel["dtype"] == "int8"
    assert (kernel["channels"], kernel["axis"]) == (4, 0)


def test_the_page_is_whole_and_nothing_in_it_is_taken_for_markup(blob) -> None:
    page = describe(blob).to_html()
    seen: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs) -> None:
            seen.append(tag)

    Reader().feed(page)
    assert seen.count("tr") == 1 + len(describe(blob).content.ops)
    # No tag of a name, and nothing that is fetched.
    assert "image" not in seen and "&amp;" in page
    assert not {"script", "link", "img"} & set(seen)
    for op in describe(blob).content.ops:
        assert op.name in page


def test_each_link_leads_to_a_row(blob) -> None:
    page = describe(blob).to_html()
    links = re.findall(r'href="#(\w+)"', page)
    assert links and set(links) <= set(re.findall(r'id="(\w+)"', page))
    # No row makes the file's inputs, which are named all the same.
    content = describe(blob).content
    tensor = content.tensors_of(content.ops[0])[0]
    assert f"t{tensor.index}" not in links
    assert f"<td>{html.escape(tensor.name)}" in page


def test_mutated_files_are_errors_or_are_told_of(blob, rng) -> None:
    told = 0
    for _ in range(300):
        mutated = bytearray(blob)
        for place in rng.integers(0, len(blob), int(rng.integers(1, 6))):
            mutated[place] = rng.integers(256)
        cut = int(rng.integers(1, len(blob))) if rng.random() < 0.2 else len(blob)
        try:
            report = describe(bytes(mutated[:cut]))
        except ValueError as err:
            assert "whole, well-formed file. Received: " in str(err)
        else:
            told += 1
            assert str(report) and report.to_html() and json.dumps(report.to_dict())
    # Most bytes are weights: a test that only met errors would say little.
    assert told > 50


def test_names_in_a_file_cannot_pass_for_other_text(blob) -> None:
    odd = "x\u202ey\x1b[2K\n  not told: yes"
    told = r"x\u202ey\u001b[2K\u000a  not told: yes"
    content = inspect(blob)
    tensor = replace(content.inputs[0], name=odd)
    op = replace(content.ops[0], name=odd, custom=True)
    signature = Signature(odd, (tensor,), (tensor,))
    file = replace(
        content,
        name=odd,
        inputs=(tensor,),
        outputs=(tensor,),
        ops=(op,),
        signatures=(signature, signature),
    )
    about = Metadata(
        name=odd,
        description="two\nlines\u202e",
        inputs=(TensorMetadata(odd, labels=(odd,), description=odd),),
        outputs=(TensorMetadata(odd, labels=(odd,)),),
    )
    report = FileReport(file, about, needed_runtime(content), 1, delegates(file))
    weights = replace(size_report(blob), name=odd)
    weights = replace(weights, weights=(replace(weights.weights[0], op=odd),))
    for result in (tensor, op, file, about, report, weights):
        text = str(result)
        assert told in text and plain(text) == text
        assert "\n  not told: yes" not in text
    assert r"two" + "\n    " + r"lines\u202e" in str(report)
    assert odd not in report.to_html() and "\u202e" not in report.to_html()
    assert file.to_dict()["inputs"][0]["name"] == odd
