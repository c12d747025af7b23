"""tune: what it tries, and that trials differ in their settings alone."""

from __future__ import annotations

import json
import logging

import keras
import numpy as np
import pytest
from keras import layers

import kdlite.distill.tune as tuning
from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import DIST, LogitMSE, SoftTargets
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.taps import INPUTS_KEY, SOFT_LABELS_KEY
from kdlite.distill.trials import TuneResult
from kdlite.distill.tune import tune

N, FEATURES, CLASSES = 64, 4, 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def model(seed=0, body=()):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((FEATURES,)), *body, layers.Dense(CLASSES)], name=f"m{seed}"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, FEATURES)).astype("float32")
    y = x[:, :CLASSES].argmax(-1)
    soft = SoftLabels.build(model(7), x, tmp_path_factory.mktemp("labels"), verbose=0)
    return soft, (x, y), (x[:16] + 0.1, y[:16])


def tuned(data, student=None, **options):
    options = {
        "temperatures": (1.0, 4.0),
        "soft_loss_weights": (0.9,),
        "fraction": 0.5,
        "epochs": 1,
        "verbose": 0,
        **options,
    }
    return tune(student or model(), *data, LOSS, **options)


@pytest.fixture(scope="module")
def compiled_trial(data):
    """The only one that is compiled."""
    options = {"temperatures": (4.0,), "optimizer": keras.optimizers.SGD(0.1)}
    return tuned(data, objective="val_loss", **options).best


@pytest.fixture(scope="module", autouse=True)
def trials_step_by_step(compiled_trial):
    """All others run eagerly: they are of one step each."""
    yes = property(lambda model: True, lambda model, value: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "run_eagerly", yes)
        yield


@pytest.fixture(scope="module")
def result(data, trials_step_by_step):
    return tuned(
        data,
        soft_losses=[SoftTargets(), LogitMSE(), SoftTargets(standardize=True)],
        soft_loss_weights=(0.0, 0.9),
        objective="val_loss",
    )


class TestTrials:
    def test_every_setting_is_tried_once(self, result):
        tried = [
            (t.loss_name, t.temperature, t.soft_loss_weight) for t in result.trials
        ]
        assert sorted(tried, key=str) == sorted(
            [
                ("no teacher", None, 0.0),
                ("LogitMSE", None, 0.9),
                *[("SoftTargets", t, 0.9) for t in (1.0, 4.0) for _ in range(2)],
            ],
            key=str,
        )
        assert {trial.hard_loss_weight for trial in result.trials} == {1.0, 0.1}
        assert result.search == "grid" and result.samples == N // 2

    def test_the_best_is_first(self, result):
        losses = [trial.metrics["loss"] for trial in result.trials]
        assert losses == sorted(losses) and len(set(losses)) == len(losses)
        assert result.best is result.trials[0]
        assert set(result.best.metrics) == {"loss", "hard_loss", "accuracy"}

    def test_a_trial_is_what_a_distiller_does(self, data, compiled_trial):
        soft, (x, y), validation = data
        part = tuning._slice(soft, (x, y), 0.5, 32, 0)
        rows = [int(np.abs(x - row).sum(-1).argmin()) for row in part[0][INPUTS_KEY]]
        assert len(set(rows)) == N // 2 and rows != sorted(rows)
        np.testing.assert_array_equal(part[1], y[rows])
        labels = part[0][SOFT_LABELS_KEY]
        np.testing.assert_allclose(labels, soft.logits()[rows], atol=1e-6)
        student = model()
        keras.utils.set_random_seed(0)
        distiller = Distiller(student, **compiled_trial.settings)
        distiller.compile(keras.optimizers.SGD(0.1), LOSS)
        history = distiller.fit(
            *part[:2], batch_size=32, verbose=0, validation_data=validation
        ).history
        expected = compiled_trial.metrics["loss"]
        assert history["val_loss"][0] == pytest.approx(expected, rel=1e-6)

    def test_the_student_is_put_back(self, data):
        student = model(body=[layers.BatchNormalization(), layers.Dropout(0.5)])
        before = [variable.numpy() for variable in student.variables]
        first = tuned(data, student, temperatures=(4.0,))
        for variable, value in zip(student.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)
        # From the same weights and random numbers: again the very same.
        again = tuned(data, student, temperatures=(1.0, 4.0))
        metrics = {trial.temperature: trial.metrics for trial in again.trials}
        assert metrics[4.0] == first.best.metrics != metrics[1.0]

    def test_the_student_is_put_back_after_an_error(self, data, monkeypatch):
        def stop(*args, **kwargs):
            student.layers[-1].bias.assign([9.0, 9.0, 9.0])
            raise KeyboardInterrupt

        student = model()
        before = student.get_weights()
        monkeypatch.setattr(Distiller, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            tuned(data, student)
        assert all(map(np.array_equal, before, student.get_weights()))

    def test_finished_trials_are_not_done_again(self, data, tmp_path, monkeypatch):
        whole = tuned(data)
        fit, runs = Distiller.fit, []

        def counted(self, *args, **kwargs):
            runs.append(float(self.soft_loss.temperature))
            if len(runs) == 2:
                raise KeyboardInterrupt
            return fit(self, *args, **kwargs)

        monkeypatch.setattr(Distiller, "fit", counted)
        with pytest.raises(KeyboardInterrupt):
            tuned(data, path=tmp_path)
        resumed = tuned(data, path=tmp_path)
        assert runs == [1.0, 4.0, 4.0]
        metrics = [[t.metrics for t in r.trials] for r in (whole, resumed)]
        assert metrics[0] == metrics[1]
        # Of another student nothing is known.
        tuned(data, model(1), path=tmp_path, temperatures=(1.0,))
        assert len(runs) == 4
        stored = sorted(tmp_path.glob("*.json"))
        assert len(stored) == 3 and not list(tmp_path.glob("*.tmp"))
        for file in stored:
            file.write_text(file.read_text()[:20])
        with pytest.raises(ValueError, match=r"must be whole\. Received: .*\.json"):
            tuned(data, path=tmp_path)


class TestSearch:
    def test_a_draw_is_seeded(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: None)
        options = {"temperatures": range(1, 9), "max_trials": 3, "seed": 5}
        first, again = (
            tuned(data, path=tmp_path, **options)
            for _ in range(2)  # trained once
        )
        assert first.search == "random" and len(first.trials) == 3
        temperatures = [[t.temperature for t in r.trials] for r in (first, again)]
        assert temperatures[0] == temperatures[1]
        assert len(set(temperatures[0])) == 3
        assert len(list(tmp_path.glob("*.json"))) == 3

    @pytest.mark.filterwarnings(
        "ignore:.* is deprecated, use:DeprecationWarning",
        "ignore:getName:DeprecationWarning",
    )
    def test_keras_tuner_chooses(self, data):
        pytest.importorskip("keras_tuner")
        pytest.importorskip("sklearn")
        result = tuned(
            data,
            soft_losses=[SoftTargets(), DIST()],
            temperatures=(1.0, 2.0, 4.0, 8.0),
            max_trials=4,
            objective="val_loss",
        )
        assert result.search == "keras_tuner"
        settings = [(t.loss_name, t.temperature) for t in result.trials]
        assert 1 <= len(set(settings)) == len(settings) <= 4
        losses = [trial.metrics["loss"] for trial in result.trials]
        assert losses == sorted(losses)

    def test_without_keras_tuner_it_cannot_choose(self, data, monkeypatch):
        monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            ImportError, match=r"pip install keras-tuner.*, or search='ra"
        ):
            tuned(data, search="keras_tuner")


class TestResult:
    def test_it_is_plain_and_prints_well(self, result):
        plain = json.loads(json.dumps(result.to_dict()))
        assert plain["objective"] == "val_loss" and plain["direction"] == "min"
        assert [t["temperature"] for t in plain["trials"]] == [
            t.temperature for t in result.trials
        ]
        lines = str(result).splitlines()
        assert len(lines) == 2 + len(result.trials)
        assert lines[0].startswith(
            "6 trials (grid), 32 samples, 1 epochs, by validation"
        )
        assert lines[1].split() == ["loss", "T", "hard", "soft", "loss", "seconds"]
        assert len({len(line) for line in lines[1:]}) == 1
        with pytest.raises(AttributeError):
            result.seed = 1

    def test_settings_make_a_distiller(self, result):
        best = next(t for t in result.trials if t.loss_name == "SoftTargets")
        distiller = Distiller(model(), model(7), **best.settings)
        assert float(distiller.soft_loss.temperature) == best.temperature
        assert float(distiller.soft_loss_weight) == pytest.approx(0.9)

    def test_what_diverged_is_last(self):
        trials = [
            tuning.Trial({"class_name": "DIST"}, t, 0.1, 0.9, {"loss": value}, 1.0)
            for t, value in ((1.0, float("nan")), (2.0, 0.5))
        ]
        for direction in ("max", "min"):
            ordered = tuning._ordered(trials, "val_loss", direction)
            assert [t.temperature for t in ordered] == [2.0, 1.0]
        assert isinstance(
            TuneResult(ordered, "val_loss", "min", "grid", 1, 1, 0), object
        )

    def test_each_trial_is_told(self, data, caplog):
        with caplog.at_level(logging.INFO, "kdlite"):
            tuned(data)
        lines = [record.getMessage() for record in caplog.records]
        assert [line[:12] for line in lines if line.startswith("trial")] == [
            "trial 1 of 2",
            "trial 2 of 2",
        ]


class TestErrors:
    @pytest.mark.parametrize(
        "options, kind, text",
        [
            ({"fraction": 1.5}, ValueError, "`fraction` must be at most 1"),
            ({"fraction": 0.0}, ValueError, "`fraction` must be above 0"),
            ({"epochs": 0}, ValueError, "`epochs` must be a whole number"),
            ({"temperatures": ()}, ValueError, "`temperatures` must have something"),
            ({"temperatures": (0.0,)}, ValueError, "`temperatures` must be above 0"),
            ({"soft_loss_weights": (1.5,)}, ValueError, "are shares.*Received: 1.5"),
            ({"soft_losses": ["kl"]}, TypeError, "must be distillation losses.*'kl'"),
            ({"search": "luck"}, ValueError, "`search` must be one of auto, grid, ran"),
            ({"direction": "up"}, ValueError, "`direction` must be 'max', 'min'"),
            ({"objective": "accuracy"}, ValueError, "begin with 'val_'"),
            (
                {"objective": "val_f1"},
                ValueError,
                "Available: val_accuracy, .*val_loss",
            ),
        ],
    )
    def test_arguments_are_checked(self, data, options, kind, text):
        with pytest.raises(kind, match=text):
            tuned(data, **options)

    @pytest.mark.parametrize("labels", ["labels", model()], ids=["path", "teacher"])
    def test_soft_labels_are_built_or_loaded_before(self, data, labels):
        with pytest.raises(TypeError, match="must be SoftLabels.*Fix: SoftLabels.load"):
            tune(model(), labels, data, data, "mse")

    def test_data(self, data):
        soft, train, validation = data
        with pytest.raises(ValueError, match="other samples than those trained on"):
            tune(model(), soft, train, train, LOSS)
        with pytest.raises(ValueError, match="`train` must have labels"):
            tune(model(), soft, train[0], validation, LOSS)
