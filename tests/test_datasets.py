from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlite import datasets
from kdlite.lite.calibration import InputSpec, read_folder

NAMES = [file.name for file in datasets._FILES]


@pytest.fixture(scope="module")
def data() -> datasets.FashionMNIST:
    return datasets.fashion_mnist()


@pytest.fixture(scope="module")
def real_folder(data: datasets.FashionMNIST) -> Path:
    return data.folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data in any place; returns Keras's cache, not yet made."""
    monkeypatch.delenv("KDLITE_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


def link_all(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).symlink_to(source / name)
    return folder


def keras_whose_download(
    acts: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Puts a Keras in place that has only `datasets.fashion_mnist.load_data`."""
    keras = types.ModuleType("keras")
    loader = types.SimpleNamespace(load_data=acts)
    keras.datasets = types.SimpleNamespace(fashion_mnist=loader)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", keras)


def test_images_and_labels(data: datasets.FashionMNIST) -> None:
    for split, images in [
        (data.train, 55_000),
        (data.validation, 5_000),
        (data.test, 10_000),
    ]:
        assert split.x.shape == (images, 28, 28, 1)
        assert split.x.dtype == np.uint8
        assert (split.x.min(), split.x.max()) == (0, 255)
        assert split.y.shape == (images,)
        assert split.y.dtype == np.int64
        assert set(split.y) == set(range(10))
    assert np.all(np.bincount(data.test.y) == 1_000)
    both = np.bincount(data.train.y) + np.bincount(data.validation.y)
    assert np.all(both == 6_000)
    # Published facts: the mean pixel of the training set, and the first labels.
    mean = (data.train.x.mean() * 55 + data.validation.x.mean() * 5) / 60 / 255
    assert mean == pytest.approx(0.2860, abs=1e-4)
    assert data.train.y[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.test.y[:5].tolist() == [9, 2, 1, 1, 6]
    assert [data.class_names[label] for label in data.test.y[:3]] == [
        "Ankle boot",
        "Pullover",
        "Trouser",
    ]


def test_the_three_parts_share_no_position(data: datasets.FashionMNIST) -> None:
    raw = datasets._read(data.folder, datasets._TRAIN_IMAGES)
    np.testing.assert_array_equal(raw[:55_000], data.train.x)
    np.testing.assert_array_equal(raw[55_000:], data.validation.x)


def test_result_prints_and_goes_to_json(data: datasets.FashionMNIST) -> None:
    assert str(data) == (
        "Fashion-MNIST: 55,000 train, 5,000 validation, 10,000 test images of 28x28x1, "
        f"10 classes, from {data.folder}"
    )
    plain = json.loads(json.dumps(data.to_dict()))
    assert plain["train"] == 55_000
    assert plain["class_names"] == list(data.class_names)
    assert len(repr(data)) < 400
    with pytest.raises(AttributeError):
        data.train = data.test  # type: ignore[misc]


def test_places_are_asked_in_order(
    nowhere: Path, real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert datasets.find_fashion_mnist() is None
    link_all(real_folder, nowhere)
    assert datasets.find_fashion_mnist() == nowhere
    debian = link_all(real_folder, tmp_path / "debian")
    assert datasets.find_fashion_mnist() == debian
    named = link_all(real_folder, tmp_path / "named")
    monkeypatch.setenv("KDLITE_DATA_DIR", str(named))
    assert datasets.find_fashion_mnist() == named
    nested = link_all(real_folder, named / "fashion-mnist")
    assert datasets.find_fashion_mnist() == nested


def test_a_folder_that_is_not_whole_is_passed_over(
    nowhere: Path, real_folder: Path, tmp_path: Path
) -> None:
    debian = link_all(real_folder, tmp_path / "debian")
    (debian / NAMES[2]).unlink()
    link_all(real_folder, nowhere)
    assert datasets.find_fashion_mnist() == nowhere


def test_keras_cache_is_where_keras_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tail = Path(".keras", "datasets", "fashion-mnist")
    assert datasets._keras_cache() == tmp_path / tail
    # Keras turns to the folder for temporary files where home cannot be written.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert datasets._keras_cache().parts[-3:] == tail.parts
    assert not datasets._keras_cache().is_relative_to(tmp_path)


def test_data_dir_without_the_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDLITE_DATA_DIR", str(tmp_path))
    with pytest.raises(
        ValueError,
        match="KDLITE_DATA_DIR must name a folder with Fashion-MNIST's four files. "
        "Received: KDLITE_DATA_DIR='.*', where train-images-idx3-ubyte.gz is missing. "
        "Put the published",
    ):
        datasets.fashion_mnist()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_size_names_the_file(
    name: str, real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = link_all(real_folder, tmp_path / "data")
    (folder / name).unlink()
    (folder / name).write_bytes((real_folder / name).read_bytes()[:-1])
    monkeypatch.setenv("KDLITE_DATA_DIR", str(folder))
    with pytest.raises(
        ValueError,
        match=rf"{name} must have \d+ bytes. Received: .*{name} with \d+ bytes. Delete",
    ):
        datasets.fashion_mnist()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_checksum_names_the_file(
    name: str, real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = link_all(real_folder, tmp_path / "data")
    planted = bytearray((real_folder / name).read_bytes())
    planted[len(planted) // 2] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(planted)
    monkeypatch.setenv("KDLITE_DATA_DIR", str(folder))
    with pytest.raises(
        ValueError,
        match=f"{name} must have the sha256 [0-9a-f]{{64}}. Received: .*{name} with "
        "[0-9a-f]{64}. Delete",
    ):
        datasets.fashion_mnist()


def test_keras_downloads_what_is_nowhere(
    nowhere: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_whose_download(lambda: link_all(real_folder, nowhere) and None, monkeypatch)
    data = datasets.fashion_mnist()
    assert data.folder == nowhere
    assert len(data.train.y) == 55_000


def test_a_failed_download_says_what_to_do(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise Exception("URL fetch failure: no route to host.")

    keras_whose_download(fail, monkeypatch)
    with pytest.raises(
        OSError,
        match="found nowhere and Keras could not download it. Received: URL fetch "
        "failure: no route to host. Install Debian's package dataset-fashion-mnist, or "
        "set KDLITE_DATA_DIR",
    ):
        datasets.fashion_mnist()


def test_a_broken_download_names_the_file(
    nowhere: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off() -> None:
        link_all(real_folder, nowhere)
        (nowhere / NAMES[0]).unlink()
        (nowhere / NAMES[0]).write_bytes(b"\x1f\x8b")
        raise EOFError("Compressed file ended before the end-of-stream marker")

    keras_whose_download(break_off, monkeypatch)
    with pytest.raises(ValueError, match=f"{NAMES[0]} must have 26421856 bytes"):
        datasets.fashion_mnist()


def write_images(folder: Path, names: str = "ba", count: int = 3) -> None:
    import keras

    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            grey = np.full((6, 8, 1), 40 * (ord(name) - 96) + index, "uint8")
            keras.utils.save_img(folder / name / f"{index}.png", grey, scale=False)


def test_folder_of_images_has_one_class_a_subfolder(tmp_path: Path) -> None:
    write_images(tmp_path)
    samples = datasets.load(tmp_path, (6, 8, 1))
    assert samples.x.shape == (6, 6, 8, 1)
    assert samples.class_names == ("a", "b")
    assert samples.y is not None and samples.y.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(samples.x[:, 0, 0, 0], [40, 41, 42, 80, 81, 82])


def test_folder_takes_the_models_size_colours_and_order(tmp_path: Path) -> None:
    write_images(tmp_path)
    samples = datasets.load(tmp_path, (3, 4, 3), class_names=["b", "a"])
    assert samples.x.shape == (6, 3, 4, 3)
    assert samples.class_names == ("b", "a")
    assert samples.x[0, 0, 0].tolist() == [80, 80, 80]


def test_a_folder_that_lacks_classes_keeps_the_numbers_of_the_others(
    tmp_path: Path,
) -> None:
    write_images(tmp_path, "bd", count=1)
    samples = datasets.load(tmp_path, (6, 8, 1), class_names=["d", "a", "b"])
    assert samples.y is not None and samples.y.tolist() == [0, 2]
    np.testing.assert_allclose(samples.x[:, 0, 0, 0], [160, 80])
    assert samples.class_names == ("d", "a", "b")


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have one subfolder a class"):
        datasets.load(tmp_path, (6, 8, 1))
    write_images(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"named like a class. Received: 'b' in .*, where \['a', 'c'\] were named"
        r"\. Fix: rename",
    ):
        datasets.load(tmp_path, (6, 8, 1), class_names=["a", "c"])
    with pytest.raises(
        ValueError,
        match=r"2 subfolders \(a, b\) for a model of 3 classes. Fix: name all",
    ):
        datasets.load(tmp_path, (6, 8, 1), classes=3)
    with pytest.raises(ValueError, match="a model that does not say what it takes. Gi"):
        datasets.load(tmp_path, None)
    with pytest.raises(ValueError, match=r"takes \(height, width, 1 or 3\).*\(4,\)"):
        datasets.load(tmp_path, (4,))


@pytest.mark.parametrize("file", [None, ".DS_Store", "notes.txt"])
def test_a_class_without_images_is_named(tmp_path: Path, file) -> None:
    write_images(tmp_path)
    (tmp_path / "nobody").mkdir()
    if file is not None:
        (tmp_path / "nobody" / file).touch()
    with pytest.raises(ValueError, match="Each class must have images.*nobody"):
        datasets.load(tmp_path, (4, 4, 1))


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    samples = datasets.load(tmp_path, (6, 8, 1), classes=2)
    assert samples.class_names == ("a", "b") and len(samples.x) == 6


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "a" / "torn.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"TensorFlow can read.*torn\.png \(Unknown i[^{\[]*\)\. Mend"
    ):
        datasets.load(tmp_path, (4, 4, 1))


def test_npz_is_read_with_and_without_y(tmp_path: Path) -> None:
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    np.savez(tmp_path / "xy.npz", x=x, y=y[:, None])
    samples = datasets.load(tmp_path / "xy.npz", (2,))
    np.testing.assert_array_equal(samples.x, x)
    np.testing.assert_array_equal(samples.y, y)
    np.savez(tmp_path / "x.npz", x=x)
    assert datasets.load(tmp_path / "x.npz", (2,), needs_y=False).y is None
    with pytest.raises(ValueError, match=r"must have the array 'y'.*\['x'\]"):
        datasets.load(tmp_path / "x.npz", (2,))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((4, 2)), "y": np.zeros(3)},
        {"x": np.zeros((4, 2)), "y": np.float64(1.0)},
        {"x": np.float64(1.0)},
        {"x": np.float64(1.0), "y": np.float64(1.0)},
    ],
)
def test_samples_and_labels_are_as_many(tmp_path: Path, arrays) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ValueError, match=r"one row .* a sample.*odd\.npz with x \("):
        datasets.load(tmp_path / "odd.npz", (2,), needs_y=False)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_an_npz_of_one_sample_keeps_its_axis(tmp_path: Path, shape) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 2)), y=np.full(shape, 3))
    samples = datasets.load(tmp_path / "one.npz", (2,))
    assert samples.y is not None and samples.y.tolist() == [3]


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Data must exist.*none.npz"):
        datasets.load(tmp_path / "none.npz", (2,))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("words")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4" + bytes(40))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), y=np.zeros(1))
    (tmp_path / "empty.npz").touch()
    np.savez_compressed(tmp_path / "damaged.npz", x=np.arange(5000))
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[300:400] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in (
        "array.npy",
        "text.npz",
        "cut.npz",
        "objects.npz",
        "empty.npz",
        "damaged.npz",
    ):
        with pytest.raises(ValueError, match=name):
            datasets.load(tmp_path / name, (2,))


def test_held_back_part_is_spread_and_the_same_each_time() -> None:
    samples = datasets.Samples(np.arange(50), np.arange(50), ("a",))
    rest, held = samples.split(0.1)
    assert (held.x // 10).tolist() == [0, 1, 2, 3, 4]
    assert sorted([*rest.x, *held.x]) == list(range(50))
    assert rest.class_names == ("a",)
    assert samples.split(0.1)[1].x.tolist() == held.x.tolist()


@pytest.mark.parametrize("classes", [2, 5, 10, 20])
def test_held_back_part_has_each_class_in_whatever_order(classes) -> None:
    y = np.arange(1000) % classes
    for labels in (y, np.sort(y)):
        samples = datasets.Samples(np.arange(1000), labels)
        for part, share in zip(samples.split(0.1), (0.9, 0.1), strict=True):
            counts = np.bincount(part.y, minlength=classes)
            assert len(part.x) == 1000 * share
            # Drawn: within three deviations of what each class has a share in.
            wanted = 1000 / classes * share
            assert np.abs(counts - wanted).max() <= 3 * np.sqrt(wanted) and all(counts)


@pytest.mark.parametrize("count", [2, 5, 11, 19])
def test_few_samples_are_split_too(count) -> None:
    rest, held = datasets.Samples(np.arange(count), None).split(0.1)
    assert len(held.x) == -(-count // 10) and len(rest.x) + len(held.x) == count


@pytest.mark.parametrize("count", [0, 1])
def test_one_sample_is_not_split(count) -> None:
    with pytest.raises(
        ValueError,
        match=f"of two samples or more. Received: {count}. Fix: give more samples, or "
        "validation or test data of their own",
    ):
        datasets.Samples(np.zeros(count), None).split(0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_those_that_keras_reads_and_none_that_is_hidden(
    tmp_path, channels, rng
) -> None:
    import keras

    for name, size in (
        ("dog/2.png", 9),
        ("dog/10.png", 12),
        ("dog/more/1.jpeg", 4),
        ("cat/1.jpg", 7),
        ("cat/1.PNG", 5),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, 6, 3), np.uint8)).save(path)
    shape = (8, 8, channels)
    wanted = keras.utils.image_dataset_from_directory(
        tmp_path,
        label_mode="int",
        color_mode="grayscale" if channels == 1 else "rgb",
        image_size=(8, 8),
        shuffle=False,
        verbose=False,
    )
    ((x, y),) = wanted.as_numpy_iterator()
    # What systems and notebooks keep beside the images; no image, or one twice.
    for name in ("dog/._2.png", ".DS_Store", "cat/.ipynb_checkpoints/1-checkpoint.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    found = datasets.load(tmp_path, shape)
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert found.x.dtype == np.float32 and found.class_names == ("cat", "dog")
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "._1.png").write_bytes(b"\0")
    with pytest.raises(ValueError, match="must have images.*without any in cow. Add"):
        datasets.load(tmp_path, shape)


def test_images_that_are_passed_over_are_counted_once(tmp_path: Path) -> None:
    write_images(tmp_path)
    for name in ("a/1.webp", "a/2.TIFF", "b/3.webp", "b/.4.webp", "b/notes.txt"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning) as caught:
        samples = datasets.load(tmp_path, (6, 8, 1))
    (told,) = caught
    assert str(told.message) == (
        "Images must be PNG, JPEG, BMP or GIF to be read. Received: 3 of .tiff, .webp "
        f"in {tmp_path}, which are passed over. Fix: save them as PNG."
    )
    assert len(samples.x) == 6
    with pytest.warns(UserWarning, match="Received: 1 of .webp in .*b, which"):
        flat = read_folder(tmp_path / "b", [InputSpec("x", (6, 8, 1))], "data")
    assert len(flat) == 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_an_image_of_any_kind_is_read_in_grey_and_in_colour(tmp_path, suffix) -> None:
    # A flat colour: JPEG loses nothing, and 0.299 R + 0.587 G + 0.114 B is its grey.
    colour = np.array([200, 100, 50], np.uint8)
    Image.fromarray(np.full((6, 5, 3), colour)).save(tmp_path / f"1.{suffix}")
    (found,) = datasets.read_images([tmp_path / f"1.{suffix}"], (4, 4, 3))
    np.testing.assert_allclose(found, np.full((4, 4, 3), colour), atol=3)
    (found,) = datasets.read_images([tmp_path / f"1.{suffix}"], (4, 4, 1))
    np.testing.assert_allclose(found, np.full((4, 4, 1), 124.2), atol=3)
