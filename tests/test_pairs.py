"""Several outputs: which teaches which, by what loss, and what does not fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.distill.class_map import ClassMap
from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import (
    DecoupledKD,
    Hint,
    LogitMSE,
    MultiLabelSoftTargets,
    Regression,
    SequenceSoftTargets,
    SoftTargets,
)
from kdlite.distill.output_names import named, output_names
from kdlite.distill.schedules import Linear
from kdlite.distill.taps import INPUTS_KEY, SOFT_LABELS_KEY

N, FEATURES, CLASSES, BOX, TAGS = 16, 4, 3, 2, 2


def heads(x, sizes):
    return {
        "class": layers.Dense(CLASSES, activation="softmax", name=f"{sizes}_class")(x),
        "box": layers.Dense(BOX, name=f"{sizes}_box")(x),
        "tags": layers.Dense(TAGS, activation="sigmoid", name=f"{sizes}_tags")(x),
    }


def model(structure=dict, seed=0, name=None, body=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(5, activation="tanh")(inputs)
    outputs = heads(body(x) if body else x, f"m{seed}")
    if structure is not dict:
        outputs = structure(outputs.values())
    made = keras.Model(inputs, outputs, name=name)
    made.set_weights([2.0 * w for w in made.get_weights()])
    return made


HARD = {
    "class": keras.losses.SparseCategoricalCrossentropy(),
    "box": keras.losses.MeanSquaredError(),
    "tags": keras.losses.BinaryCrossentropy(),
}


def soft_losses():
    return {
        "class": SoftTargets(2.0),
        "box": Regression(bounded=False),
        "tags": MultiLabelSoftTargets(3.0),
    }


def compiled(distiller, loss=None, learning_rate=0.0, **options):
    options = {"run_eagerly": not options, **options}
    distiller.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9), loss or HARD, **options
    )
    return distiller


def fit(distiller, *data, **options):
    options = {"batch_size": N, "shuffle": False, "verbose": 0, **options}
    return distiller.fit(*data, **options).history


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def raw(model, x):
    """Logits and values in float64, from the weights alone."""
    kernel, bias = model.layers[1].get_weights()
    h = np.tanh(x.astype("float64") @ kernel + bias)
    named_by_end = {layer.name.split("_")[-1]: layer for layer in model.layers}
    pairs = {name: named_by_end[name].get_weights() for name in HARD}
    return {name: h @ kernel + bias for name, (kernel, bias) in pairs.items()}


def oracle(teacher, student):
    """One value for each sample and output."""
    p, q = softmax(teacher["class"] / 2), softmax(student["class"] / 2)
    a, b = (1 / (1 + np.exp(-x["tags"] / 3)) for x in (teacher, student))
    binary = a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
    return {
        "class": 4 * (p * np.log(p / q)).sum(-1),
        "box": ((teacher["box"] - student["box"]) ** 2).mean(-1),
        "tags": 9 * binary.mean(-1),
    }


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    rng = np.random.default_rng(2)
    return {
        "class": rng.integers(0, CLASSES, N),
        "box": rng.normal(size=(N, BOX)).astype("float32"),
        "tags": rng.integers(0, 2, (N, TAGS)).astype("float32"),
    }


@pytest.fixture(scope="module")
def teacher():
    return model(seed=7, name="big")


@pytest.fixture(scope="module")
def expected(x, teacher):
    return oracle(raw(teacher, x), raw(model(), x))


WEIGHTS = {"class": 0.5, "box": 2.0, "tags": 3.0}


class TestValues:
    @pytest.mark.parametrize(
        "options",
        [{}, {"jit_compile": True}, {"steps_per_execution": 2}],
        ids=["eager", "jit", "steps"],
    )
    def test_each_output_has_its_loss_and_weight(
        self, x, y, teacher, expected, options
    ):
        distiller = Distiller(model(), teacher, soft_losses(), 0.25, WEIGHTS)
        logs = fit(compiled(distiller, **options), x, y, batch_size=N // 2)
        for name, values in expected.items():
            assert logs[f"{name}_soft_loss"][0] == pytest.approx(
                values.mean(), rel=1e-5
            )
        sums = {name: values.mean() for name, values in expected.items()}
        assert logs["soft_loss"][0] == pytest.approx(sum(sums.values()), rel=1e-5)
        soft = sum(WEIGHTS[name] * value for name, value in sums.items())
        total = 0.25 * logs["hard_loss"][0] + soft
        assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
        assert logs["hard_loss"][0] == pytest.approx(
            sum(logs[f"{name}_loss"][0] for name in HARD), rel=1e-5
        )

    @pytest.mark.parametrize("structure", [list, tuple])
    def test_lists_and_tuples_go_by_place(self, x, y, expected, structure):
        student, teacher = model(structure), model(structure, seed=7)
        losses = structure(soft_losses().values())
        distiller = Distiller(student, teacher, losses, 0.25, 1.0)
        logs = fit(
            compiled(distiller, structure(HARD.values())), x, structure(y.values())
        )
        for name, values in expected.items():
            logged = logs[f"m0_{name}_soft_loss"][0]
            assert logged == pytest.approx(values.mean(), rel=1e-5)
        assert set(distiller.soft_loss) == {"m0_class", "m0_box", "m0_tags"}

    def test_an_output_may_be_left_alone(self, x, y, teacher, expected):
        losses = {**soft_losses(), "box": None}
        distiller = Distiller(model(), teacher, losses, 0.0, 1.0)
        logs = fit(compiled(distiller), x, y)
        assert "box_soft_loss" not in logs
        total = expected["class"].mean() + expected["tags"].mean()
        assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
        del losses["box"]
        assert set(Distiller(model(), teacher, losses).soft_loss) == {"class", "tags"}

    def test_one_loss_is_for_all_outputs(self, x, y, rng):
        inputs = keras.Input((FEATURES,))
        student, teacher = (
            keras.Model(inputs, {n: layers.Dense(CLASSES)(inputs) for n in "ab"})
            for _ in range(2)
        )
        loss = SoftTargets(Linear(1.0, 3.0, over=9))
        distiller = Distiller(student, teacher, loss)
        distiller.compile("sgd", run_eagerly=True)
        logs = fit(distiller, x)
        assert distiller.soft_loss is loss
        assert set(logs) == {
            *("loss", "soft_loss", "a_soft_loss", "b_soft_loss", "temperature")
        }

    def test_weights_of_samples_by_output_and_for_all(self, x, y, teacher, expected):
        one = np.linspace(0.0, 2.0, N).astype("float32")
        each = {"class": one, "box": one[::-1], "tags": np.ones(N, "float32")}
        for given, by_output in ((one, dict.fromkeys(HARD, one)), (each, each)):
            distiller = Distiller(model(), teacher, soft_losses())
            logs = fit(compiled(distiller), x, y, sample_weight=given)
            for name, values in expected.items():
                assert logs[f"{name}_soft_loss"][0] == pytest.approx(
                    (by_output[name] * values).mean(), rel=1e-5
                )

    def test_stored_soft_labels_have_the_structure_of_the_outputs(self, x, y, expected):
        rows = raw(model(seed=7), x)
        for labels in (rows, list(rows.values())):
            student = model(dict if isinstance(labels, dict) else list)
            losses = list(soft_losses().values())
            losses = losses if isinstance(labels, list) else soft_losses()
            hard = HARD if isinstance(labels, dict) else list(HARD.values())
            targets = y if isinstance(labels, dict) else list(y.values())
            distiller = compiled(Distiller(student, None, losses, 0.0, 1.0), hard)
            logs = fit(distiller, {INPUTS_KEY: x, SOFT_LABELS_KEY: labels}, targets)
            total = sum(values.mean() for values in expected.values())
            assert logs["soft_loss"][0] == pytest.approx(total, rel=1e-5)

    def test_stored_soft_labels_may_lack_what_is_not_taught(self, x, y, expected):
        rows = {k: v for k, v in raw(model(seed=7), x).items() if k != "box"}
        losses = {**soft_losses(), "box": None}
        distiller = compiled(Distiller(model(), None, losses))
        logs = fit(distiller, {INPUTS_KEY: x, SOFT_LABELS_KEY: rows}, y)
        total = expected["class"].mean() + expected["tags"].mean()
        assert logs["soft_loss"][0] == pytest.approx(total, rel=1e-5)
        del rows["tags"]
        with pytest.raises(ValueError, match=r"needs soft labels.*\['class'\].*'tags'"):
            fit(distiller, {INPUTS_KEY: x, SOFT_LABELS_KEY: rows}, y)

    def test_evaluation_is_that_of_the_student(self, x, y, teacher):
        student = model()
        distiller = compiled(Distiller(student, teacher, soft_losses()))
        logs = fit(distiller, x, y, validation_data=(x, y))
        assert not [name for name in logs if "val" in name and "soft" in name]
        results = distiller.evaluate(x, y, verbose=0, return_dict=True)
        student.compile(loss=HARD, run_eagerly=True)
        own = student.evaluate(x, y, verbose=0, return_dict=True)
        assert {name: results[name] for name in own} == pytest.approx(own, rel=1e-6)

    def test_padding_is_left_out_of_its_output_alone(self, rng):
        def tagger(seed):
            keras.utils.set_random_seed(seed)
            tokens = keras.Input((5,), dtype="int32")
            hidden = layers.Embedding(9, 4, mask_zero=True)(tokens)
            pooled = layers.Lambda(lambda h: h[:, 0], mask=lambda *_: None)(hidden)
            outputs = {
                "token": layers.Dense(CLASSES)(hidden),
                "whole": layers.Dense(CLASSES)(pooled),
            }
            return keras.Model(tokens, outputs)

        tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
        student, teacher = tagger(0), tagger(1)
        teacher.set_weights([20.0 * w for w in teacher.get_weights()])
        losses = {"token": SequenceSoftTargets(2.0), "whole": SoftTargets(2.0)}
        distiller = Distiller(student, teacher, losses)
        distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
        logs = fit(distiller, tokens)
        pairs = [m(tokens) for m in (teacher, student)]
        for name in losses:
            t, s = (softmax(np.asarray(pair[name], "float64") / 2) for pair in pairs)
            values = 4 * (t * np.log(t / s)).sum(-1)
            counted = values[tokens > 0] if name == "token" else values
            logged = logs[f"{name}_soft_loss"][0]
            assert logged == pytest.approx(counted.mean(), rel=1e-4)

    def test_labels_find_the_output_whose_loss_uses_them(self, x, y, teacher):
        losses = {"class": DecoupledKD(), "box": Regression(), "tags": None}
        distiller = compiled(Distiller(model(), teacher, losses))
        logs = fit(distiller, x, y)
        t, s = raw(teacher, x), raw(model(), x)
        error, bound = (((v["box"] - y["box"]) ** 2).mean(-1) for v in (s, t))
        box = np.where(error > bound, error, 0.0).mean()
        assert logs["box_soft_loss"][0] == pytest.approx(box, rel=1e-5)
        pair = (t["class"].astype("float32"), y["class"])
        class_loss = float(DecoupledKD()(pair, s["class"].astype("float32")))
        assert logs["class_soft_loss"][0] == pytest.approx(class_loss, rel=1e-4)

    def test_under_mixed_precision(self, x, y, teacher):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            student = model()
        finally:
            keras.config.set_dtype_policy("float32")
        distiller = Distiller(student, teacher, soft_losses(), 0.1, WEIGHTS)
        compiled(distiller, learning_rate=0.01)
        often = keras.tree.map_structure(lambda a: np.concatenate([a] * 4), (x, y))
        logs = fit(distiller, *often, epochs=2)
        assert np.isfinite(logs["loss"]).all()
        assert logs["soft_loss"][-1] < logs["soft_loss"][0]


class TestStructures:
    def test_outputs_are_paired_by_a_map_of_names(self, x, y, expected):
        teacher = model(list, seed=7)
        output_map = {name: f"m7_{name}" for name in HARD}
        distiller = Distiller(model(), teacher, soft_losses(), output_map=output_map)
        logs = fit(compiled(distiller), x, y)
        for name, values in expected.items():
            assert logs[f"{name}_soft_loss"][0] == pytest.approx(
                values.mean(), rel=1e-5
            )

    def test_a_student_of_one_output_learns_from_one_of_several(
        self, x, teacher, expected
    ):
        whole = model()
        student = keras.Model(whole.input, whole.output["class"], name="s")
        name = student.output_names[0]
        with pytest.raises(
            ValueError, match=rf"student 's' .*'{name}'.*teacher 'big' with .*'box'"
        ):
            Distiller(student, teacher)
        distiller = Distiller(
            student, teacher, SoftTargets(2.0), output_map={name: "class"}
        )
        distiller.compile("sgd", run_eagerly=True)
        logs = fit(distiller, x)
        assert logs["soft_loss"][0] == pytest.approx(expected["class"].mean(), rel=1e-5)

    def test_a_dict_of_one_output_is_one_output(self, x, y, expected):
        whole, other = model(), model(seed=7)
        student = keras.Model(whole.input, {"class": whole.output["class"]})
        teacher = keras.Model(other.input, other.output["class"])  # of another name
        for loss in (SoftTargets(2.0), {"class": SoftTargets(2.0)}):
            distiller = Distiller(student, teacher, loss, 0.0, 1.0)
            logs = fit(compiled(distiller, {"class": HARD["class"]}), x, y["class"])
            assert set(logs) == {"loss", "hard_loss", "soft_loss"}
            assert logs["loss"][0] == pytest.approx(expected["class"].mean(), rel=1e-5)

    def test_models_without_a_graph_return_dicts_too(self, x, y, expected):
        class Wrapped(keras.Model):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def call(self, x):
                return self.inner(x)

        kinds = {"class": "probabilities", "box": "values", "tags": "sigmoid"}
        student, teacher = Wrapped(model()), Wrapped(model(seed=7))
        distiller = Distiller(
            *(student, teacher, soft_losses()),
            student_outputs=kinds,
            teacher_outputs=kinds,
        )
        logs = fit(compiled(distiller), x, y)
        total = sum(values.mean() for values in expected.values())
        assert logs["soft_loss"][0] == pytest.approx(total, rel=1e-5)
        single = Distiller(
            student, teacher, SoftTargets(), student_outputs="probabilities",
            teacher_outputs="probabilities",
        )  # fmt: skip
        with pytest.raises(
            ValueError, match=r"which returns \['box', 'class', 'tags'\]"
        ):
            fit(compiled(single), x, y)

    def test_names(self):
        assert output_names(model()) == ("box", "class", "tags")
        assert output_names(model(list)) == ("m0_class", "m0_box", "m0_tags")
        inputs = keras.Input((FEATURES,))
        twice = layers.Dense(2, name="d")
        other = keras.Input((FEATURES,))
        shared = keras.Model([inputs, other], [twice(inputs), twice(other)])
        assert output_names(shared) == ("0", "1")
        deep = keras.Model(inputs, {"a": [twice(inputs), twice(inputs)]})
        assert output_names(deep) == ("a/0", "a/1")
        assert output_names(keras.Sequential([layers.Dense(2)])) is None
        assert named({"a": [1, 2]}, ()) == {"a/0": 1, "a/1": 2}


class TestClasses:
    def classifiers(self, classes=(3, 4)):
        inputs = keras.Input((FEATURES,))
        return [
            keras.Model(inputs, layers.Dense(n, name=f"d{n}")(inputs), name=role)
            for n, role in zip(classes, ("small", "big"), strict=True)
        ]

    def logs(self, class_map, x, y=None, loss=None, stored=False):
        student, teacher = self.classifiers()
        source = None if stored else teacher
        distiller = Distiller(
            student, source, loss or SoftTargets(2.0), class_map=class_map
        )
        distiller.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )  # fmt: skip
        s, t = (np.asarray(m(x), "float64") for m in (student, teacher))
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: t.astype("float32")} if stored else x
        return fit(distiller, data, y)["soft_loss"][0], t, s

    @pytest.mark.parametrize("stored", [False, True])
    def test_orders_and_merged_classes(self, x, stored):
        logged, t, s = self.logs([3, (0, 2), 1], x, stored=stored)
        p = np.exp(t)
        merged = np.log(np.stack([p[:, 3], p[:, 0] + p[:, 2], p[:, 1]], -1))
        p, q = softmax(merged / 2), softmax(s / 2)
        assert logged == pytest.approx(4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-5)

    def test_classes_that_the_teacher_lacks(self, x):
        logged, t, s = self.logs(ClassMap([1, None, 2]), x)
        p, q = softmax(t[:, [1, 2]] / 2), softmax(s[:, [0, 2]] / 2)
        assert logged == pytest.approx(4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-5)

    def test_labels_of_losses_follow(self, x, y):
        logged, t, s = self.logs([1, None, 2], x, y["class"], DecoupledKD(2.0))
        among_known = np.array([0, -1, 1])[y["class"]]
        pair = (t[:, [1, 2]].astype("float32"), among_known)
        expected = DecoupledKD(2.0)(pair, s[:, [0, 2]].astype("float32"))
        assert logged == pytest.approx(float(expected), rel=1e-5)

    def test_a_map_by_output(self, x, y, teacher):
        maps = {"class": [2, 0, 1], "box": [1, 0]}
        distiller = compiled(Distiller(model(), teacher, soft_losses(), class_map=maps))
        logs = fit(distiller, x, y)
        t = raw(teacher, x)
        t = {**t, "class": t["class"][:, [2, 0, 1]], "box": t["box"][:, [1, 0]]}
        for name, values in oracle(t, raw(model(), x)).items():
            assert logs[f"{name}_soft_loss"][0] == pytest.approx(
                values.mean(), rel=1e-5
            )
        assert distiller.get_config()["class_map"] == maps

    @pytest.mark.parametrize(
        "class_map, text",
        [
            (None, r"same number of classes\. Received: student 'small' with \(None, "
             r"3\), teacher 'big' with \(None, 4\)\. Fix: class_map="),
            ([0, 1], r"`class_map` has an entry .*'small' .*'big' .*2 entries, the"),
            ([0, 1, 4], r"`class_map` has an entry .*3 entries, the largest 4\. Fix"),
            ([None, 1, None], r"two or more\. .*'small'.*'big'.*A class map with one"),
        ],
    )  # fmt: skip
    def test_maps_that_do_not_fit(self, class_map, text):
        student, teacher = self.classifiers()
        with pytest.raises(ValueError, match=text):
            Distiller(student, teacher, class_map=class_map)

    def test_only_classes_are_merged(self, teacher):
        with pytest.raises(
            ValueError, match=r"exclude each other.*output 'tags'.*indep"
        ):
            Distiller(
                model(), teacher, soft_losses(), class_map={"tags": [(0, 1), None]}
            )
        with pytest.raises(
            TypeError, match=r"`class_map` must be a list.*Received: .*3"
        ):
            Distiller(model(), teacher, soft_losses(), class_map=3)

    def test_losses_on_features_have_another_place(self, teacher):
        with pytest.raises(TypeError, match="on outputs. Received: Hint,.*feature_los"):
            Distiller(model(), teacher, {"tags": Hint()})


class TestGoingOn:
    def run(self, seed=0):
        def body(x):
            return layers.Dropout(0.5)(layers.BatchNormalization()(x))

        distiller = Distiller(
            model(seed=seed, body=body),
            model(seed=7, name="big"),
            {**soft_losses(), "class": SoftTargets(Linear(4.0, 1.0, over=6))},
            0.25,
            {**WEIGHTS, "box": Linear(0.0, 1.0, over=2, unit="epochs")},
            class_map={"class": [1, 0, 2]},
        )
        return compiled(distiller, learning_rate=0.05)

    def test_a_saved_run_ends_on_the_very_weights(self, x, y, tmp_path):
        whole = self.run()
        logs = fit(whole, x, y, epochs=4, batch_size=8)
        assert logs["box_soft_loss_weight"] == [0.0, 0.5, 1.0, 1.0]
        assert logs["class_temperature"][-1] < 2.0
        first = self.run()
        fit(first, x, y, epochs=2, batch_size=8)
        first.save(tmp_path / "d.keras")
        loaded = keras.models.load_model(tmp_path / "d.keras")
        assert loaded.teacher is None
        loaded.teacher = first.teacher
        assert set(loaded.soft_loss) == set(HARD)
        fit(loaded, x, y, epochs=4, initial_epoch=2, batch_size=8)
        for a, b in zip(
            whole.student.get_weights(), loaded.student.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        config = loaded.get_config()
        assert config["class_map"] == {"class": [1, 0, 2]}
        assert config["soft_loss_weight"]["tags"] == 3.0

    def test_weights_are_set_by_output(self, teacher):
        distiller = Distiller(model(), teacher, soft_losses(), 0.1, WEIGHTS)
        distiller.soft_loss_weight = {"box": 9.0, "class": 1.0, "tags": 0.0}
        values = {n: float(v) for n, v in distiller.soft_loss_weight.items()}
        assert values == {"box": 9.0, "class": 1.0, "tags": 0.0}
        distiller.soft_loss_weight["box"].assign(2.0)
        assert float(distiller.soft_loss_weight["box"]) == 2.0
        distiller.soft_loss_weight = 0.5
        assert {float(v) for v in distiller.soft_loss_weight.values()} == {0.5}
        with pytest.raises(AttributeError, match="soft_loss"):
            distiller.soft_loss = SoftTargets()


class TestErrors:
    def test_names_are_those_of_the_student(self, teacher):
        for arguments in (
            {"soft_loss": {"boxes": Regression()}},
            {"soft_loss": soft_losses(), "class_map": {"boxes": [0, 1]}},
            {"soft_loss": soft_losses(), "output_map": {"boxes": "box"}},
            {"soft_loss": soft_losses(), "student_outputs": {"boxes": "values"}},
            {"soft_loss": soft_losses(), "soft_loss_weight": {"boxes": 1.0}},
        ):
            what = list(arguments)[-1]
            with pytest.raises(
                ValueError, match=rf"`{what}` goes by .*'boxes' for student 's'\. Avail"
            ):
                Distiller(model(name="s"), teacher, **arguments)
        with pytest.raises(
            ValueError, match="`soft_loss_weight` must have each.*'tags'"
        ):
            weights = {"class": 1.0, "box": 1.0}
            Distiller(model(), teacher, soft_losses(), 0.1, weights)

    def test_logs_of_outputs_must_not_stand_for_others(self):
        inputs = keras.Input((FEATURES,))
        outputs = {name: layers.Dense(CLASSES)(inputs) for name in ("soft", "b")}
        with pytest.raises(ValueError, match="output 'soft' of student 's'.*soft_loss"):
            Distiller(keras.Model(inputs, outputs, name="s"))

    def test_there_must_be_something_to_teach(self, teacher):
        for losses in ({"box": None}, [None, None, None], {}):
            with pytest.raises(ValueError, match=r"needs an output to teach.*'tags'"):
                Distiller(model(), teacher, losses)

    def test_each_head_must_fit_its_loss(self, teacher):
        with pytest.raises(
            ValueError,
            match=r"Received: SoftTargets for output 'tags' of student 's', ",
        ):
            Distiller(model(name="s"), teacher, {"tags": SoftTargets()})
        with pytest.raises(
            ValueError, match=r"Received: Regression for output 'class' of student 's'"
        ):
            Distiller(model(name="s"), teacher, {"class": Regression()})
        mixed = {"class": LogitMSE()}
        with pytest.raises(
            ValueError, match=r"Received: LogitMSE for output 'tags' of teacher 'big'"
        ):
            Distiller(model(), teacher, mixed, output_map={"class": "tags"})

    def test_the_teacher_must_have_the_outputs(self, teacher):
        student = model(list, name="s")
        with pytest.raises(
            ValueError, match=r"student 's' with .*'m0_box'.*teacher 'big' with .*'box'"
            r".*there is no 'm0_class'\. Fix: output_map={'m0_class'",
        ):  # fmt: skip
            Distiller(student, teacher, list(soft_losses().values()))
        with pytest.raises(ValueError, match="there is no 'm7_box'"):
            output_map = {"box": "m7_box"}
            Distiller(model(), teacher, soft_losses(), output_map=output_map)

    def test_shapes_must_fit(self):
        inputs = keras.Input((FEATURES,))

        def maker(size, name):
            return keras.Model(inputs, {"a": layers.Dense(size)(inputs)}, name=name)

        with pytest.raises(
            ValueError, match=r"'s' with \(None, 2\), .*'t' with \(None, 3"
        ):
            Distiller(maker(2, "s"), maker(3, "t"), {"a": Regression()})

    @pytest.mark.parametrize("activation", [None, "sigmoid", "tanh"])
    def test_a_single_unit_is_told_of_what_is_for_it(self, activation):
        def single(name):
            return keras.Sequential(
                [keras.Input((FEATURES,)), layers.Dense(1, activation=activation)],
                name=name,
            )

        arguments = {"soft_loss": None}
        if activation == "tanh":  # which can be anything
            arguments |= {"student_outputs": "logits", "teacher_outputs": "logits"}
        with pytest.raises(ValueError) as error:
            Distiller(single("s"), single("t"), **arguments)
        assert "MultiLabelSoftTargets" in str(error.value)
        if activation != "sigmoid":
            assert "kdlite.losses.Regression" in str(error.value)

    @pytest.mark.parametrize(
        ("loss", "one"), [(SoftTargets(), "class"), (Regression(), "value")]
    )
    def test_a_map_of_the_wrong_size_is_told_in_the_heads_words(self, loss, one):
        inputs = keras.Input((FEATURES,))
        models = [keras.Model(inputs, layers.Dense(n)(inputs)) for n in (2, 2, 3)]
        with pytest.raises(ValueError, match=f"entry for each {one} of the student"):
            Distiller(*models[:2], loss, class_map=[0, 1, 2])
        with pytest.raises(ValueError, match=f"entry for each {one} of the student"):
            Distiller(*models[:2], loss, class_map=[0, 2])
        with pytest.raises(ValueError, match=f"says for each {one} of the student"):
            Distiller(*models[1:], loss)

    @pytest.mark.parametrize("dtype", ["int64", "uint8"])
    def test_a_class_map_may_be_an_array(self, dtype):
        inputs = keras.Input((FEATURES,))
        models = [keras.Model(inputs, layers.Dense(3)(inputs)) for _ in range(2)]
        distiller = Distiller(*models, class_map=np.array([2, 0, 1], dtype))
        (class_map,) = distiller.get_config()["class_map"].values()
        assert class_map == [2, 0, 1]
        for wrong in (np.array([0.0, 1.0, 2.0]), np.zeros((3, 3), int), "201"):
            with pytest.raises(TypeError, match="class"):
                Distiller(*models, class_map=wrong)

    def test_labels_that_a_loss_uses_must_be_told_apart(self, x, y, teacher):
        by_name = {name: y[name] for name in ("class", "box")}
        distiller = compiled(
            Distiller(model(list), model(list, seed=7), [DecoupledKD(), None, None]),
            [*list(HARD.values())[:2], None],
        )
        with pytest.raises(
            ValueError, match=r"'m0_class' uses .* 2 labels for the out"
        ):
            fit(distiller, x, list(by_name.values()))

    def test_the_teacher_must_return_what_it_teaches(self, x, y):
        class Box(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = layers.Dense(BOX)

            def call(self, x):
                return {"frame": self.dense(x), "other": x}

        losses = {"box": Regression(bounded=False)}
        arguments = {"soft_loss": losses, "teacher_outputs": "values"}
        with pytest.raises(
            ValueError, match=r"returns \['frame', 'other'\], not 'box'"
        ):
            fit(compiled(Distiller(model(), Box(), **arguments)), x, y)
        distiller = Distiller(model(), Box(), **arguments, output_map={"box": "frame"})
        assert "soft_loss" in fit(compiled(distiller), x, y)
