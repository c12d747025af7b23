"""What users write, with every public name: mypy --strict must understand all of it.

Checked by test_packaging.py, never run. Keras is untyped, so its models are `Any`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import kdlite
from kdlite import augment, datasets, losses, schedules, teachers

Array = npt.NDArray[Any]


def distil(student: Any, teacher: Any, x: Array, y: Array) -> kdlite.Distiller:
    warm_up = schedules.Linear(0.0, 0.9, over=5, unit="epochs")
    distiller = kdlite.Distiller(
        student,
        teacher,
        soft_loss=losses.SoftTargets(temperature=schedules.Cosine(8.0, 2.0, over=100)),
        hard_loss_weight=0.1,
        soft_loss_weight=warm_up,
        feature_losses={
            ("block2", "backbone/block3"): losses.AttentionTransfer(),
            ("pooled", "avg_pool"): (losses.RelationalKD(), 0.5),
        },
        class_map=kdlite.ClassMap.from_names(["cat", "dog"], ["dog", "cat"]),
        balance="gradient",
    )
    distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    distiller.fit(x, y, epochs=2)
    return distiller


def choose(index: int) -> object:
    every: list[object] = [
        losses.LogitMSE(),
        losses.HardLabel(),
        losses.DecoupledKD(),
        losses.NKD(),
        losses.DIST(),
        losses.MultiLabelSoftTargets(),
        losses.Regression(),
        losses.SequenceSoftTargets(),
        losses.PixelSoftTargets(),
        losses.Hint(),
        losses.SimilarityPreserving(),
        losses.ProbabilisticTransfer(),
        losses.Correlation(),
        losses.Gram(),
        losses.VariationalInformation(),
        losses.ChannelWise(),
        losses.MaskedGenerative(),
        losses.Contrastive(),
        schedules.Piecewise([10], [0.1, 0.9]),
        schedules.Custom(lambda step: step / 10),
        augment.Mixup(alpha=0.2),
        augment.CutMix(),
    ]
    return every[index]


def teach(teacher: Any, student: Any, x: Array) -> list[Any]:
    def half(inputs: Any) -> Any:
        return inputs / 2

    def train(model: Any) -> Any:
        return model.fit(x)

    chain = teachers.assistant_chain(teacher, [student], train)
    assert_type(chain, teachers.Lineage)
    assert_type(teachers.born_again(student, train, generations=2), teachers.Lineage)
    return [
        teachers.Ensemble([teacher, teacher], weights=[0.5, 0.5]),
        teachers.Function(lambda batch: batch, (3,), "logits"),
        teachers.LogitsModel(teacher, outputs="logits"),
        teachers.MeanTeacher(decay=0.99),
        teachers.MutualLearning([student, student]),
        teachers.ONNX("teacher.onnx"),
        teachers.SavedModel("teacher"),
        teachers.TFLite("teacher.tflite"),
        teachers.Transformed(teacher, half),
    ]


def labels(teacher: Any, x: Array, y: Array, student: Any) -> kdlite.TuneResult:
    soft = kdlite.SoftLabels.build(teacher, x, Path("labels"), dtype="float16")
    assert_type(soft, kdlite.SoftLabels)
    assert_type(soft.views, int)
    assert_type(len(kdlite.SoftLabels.load("labels")), int)
    tuned = kdlite.tune(student, soft, x, (x, y), "mse", temperatures=(1.0, 4.0))
    assert_type(tuned, kdlite.TuneResult)
    return tuned


def update(student: Any, teacher: Any, x: Array, y: Array) -> Any:
    replay = kdlite.ReplayBuffer.build(teacher, (x, y), size=100)
    assert_type(replay, kdlite.ReplayBuffer)
    try:
        result = kdlite.update(student, teacher, (x, y), replay=replay)
    except kdlite.ForgettingError as err:
        return str(err)
    assert_type(result, kdlite.UpdateResult)
    return result.to_dict()


def compress(teacher: Any, x: Array) -> Any:
    print(kdlite.summary(teacher))
    for candidate in kdlite.shrink_candidates(teacher, max_bytes=500_000).rows:
        print(candidate)
    return kdlite.quantize_aware(kdlite.shrink(teacher, ratio=10), recipe="int8")


def prune(student: Any, soft: kdlite.SoftLabels, x: Array, y: Array) -> int:
    data = soft.attach((x, y))
    pruned = kdlite.tfmot.prune(student, data, {"block*": 0.75}, epochs=2)
    clustered = kdlite.tfmot.cluster(pruned, data, 16, keep_zeros=True, verbose=0)
    qat = kdlite.tfmot.quantize_aware(clustered, data, keep_clusters=True)
    weighed = kdlite.size_report(kdlite.export(qat, "qat.tflite", "int8").path)
    assert_type(weighed.weights[0].zeros, float)
    return weighed.compressed_bytes


def export(student: Any, x: Array, y: Array) -> kdlite.ExportResult:
    made = kdlite.export(
        student,
        "student.tflite",
        "int8",
        calibration_data=x,
        labels=["cat", "dog"],
        input_range=(0.0, 255.0),
        io="uint8",
        verify_data=(x, y),
    )
    assert_type(made, kdlite.ExportResult)
    assert_type(made.path, Path)
    assert_type(made.size_bytes, int)
    for operation in kdlite.inspect(made.path).ops:
        assert_type(operation.name, str)
    try:
        kdlite.verify(made.path, student, (x, y)).require(top1_agreement=0.99)
    except kdlite.VerificationError as err:
        print(err.problems)
    print(kdlite.read_metadata("student.tflite").labels)
    print(kdlite.to_android(made.path, build_apk="demo.apk").next_command)
    return made


def whole_way(teacher: Any, student: Any) -> bool:
    data = datasets.fashion_mnist()
    assert_type(data, datasets.FashionMNIST)
    if not kdlite.check(student, teacher, data.train.x).passed:
        return False
    result = kdlite.distill_to_tflite(
        teacher,
        tuple(data.train),
        student,
        validation=tuple(data.validation),
        epochs=np.int64(3).item(),
        out="out",
    )
    with kdlite.track_energy("FRA") as tracker:
        student.predict(data.test.x)
    page = kdlite.report(
        teacher=teacher,
        student=[student, student],
        files={"int8": result.tflite},
        test=tuple(data.test),
        labels=data.class_names,
        history={"student": {"loss": [2.0, 1.0]}},
        training={"student": tracker.used},
    )
    assert_type(page, kdlite.Report)
    assert_type(page.path, Path)
    assert_type(result, kdlite.PipelineResult)
    assert_type(result.tflite, Path)
    assert_type(kdlite.__version__, str)
    return result.passed
