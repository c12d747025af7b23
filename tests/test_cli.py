from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
import zipfile
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from processes import ROOT, run_light

from kdlite import cli
from kdlite.compress.recipes import RECIPES
from kdlite.lite.convert import export
from kdlite.lite.metadata import read_metadata
from kdlite.outcomes import predict_file

COMMANDS = [
    "demo",
    "distill",
    "label",
    "export",
    "inspect",
    "verify",
    "doctor",
    "benchmark",
    "android",
    "completion",
]


def kdlite(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "kdlite", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A linear classifier that is right, its data, and files that are no such thing."""
    path = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((6,), name="signal"), keras.layers.Dense(3, name="classes")]
    )
    model.save(path / "model.keras")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    np.savez(path / "data.npz", x=x, y=y)
    np.savez(path / "inputs.npz", x=x)
    (path / "labels.txt").write_text("one\ntwo\nthree\n")
    (path / "broken.keras").write_text("not a model")
    (path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (path / "blank.txt").write_text("\n\n")
    (path / "twice.txt").write_text("one\ntwo\none\n")
    inputs = [keras.Input((6,), name=name) for name in ("left", "right")]
    outputs = keras.layers.Dense(3)(keras.layers.Add()(inputs))
    keras.Model(inputs, outputs).save(path / "two.keras")
    np.savez(path / "two.npz", left=x, right=x)
    with zipfile.ZipFile(path / "torn.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    (path / "broken.tflite").write_text("not a file of LiteRT")
    return path


@pytest.fixture(scope="module")
def tflite(folder):
    path = folder / "model.tflite"
    assert cli.main(["export", str(folder / "model.keras"), "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], [*COMMANDS, "examples:\n  kdlite demo", "Exit codes"]),
        (["export", "--help"], ["--calibration-data", "examples:\n  kdlite export"]),
        (["--version"], ["kdlite 0.", "tensorflow 2.", "python 3."]),
        (["completion", "bash"], ["complete -o nospace", "kdlite"]),
    ],
)
def test_what_needs_no_tensorflow_loads_none(arguments, words, tmp_path) -> None:
    done = run_light(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout


def test_version_says_all_that_matters() -> None:
    told = dict(line.split() for line in kdlite("--version").stdout.splitlines())
    for name in ("kdlite", "keras", "tensorflow", "ai-edge-litert", "numpy"):
        assert told[name] == importlib.metadata.version(name)
    assert told["python"] == platform.python_version()


@pytest.mark.parametrize(
    ("shell", "ask", "words"),
    [
        (
            "bash",
            'eval "$(kdlite completion bash)"; COMP_LINE="kdlite ins" COMP_POINT=10; '
            "COMP_TYPE=9; COMP_WORDS=(kdlite ins); COMP_CWORD=1; "
            '_python_argcomplete kdlite ins kdlite; echo "${COMPREPLY[@]}"',
            ["inspect"],
        ),
        (
            "zsh",
            "autoload -U compinit && compinit -D; "
            'eval "$(kdlite completion zsh)"; echo ${_comps[kdlite]}',
            ["_python_argcomplete"],
        ),
        (
            "fish",
            "kdlite completion fish | source; complete -C 'kdlite ins'",
            ["inspect"],
        ),
    ],
)
def test_completion_in_shells(shell, ask, words, tmp_path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    command = tmp_path / "kdlite"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdlite "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "-c", ask],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()  # fish adds the words of the help
    assert [line.split("\t")[0].strip() for line in lines] == words, done


def test_a_process_of_its_own_says_nothing_else_and_who_reads_may_stop(tflite) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kdlite", "inspect", str(tflite), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
        assert process.wait(timeout=300) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"kdlite {command} " in text.split("examples:\n")[1]
    assert "--json" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["inspect"], ["demo", "--x"]])
def test_wrong_use_is_exit_code_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_export_prints_json_alone_on_stdout(folder, tmp_path, capfd) -> None:
    out = tmp_path / "m.tflite"
    command = ["export", str(folder / "model.keras"), "-o", str(out), "--json"]
    command += ["--labels", str(folder / "labels.txt")]
    command += ["--verify-data", str(folder / "data.npz")]
    capfd.readouterr()
    assert cli.main(command) == 0
    printed = json.loads(capfd.readouterr().out)  # with what C++ prints
    assert printed["size_bytes"] == out.stat().st_size
    assert printed["quantization"] == "float32"


def test_inspect_verify_and_benchmark(folder, tflite, capsys) -> None:
    capsys.readouterr()
    assert cli.main(["inspect", str(tflite), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macs"] == 18
    page = tflite.with_suffix(".html")
    assert cli.main(["inspect", str(tflite), "--html", str(page), "--overwrite"]) == 0
    assert "FULLY_CONNECTED" in page.read_text()
    assert cli.main(["inspect", str(tflite), "--html", str(page)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    model, data = str(folder / "model.keras"), str(folder / "data.npz")
    assert cli.main(["verify", str(tflite), model, "--data", data]) == 0
    assert capsys.readouterr().out.strip()
    inputs = str(folder / "inputs.npz")
    assert cli.main(["verify", str(tflite), model, "--data", inputs]) == 0
    capsys.readouterr()
    assert cli.main(["benchmark", str(tflite), "--runs", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(tflite)]["p50_ms"] > 0


def test_doctor_prints_findings_and_fails(folder, tmp_path, capsys) -> None:
    model = str(folder / "model.keras")
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    student.save(tmp_path / "student.keras")
    command = ["doctor", model, "--student", str(tmp_path / "student.keras"), "--data"]
    assert cli.main([*command, str(folder / "data.npz")]) == 0
    assert capsys.readouterr().out.startswith("no findings")
    shifted = str(tmp_path / "shifted.npz")
    np.savez(shifted, x=data["x"], y=data["y"] + 1)
    assert cli.main([*command, shifted, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in told["findings"]] == ["label-range"]
    assert cli.main([*command, shifted, "--allow", "label-range"]) == 0
    assert cli.main([*command, shifted, "--allow", "nonsense"]) == 2
    assert "must name findings" in capsys.readouterr().err


def image_classifier(classes: int = 3) -> keras.Model:
    return keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)]
    )


def write_images(folder, *classes: str) -> str:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        grey = np.full((2, 2, 1), 50 * number, "uint8")
        keras.utils.save_img(folder / name / "0.png", grey, scale=False)
    return str(folder)


def test_other_parts_are_read_by_the_classes_of_the_first(
    tmp_path, monkeypatch
) -> None:
    told = {}
    monkeypatch.setattr(
        "kdlite.pipeline.distill_to_tflite",
        lambda teacher, train, student, **others: told.update(others, train=train),
    )
    image_classifier().save(tmp_path / "model.keras")
    arguments = ["distill", str(tmp_path / "model.keras"), "-o", str(tmp_path / "o")]
    arguments += ["--data", write_images(tmp_path / "all", "a", "b b", "c")]
    parts = ["--validation-data", write_images(tmp_path / "two", "a", "c")]
    parts += ["--test-data", write_images(tmp_path / "one", "c")]
    assert cli.main([*arguments, *parts]) == 0
    assert told["train"][1].tolist() == [0, 1, 2]
    assert told["validation"][1].tolist() == [0, 2]
    assert told["test"][1].tolist() == [2]
    assert told["labels"] == ("a", "b b", "c")


def test_seeds_are_compared_on_a_part_that_is_held_back(
    tmp_path, monkeypatch, capsys
) -> None:
    told = {}
    monkeypatch.setattr(
        "kdlite.pipeline.distill_to_tflite",
        lambda teacher, train, student, **others: told.update(others, train=train),
    )
    model, data = str(tmp_path / "model.keras"), str(tmp_path / "data.npz")
    image_classifier().save(model)
    x = np.random.default_rng(0).uniform(size=(40, 2, 2, 1)).astype("float32")
    np.savez(data, x=x, y=np.arange(40) % 3)
    arguments = ["distill", model, "--data", data, "--test-data", data, "-o", "o"]
    for seeds, held_back in ((1, 0), (3, 4)):
        assert cli.main([*arguments, "--seeds", str(seeds)]) == 0
        assert told["seeds"] == seeds and len(told["test"][1]) == 40
        assert len(told["train"][1]) == 40 - held_back
        assert (told["validation"] is not None) is bool(held_back)
    assert cli.main([*arguments, "--seeds", "2", "--student", model]) == 2
    error = capsys.readouterr().err
    assert "`--seeds` above 1 needs a student for each, with its own start" in error
    assert f"Received: --seeds 2 and --student {model}" in error


@pytest.mark.parametrize("where", [0, 17, 39])
@pytest.mark.parametrize("kind", ["nan", "complex"])
def test_bad_samples_are_counted_before_a_part_is_held_back(
    where, kind, tmp_path, capsys
) -> None:
    image_classifier().save(tmp_path / "model.keras")
    x = np.random.default_rng(0).uniform(size=(40, 2, 2, 1)).astype("float32")
    x[where] = np.nan
    text = f"in 1 samples, the first at index {where}"
    if kind == "complex":
        x, text = np.nan_to_num(x).astype("complex64"), "numbers. Received: dtype comp"
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(40) % 3)
    arguments = ["distill", str(tmp_path / "model.keras"), "-o", str(tmp_path / "o")]
    assert cli.main([*arguments, "--data", str(tmp_path / "data.npz")]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.glob("o*"))


def test_folders_that_no_one_can_tell_the_classes_of_are_refused(
    tmp_path, capsys, tflite
) -> None:
    model = str(tmp_path / "model.keras")
    image_classifier().save(model)
    images = write_images(tmp_path / "two", "a", "c")
    other = write_images(tmp_path / "other", "a", "z")
    out = str(tmp_path / "o")
    for command in (
        ["distill", model, "--data", images, "-o", out],
        ["export", model, "--verify-data", images, "-o", out],
        ["verify", str(tflite), model, "--data", images],
        ["doctor", model, "--student", model, "--data", images],
    ):
        assert cli.main(command) == 2
        told = capsys.readouterr().err
        assert "2 subfolders (a, c) for a model of 3 classes. Fix: name all" in told
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeffa\nb\nc\n", "utf-8")
    for command in (
        ["verify", str(tflite), model, "--data", other],
        ["label", model, "--data", other, "-o", out],
    ):
        assert cli.main([*command, "--labels", str(labels)]) == 2
        assert "named like a class. Received: 'z' in " in capsys.readouterr().err


def test_verify_reads_folders_by_the_labels_in_the_file(
    tmp_path, monkeypatch, tflite
) -> None:
    told = []
    monkeypatch.setattr(
        "kdlite.lite.metadata.read_metadata",
        lambda file: SimpleNamespace(labels=("a", "b", "c")),
    )

    class Report:
        outputs = ()
        passed = True

        def require(self, **limits) -> None: ...

    def verify(file, model, data) -> Report:
        told.append(data[1].tolist())
        return Report()

    monkeypatch.setattr("kdlite.lite.verify.verify", verify)
    model = str(tmp_path / "model.keras")
    image_classifier().save(model)
    images = write_images(tmp_path / "two", "a", "c")
    command = ["verify", str(tflite), model, "--data", images]
    labels = tmp_path / "labels.txt"
    labels.write_text("c\nb\na\n")
    assert cli.main(command) == 0
    assert cli.main([*command, "--labels", str(labels)]) == 0
    assert told == [[0, 2], [0, 2]]


def test_arrays_named_like_several_inputs_are_left_to_who_reads_them(folder) -> None:
    model = keras.models.load_model(folder / "two.keras")
    path = folder / "two.npz"
    assert cli._samples(path, model, None) == path


def test_failed_check_is_exit_code_1(folder, tflite, tmp_path, capsys) -> None:
    other = keras.Sequential([keras.Input((6,), name="signal"), keras.layers.Dense(3)])
    other.layers[0].set_weights([-np.eye(6, 3), np.zeros(3)])
    other.save(tmp_path / "other.keras")
    data = str(folder / "data.npz")
    code = cli.main(
        ["verify", str(tflite), str(tmp_path / "other.keras"), "--data", data]
    )
    assert code == 1
    assert capsys.readouterr().out.startswith("The file must do what the Keras model")
    arguments = ["verify", str(tflite), str(tmp_path / "other.keras"), "--data", data]
    assert cli.main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] and report["outputs"] and report["passed"] is False


def test_a_model_that_is_no_classifier_is_verified(tmp_path, capsys) -> None:
    models = []
    for name in ("own", "other"):
        model = keras.Sequential([keras.Input((6,), name="x"), keras.layers.Dense(1)])
        model.save(tmp_path / f"{name}.keras")
        models.append(model)
    file, data = str(tmp_path / "own.tflite"), str(tmp_path / "data.npz")
    export(models[0], file)
    x = np.random.default_rng(0).normal(size=(30, 6)).astype("float32")
    np.savez(data, x=x)

    def verify(name: str, *more: str) -> int:
        capsys.readouterr()
        model = str(tmp_path / f"{name}.keras")
        return cli.main(["verify", file, model, "--data", data, *more])

    assert verify("own") == 0
    assert "held: float32: no NaN" in capsys.readouterr().out
    assert verify("other") == 1
    assert "not held: float32: no NaN" in capsys.readouterr().out
    assert verify("own", "--top1-agreement", "0.9") == 2
    assert "needs an output of scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "{}/nowhere.tflite"], "nowhere.tflite"),
        (["inspect", "{}/broken.tflite"], "broken.tflite"),
        (["export", "{}/nowhere.keras", "-o", "{}/x.tflite"], "must exist"),
        (["export", "{}/broken.keras", "-o", "{}/x.tflite"], "which is another file"),
        (["export", "{}", "-o", "{}/x.tflite"], "which is a folder"),
        (["export", "{}/torn.keras", "-o", "{}/x.tflite"], "Keras can load"),
        (["export", "{}/model.keras", "-o", "{}/data.npz"], "give --overwrite"),
        (
            ["export", "{}/model.keras", "-o", "{}/x.tflite", "--override", "dense"],
            "must be LAYER=TYPE. Received: 'dense'",
        ),
        (
            ["export", "{}/model.keras", "-o", "{}/x.tflite", "--quantization", "int8"],
            "calibration_data",
        ),
        (
            ["label", "{}/model.keras", "--data", "{}/none.npz", "-o", "{}/l"],
            "Data must exist",
        ),
        (
            ["label", "{}/model.keras", "--data", "{}/broken.keras", "-o", "{}/l"],
            "must be an .npz",
        ),
        (
            "distill {}/model.keras --student {}/model.keras --data {}/inputs.npz "
            "-o {}/o".split(),
            "must have the array 'y'",
        ),
        *(
            (
                f"label {{}}/model.keras --data {{}}/inputs.npz -o {{}}/o --labels {{}}"
                f"/{name}".split(),
                text,
            )
            for name, text in (
                ("none.txt", "with the class names, one a line. Received: "),
                ("none.txt", "none.txt, which is not there. Fix: name such a file"),
                ("", "which is a folder. Fix: "),
                ("binary.txt", "binary.txt, which is no text. Fix: "),
                ("blank.txt", "blank.txt, which is empty. Fix: "),
                ("twice.txt", "must differ from each other. Received: 'one'"),
            )
        ),
        *(
            (f"{command} -o {{}}/two".split(), "takes models of one input. Received: ")
            for command in (
                "label {}/two.keras --data {}/inputs.npz",
                "label {}/two.keras --data {}/two.npz",
                "distill {}/two.keras --student {}/model.keras --data {}/data.npz",
            )
        ),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(
    folder, arguments, text, capsys
) -> None:
    assert cli.main([part.format(folder) for part in arguments]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not {"o", "l", "two"} & {path.name for path in folder.iterdir()}


def test_label_stores_what_the_teacher_says(folder, tmp_path, capsys) -> None:
    from kdlite.distill.soft_labels import SoftLabels

    out = tmp_path / "labels"
    data = str(folder / "inputs.npz")
    model = str(folder / "model.keras")
    assert cli.main(["label", model, "--data", data, "-o", str(out)]) == 0
    stored = SoftLabels.load(out)
    assert len(stored) == 150
    with np.load(folder / "inputs.npz") as file:
        x = file["x"]
    np.testing.assert_allclose(
        stored.logits(),
        keras.models.load_model(model).predict(x, verbose=0),
        atol=1e-5,
    )


def test_label_stores_features_too(folder, tmp_path, capsys) -> None:
    out = str(tmp_path / "labels")
    command = ["label", str(folder / "model.keras"), "-o", out]
    command += ["--data", str(folder / "inputs.npz"), "--feature", "classes"]
    assert cli.main([*command, "--max-feature-bytes", "500"]) == 2
    assert "900 bytes for 150 samples" in capsys.readouterr().err
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["features"] == {"classes": {"shape": [3], "bytes": 900}}


def test_label_in_shards(folder, tmp_path, capsys) -> None:
    from kdlite.distill.soft_labels import SoftLabels

    out = str(tmp_path / "labels")
    data = ["--data", str(folder / "inputs.npz"), "-o", out]
    command = ["label", str(folder / "model.keras"), *data, "--dtype", "float16"]
    for shard in ("1/3", "3/3"):
        assert cli.main([*command, "--shard", shard]) == 0
    assert cli.main(["label", "--merge", "-o", out]) == 2
    assert "missing are 2 of 3" in capsys.readouterr().err
    assert cli.main([*command, "--shard", "2/3"]) == 0
    assert cli.main(["label", "--merge", "-o", out]) == 0
    told = SoftLabels.load(out).to_dict()
    assert told["samples"] == 150 and told["dtype"] == "float16"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["{}/model.keras", "--data", "{}/data.npz", "--shard", "0/3"], "from 1 to n"),
        (["{}/model.keras"], "A teacher and `--data` are needed"),
        (["{}/model.keras", "--merge"], "`--merge` takes shards that are there"),
        (["--merge"], "no folder shard-i-of-n"),
        (["{}/model.keras", "--data", "{}/data.npz", "--top-k", "3"], "below the numb"),
    ],
)
def test_label_used_wrongly(arguments, text, folder, tmp_path, capsys) -> None:
    given = [argument.format(folder) for argument in arguments]
    assert cli.main(["label", *given, "-o", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["1", "a/b", "1/2/3"])
def test_a_shard_that_is_none_is_wrong_use(shard, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["label", "t.keras", "-o", "out", "--shard", shard])
    assert stop.value.code == 2
    assert "argument --shard: A shard must be like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("err", "text"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "labels"),
            "and folders writable. Received: labels: read-only file system. Fix: name",
        ),
        (OSError(errno.EIO, "Input/output error"), "Received: a file: input/output er"),
        (
            ValueError("Raise the limit, or allow depth=0.5 or separable=True."),
            "or give a --student of your own (in Python, kdlite.shrink takes depth=0.5",
        ),
        (
            ValueError("Fix: say it, with teacher_outputs='"),
            "Fix: in Python, say it, w",
        ),
        (ValueError("overwrite=True replaces it"), "inspect: --overwrite replaces"),
    ],
)
def test_errors_are_in_the_command_lines_words(err, text, monkeypatch, capsys) -> None:
    def fail(args):
        raise err

    monkeypatch.setitem(cli._RUN, "inspect", fail)
    assert cli.main(["inspect", "any.tflite"]) == 2
    assert text in capsys.readouterr().err


def test_warnings_are_one_line_without_a_place_in_the_source(monkeypatch) -> None:
    written = warnings.formatwarning
    place = ("source.py", 178, "    return distil()")
    told = []

    def warn(args):
        told.extend(
            warnings.formatwarning("Few samples.", category, *place)
            for category in (UserWarning, DeprecationWarning)
        )
        raise ValueError

    monkeypatch.setitem(cli._RUN, "inspect", warn)
    assert cli.main(["inspect", "any.tflite"]) == 2
    # Those of libraries to their maintainers stay as they are.
    assert told == [
        "kdlite inspect: warning: Few samples.\n",
        written("Few samples.", DeprecationWarning, *place),
    ]
    assert warnings.formatwarning is written


@pytest.mark.parametrize("form", ["system", "h5py", "tensorflow", "converter"])
@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "a full disk"),
        (errno.EDQUOT, "a full quota"),
        (errno.EFBIG, "a file larger than one may be here"),
    ],
)
def test_a_full_disk_is_said_in_words(number, what, form, monkeypatch, capsys) -> None:
    words = os.strerror(number)
    told = {
        "system": OSError(number, words, "out/report.json"),
        "h5py": OSError(f"Can't write (errno = {number}, error message = '{words}')"),
        "tensorflow": RuntimeError(f"saved_model.pb.tmp7; {words}"),
        "converter": RuntimeError(f"Last words: OSError: [Errno {number}] {words}"),
    }

    def write(args):
        raise told[form]

    monkeypatch.setitem(cli._RUN, "inspect", write)
    assert cli.main(["inspect", "any.tflite"]) == 2
    err = capsys.readouterr().err
    assert f"room for the files. Received: {what}. Free some, raise the limit" in err


@pytest.mark.parametrize(
    ("arguments", "kept", "text"),
    [
        ("inspect any.tflite", "", "Nothing was left half-done: give the same command"),
        ("distill t --data d -o out", "", "Nothing was left half-done"),
        ("distill t --data d -o out", "out.partial", "kept in out.partial: give the s"),
        ("demo --out out", "out.teacher", "kept in out.teacher: give the same"),
        ("label t --data d -o out", "out", "in out: give the same command again, and"),
        ("label --merge -o out --overwrite", "out", "again without --overwrite, and"),
    ],
)
def test_interrupt_says_what_to_do_next(
    arguments, kept, text, monkeypatch, capsys, tmp_path
) -> None:
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    if kept:
        (tmp_path / kept).mkdir()
    command, *rest = arguments.split()
    monkeypatch.setitem(cli._RUN, command, stop)
    assert cli.main([command, *rest]) == 130
    assert text in capsys.readouterr().err


def test_every_recipe_can_be_asked_for(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    assert ", ".join(RECIPES) in " ".join(capsys.readouterr().out.split())


def test_energy_without_its_extra_is_wrong_use(tmp_path, monkeypatch, capsys) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "codecarbon" else find(name, *more),
    )
    out = tmp_path / "out"
    assert cli.main(["demo", "--country", "FRA", "--out", str(out)]) == 2
    assert "kdlite[energy]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_says_what_the_model_is_for(folder, tmp_path) -> None:
    model, path = str(folder / "model.keras"), str(tmp_path / "m.tflite")
    told = ["--intended-use", "For tests.", "--author", "A. N. Author"]
    assert cli.main(["export", model, "-o", path, *told]) == 0
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "For tests." in card and "| author | A. N. Author |" in card


def test_files_say_what_pixels_become(tmp_path) -> None:
    layers = [keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    net = keras.Sequential(layers)
    net.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).uniform(0.0, 0.4, (9, 2, 2, 3)).astype("float32")
    np.savez(tmp_path / "dim.npz", x=x)  # fills no range that pixels often have
    pixels = np.rint(255 * x / x.max())
    np.savez(tmp_path / "pixels.npz", x=pixels)
    model, path = str(tmp_path / "m.keras"), tmp_path / "m.tflite"

    def told(data: str, *options: str) -> tuple[Any, Any]:
        command = ["export", model, "-o", str(path), "--overwrite", *options]
        assert cli.main([*command, "--verify-data", str(tmp_path / data)]) == 0
        (image,) = read_metadata(path).inputs
        return image.mean, image.std

    assert told("dim.npz", "--input-range", "0", "1") == ((0.0,), (255.0,))
    normalised = told("pixels.npz", "--mean", "9", "8", "7", "--std", "99")
    assert normalised == ((0.0,), (1.0,))  # the file takes pixels
    expected = net.predict((pixels - [9, 8, 7]) / 99, verbose=0)
    np.testing.assert_allclose(predict_file(path, pixels), expected, atol=1e-5)


def test_versions_that_cannot_be_printed_are_told_in_a_sentence() -> None:
    command = [sys.executable, "-m", "kdlite", "--version"]
    told = {"stderr": subprocess.PIPE, "text": True, "timeout": 300}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **told)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "kdlite: There must be room for the files" in done.stderr
    ours, theirs = os.pipe()
    os.close(ours)  # as `head` does
    done = subprocess.run(command, stdout=theirs, **told)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_result_that_cannot_be_printed_is_told_in_a_sentence(tflite) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kdlite", "inspect", str(tflite)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "must be room for the files" in done.stderr
