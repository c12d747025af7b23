from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kdlite

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "kdlite").rglob("*.py"))


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


# --- one source for each fact


def test_version_is_the_top_entry_of_the_changelog() -> None:
    entries = re.findall(
        r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert entries[0] == PYPROJECT["project"]["version"] == kdlite.__version__


def test_no_tool_is_set_up_in_two_files() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    in_setup = {re.split("[:-]", section)[0] for section in setup.sections()}
    assert in_setup == {"mypy", "coverage"}
    assert not in_setup & set(PYPROJECT["tool"])
    assert {"ruff", "pytest"} <= set(PYPROJECT["tool"])


def test_constraints_pin_versions_of_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)

    def plain(name: str) -> str:
        return re.sub("[-_.]+", "-", name).lower()

    pinned = {plain(pin.split("==")[0]) for pin in pins}
    project = PYPROJECT["project"]
    required = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    names = {plain(re.split("[<>=~!;[ ]", line)[0]) for line in required}
    # `kdlite[docs]` in an extra is another extra.
    assert names - {"kdlite"} <= pinned


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "kdlite" / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["kdlite"]


# --- imports go one way

# Room -> the rooms that it may import from.
_BELOW_LITE = {
    *("batches", "compress", "copies", "counts", "datasets", "fingerprint"),
    *("in_place", "progress", "terminal", "working_folder"),
}
_BELOW_REPORT = {"lite", "distill", *_BELOW_LITE}
_BELOW_PIPELINE = {
    *("doctor", "symptoms", "gates", "reporting", "android", "sizing", "teachers"),
    *("backup", "result_folder"),
    *_BELOW_REPORT,
}
_PUBLIC = {"augment", "losses", "schedules", "tfmot"}
_BELOW_CLI = {"pipeline", "demo", "stages", "outcomes", *_BELOW_PIPELINE}
MAY_IMPORT = {
    "fingerprint": set(),
    "batches": set(),
    "copies": set(),
    "counts": set(),
    "progress": set(),
    "interrupts": set(),
    "terminal": set(),
    "working_folder": set(),
    "in_place": set(),
    "datasets": {"progress"},
    "gates": set(),
    "backup": set(),
    "result_folder": {"distill"},
    "distill": {
        *("batches", "copies", "counts", "fingerprint", "progress"),
        *("in_place", "working_folder"),
    },
    "compress": {"copies", "counts", "fingerprint"},
    "lite": _BELOW_LITE,
    # Where the two meet that do not know each other: a .tflite as a teacher.
    "teachers": {"distill", "lite"},
    # Public names of the rooms that have them.
    **{name: {"distill"} for name in ("augment", "losses", "schedules")},
    "tfmot": {"compress"},
    "symptoms": _BELOW_REPORT,
    "doctor": {"symptoms", *_BELOW_REPORT},
    "reporting": _BELOW_REPORT,
    "sizing": {"lite", *_BELOW_LITE},
    "android": _BELOW_REPORT,
    "outcomes": {"gates", "reporting", *_BELOW_REPORT},
    "stages": {"copies", "outcomes", *_BELOW_PIPELINE},
    "pipeline": {"stages", *_BELOW_PIPELINE},
    "demo": _BELOW_CLI,
    "arguments": set(),
    "model_files": set(),
    "cli": {"arguments", "interrupts", "model_files", "terminal", *_BELOW_CLI},
    "__main__": {"cli"},
    # The public names: those that type checkers see, and nothing loaded at import.
    "__init__": {"saved_classes", *_PUBLIC, *_BELOW_CLI},
    # The names of all classes, each imported when a file has it.
    "saved_classes": set(),
}


def imported(path: Path) -> set[str]:
    """The dotted names of all that a module imports, also inside functions."""
    package = ("kdlite", *path.relative_to(ROOT / "kdlite").parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "kdlite"))
)
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "kdlite").with_suffix("").parts[0]
    rooms = {
        name.split(".")[1] for name in imported(path) if name.startswith("kdlite.")
    }
    # `from kdlite import __version__` is every room's.
    assert rooms - {"__version__", room} <= MAY_IMPORT[room]


def modules_that_import(package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT / "kdlite"))
        for path in MODULES
        if any(f"{name}.".startswith(f"{package}.") for name in imported(path))
    }


def test_litert_has_one_door() -> None:
    assert modules_that_import("ai_edge_litert") <= {
        "lite/runtime.py",
        # Both read the file's schema, which comes with LiteRT; neither runs a model.
        "lite/tflite_reader.py",
        "lite/signatures.py",
        "lite/metadata.py",
    }


def test_only_convert_knows_the_converter() -> None:
    knowing = {
        str(path.relative_to(ROOT / "kdlite"))
        for path in MODULES
        if "TFLiteConverter" in path.read_text()
    }
    assert knowing <= {"lite/_converter.py"}


# --- nothing of one machine


def test_no_file_names_a_folder_of_one_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = r"(?<![\w./~$}-])/(?:tmp|root|work|home|Users)/[\w.-]+"
    registry = "|".join(
        [
            r"python" + r"hosted\.org",
            r"pypi\." + r"org",
            r"registry\." + r"npmjs",
            r"repo1?\." + r"maven",
            r"maven\." + r"org",
            r"deb\." + r"debian",
            r"crates\." + r"io",
        ]
    )
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for match in re.finditer(f"{folder}|{registry}", data.decode()):
            found.append(f"{name}: {match[0]}")
    assert found == []


# --- the public names


def test_public_names_are_all_there() -> None:
    for name in kdlite.__all__:
        assert getattr(kdlite, name) is not None
        assert name in dir(kdlite)


def test_public_modules_can_be_imported_by_name() -> None:
    modules = [n for n in kdlite.__all__ if inspect.ismodule(getattr(kdlite, n))]
    assert "schedules" in modules
    for name in modules:
        assert importlib.import_module(f"kdlite.{name}") is getattr(kdlite, name)


def test_public_names_are_the_ones_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "kdlite" / "__init__.py").read_text())
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {"__version__"}
    for node in ast.walk(blocks[0]):
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.name for alias in node.names}
    assert seen == set(kdlite.__all__) == {"__version__", *kdlite._HOMES}


WRONG_USE = {
    "kdlite.export(None, 3)": "arg-type",
    "kdlite.export(None, 'm.tflite', quantisation='int8')": "call-arg",
    "kdlite.losses.SoftTarget()": "attr-defined",
    "kdlite.nothing": "attr-defined",
    "kdlite.shrink(None, ratio='10')": "arg-type",
    "kdlite.inspect('m.tflite').no_such_field": "attr-defined",
}


def test_a_typed_program_is_understood_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    program, wrong = ROOT / "tests" / "typed_program.py", tmp_path / "wrong.py"
    wrong.write_text("\n".join(["import kdlite", *WRONG_USE]))
    # As in a project of the user's own: nothing of this one's settings.
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    mypy = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini"]
    mypy += ["--cache-dir", ROOT / ".mypy_cache" / "typed_program"]
    done = subprocess.run(
        [*mypy, program, wrong],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    errors = re.findall(r"^(.*?):(\d+): error: .*\[(.*)\]$", done.stdout, re.MULTILINE)
    assert [(file, int(line) - 2, code) for file, line, code in errors] == [
        ("wrong.py", line, code) for line, code in enumerate(WRONG_USE.values())
    ], done.stdout + done.stderr


def test_the_typed_program_has_every_public_name() -> None:
    tree = ast.parse((ROOT / "tests" / "typed_program.py").read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr)}
    used |= {f"kdlite.{module}" for module in ("augment", "datasets", "schedules")}
    used |= {f"kdlite.{module}" for module in ("losses", "teachers")}
    assert {f"kdlite.{name}" for name in kdlite.__all__} <= used
    assert {f"teachers.{name}" for name in kdlite.teachers.__all__} <= used
    losses = {name for name in dir(kdlite.losses) if name[0].isupper()}
    assert {f"losses.{name}" for name in losses} <= used


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kdlite' has no attribute 'no_"):
        kdlite.no_such_name  # noqa: B018


def test_importing_kdlite_loads_no_heavy_library() -> None:
    done = run_python(
        "import kdlite, sys\n"
        "heavy = {'keras', 'tensorflow', 'numpy', 'matplotlib', 'ai_edge_litert'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_kdlite_beside_keras_loads_itself_alone_and_what_is_used() -> None:
    # Optional and slow libraries wait until the call that needs them.
    done = run_python(
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import kdlite\n"
        "print(sorted(set(sys.modules) - before))\n"
        "for name in kdlite.__all__: getattr(kdlite, name)\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    alone, all_names = map(ast.literal_eval, done.stdout.splitlines())
    assert alone == ["kdlite", "kdlite.saved_classes"]
    installed = set(all_names) - set(sys.stdlib_module_names)
    assert installed <= {"kdlite", "ai_edge_litert", "flatbuffers"}


# --- the backend

REFUSED = (
    "ImportError: kdlite needs Keras on the TensorFlow backend. Received: "
    "backend='jax'. Set the environment variable KERAS_BACKEND=tensorflow, or "
    '"backend": "tensorflow" in ~/.keras/keras.json, before Keras is imported.'
)


def test_another_backend_in_the_environment_is_refused_at_import() -> None:
    done = run_python("import kdlite", KERAS_BACKEND="jax")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(REFUSED)


def test_another_backend_in_keras_json_is_refused_at_import(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    env = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": ""}
    done = run_python("import kdlite", **env)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(REFUSED)
    # The environment goes before the file, as in Keras.
    env["KERAS_BACKEND"] = "tensorflow"
    assert run_python("import kdlite", **env).returncode == 0


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_keras_json_that_names_no_backend_means_tensorflow(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "keras.json").write_text(text)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    assert kdlite._keras_backend() == "tensorflow"


def test_another_backend_loaded_later_is_refused_at_first_use() -> None:
    # A stand-in for Keras: the other backends' libraries are not installed.
    done = run_python(
        "import sys, types, kdlite\n"
        "keras = sys.modules['keras'] = types.ModuleType('keras')\n"
        "keras.backend = types.SimpleNamespace(backend=lambda: 'jax')\n"
        "kdlite.datasets",
        KERAS_BACKEND="tensorflow",
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(REFUSED)


def test_kdlite_agrees_with_keras_on_its_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras

    assert kdlite._keras_backend() == keras.backend.backend() == "tensorflow"
    monkeypatch.delitem(sys.modules, "keras")  # as before it is imported
    assert kdlite._keras_backend() == "tensorflow"
