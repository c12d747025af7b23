"""How far a file may be from its Keras model before it is not that model any more."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.lite.output_report import STEP_TOLERANCE, OutputReport
from kdlite.lite.tflite_file import TFLiteFile

# Sums in another order: 1e-6 of the largest value for each of many layers.
_FLOAT_SHARE = 1e-4
_FLOAT_FLOOR = 1e-6
_WITHIN_ONE_STEP = 0.99
_RMS_STEPS = 2.0
# Of the 65536 that 16 bits have: float arithmetic rounds a few values to another level,
# in layers that are left in float, and each layer behind them makes more of it.
_STEPS_OF_16_BITS = 2.0
# Below it the error is more than half of what the values vary, in squares: of less than
# so many samples nobody knows how they vary; and float arithmetic moves a value, too.
_LEAST_FOLLOWED_DB = 3.0
_ENOUGH_SAMPLES = 16
_VARIES_SHARE = 1e-5
# And four units in the last place of float32 are in no case more than that.
_ROUNDED_SHARE = 2.0**-21
# The same of the task's metric: what is lost of that above one answer for all samples.
_MOST_LOST = 0.5
_MUCH_LOST = 0.05
# What sets its own step, whatever the data.
FIXED_STEPS = ("LOGISTIC", "SOFTMAX", "TANH", "LOG_SOFTMAX", "L2_NORMALIZATION")


@dataclass(frozen=True)
class Tolerance:
    """What the outputs of a file are held to.

    Attributes:
        recipe: How the file is quantized.
        trained: Whether the model is quantization-aware.
        signature: Whose outputs these are, "signature/output"; empty for all.
    """

    recipe: Recipe
    trained: bool = False
    signature: str = ""

    def covers(self, output: str) -> bool:
        """Whether it is for the output of this name."""
        return not self.signature or output.startswith(f"{self.signature}/")

    def problem(self, output: OutputReport, other_kernels: bool = False) -> str:
        """Says in what an output is wrong; nothing if it is not.

        Args:
            output: How it compares.
            other_kernels: Whether others than XNNPACK's on one thread computed it. Each
                rounds in its own way, so that they are not met to the step.
        """
        return _problem(output, self.recipe, self.trained and not other_kernels)

    def to_dict(self) -> dict[str, float]:
        """Returns what it asks for, for programs that say it in their own words.

        Returns:
            `largest_share`: of the largest value, what each may be off by; or
            `within_one_step`: which share of the values is within one step, or else the
            error (root mean square) within `rms_steps` of 65,536, if told; or
            `rms_steps`: steps that the error may have, or else it is `snr_db` below how
            much the output varies; and where these steps are wide, `followed_db` of
            what the samples differ by.

        Example:
            >>> from kdlite.compress.recipes import RECIPES
            >>> Tolerance(RECIPES["int8"], trained=True).to_dict()
            {'within_one_step': 0.99}
        """
        if self.trained:
            wide = self.recipe.activation_bits == 16
            rms = {"rms_steps": _STEPS_OF_16_BITS} if wide else {}
            return {"within_one_step": _WITHIN_ONE_STEP, **rms}
        if self.recipe.least_snr_db is None:
            return {"largest_share": _FLOAT_SHARE}
        followed = {"followed_db": _LEAST_FOLLOWED_DB} if self.recipe.integer else {}
        return {
            "rms_steps": _RMS_STEPS,
            "snr_db": float(self.recipe.least_snr_db),
            **followed,
        }

    def __str__(self) -> str:
        kind = ", quantization-aware" if self.trained else ""
        return f"{self.recipe.name}{kind}: {rule(self.recipe, self.trained)}"


def recipe_of(content: TFLiteFile, told: object = None) -> Recipe:
    """Finds the recipe that a finished file is to be held to.

    Args:
        content: What is inside the file.
        told: The name of the recipe that it was exported with, if it tells one.

    Returns:
        The recipe of that name, since `export` held the file to it; else what the
        types in the file amount to.

    Example:
        ``recipe_of(inspect("student.tflite"))``
    """
    known = RECIPES.get(told) if isinstance(told, str) else None
    return known or content.recipe


def problems(
    outputs: Iterable[OutputReport], recipe: Recipe, trained: bool = False
) -> list[str]:
    """Says in what the outputs of a file are not those of its model.

    - NaN is always wrong.
    - Nothing is rounded: no difference beyond 1e-4 of the largest value.
    - The model was trained with the very steps: 99 % of the values within one step; of
      an output that was left in float, and has none, as any other. So is what other
      kernels than XNNPACK's made of it, each of which rounds in its own way. Of fewer
      than 100 values one may be two steps off, which no share of 99 % has room for.
      With activations of 16 bits an error (root mean square) of two steps will do, as
      float arithmetic rounds a few of the 65,536 levels otherwise.
    - Else: an error (root mean square) of at most two steps of the output, or of
      `recipe.least_snr_db` below how much the output varies, whichever is more. A
      single value does not vary: its magnitude stands for that. Two steps will not do
      where a step is wider than what the samples differ by (the standard deviation of a
      value over 16 samples or more): of these, 3 dB must be left. What sets its own
      step, as a sigmoid, is excepted.
    - Where there are targets: no more than half is lost of what the model is better by
      than one answer for all samples, unless that is by chance.

    Args:
        outputs: How each output compares.
        recipe: How the file is quantized.
        trained: Whether the model is quantization-aware, so that file and model round
            alike.

    Returns:
        A sentence for each output that is wrong.

    Example:
        ``problems(verify(file, model, data).outputs, recipe("float16"))``
    """
    return [text for output in outputs if (text := _problem(output, recipe, trained))]


def rule(recipe: Recipe, trained: bool = False) -> str:
    """Says in words what `problems` holds a file to, for its model card.

    Args:
        recipe: How the file is quantized.
        trained: Whether the model is quantization-aware.

    Returns:
        A sentence.

    Example:
        >>> from kdlite.compress.recipes import RECIPES
        >>> rule(RECIPES["float32"])
        'no NaN, and no value beyond 0.0001 of the largest from the model.'
    """
    if trained:
        others = rule(recipe).removeprefix("no NaN, and ")
        return (
            f"no NaN, and {_WITHIN_ONE_STEP:.0%} of the values of each quantized "
            "output within one step of the model's"
            + (
                f", or an error (root mean square) of {_STEPS_OF_16_BITS:g} of 65,536,"
                if recipe.activation_bits == 16
                else ""
            )
            + " with XNNPACK's kernels on one thread; in float, and with other kernels "
            f"or more threads, {others}"
        )
    if recipe.least_snr_db is None:
        return (
            f"no NaN, and no value beyond {_FLOAT_SHARE:g} of the largest from the "
            "model."
        )
    return (
        "no NaN, and an error (root mean square) of at most two quantization steps, "
        f"or {recipe.least_snr_db:.0f} dB below how much the output varies"
        + (
            f"; of what the samples differ by, {_LEAST_FOLLOWED_DB:g} dB are left."
            if recipe.integer
            else "."
        )
    )


def _problem(output: OutputReport, recipe: Recipe, trained: bool) -> str:
    name, floor = output.name, max(_FLOAT_SHARE * output.largest_value, _FLOAT_FLOOR)
    if output.nan_count:
        return f"output {name!r} has {output.nan_count} NaN"
    if lost := _lost(output):
        return lost
    if trained and output.step is not None:
        wide = recipe.activation_bits == 16
        if wide and output.rms_difference <= _STEPS_OF_16_BITS * output.step:
            return ""
        if output.within_one_step < _WITHIN_ONE_STEP and not _one_alone(output):
            return (
                f"of output {name!r} only {output.within_one_step:.1%} are within one "
                f"quantization step, not {_WITHIN_ONE_STEP:.0%}"
            )
        return ""
    if math.isinf(output.largest_difference):
        return (
            f"output {name!r} is infinite in one of file and model alone (constants of "
            "float16 end at 65504, integers sooner: a mask of -10000 does as well)"
        )
    ratio_db = recipe.least_snr_db
    if ratio_db is None:
        if output.largest_difference > floor:
            return (
                f"output {name!r} differs by {output.largest_difference:.3g}, more "
                f"than {floor:.3g}"
            )
        return ""
    noise = output.spread / 10 ** (ratio_db / 20)
    limit = max(_RMS_STEPS * (output.step or 0.0), noise, floor)
    if output.rms_difference > limit:
        return (
            f"output {name!r} is off by {output.rms_difference:.3g} (root mean "
            f"square), more than {limit:.3g}"
        )
    return _too_wide(output)


def unfollowed(output: OutputReport) -> str:
    """Says that an output does not follow what the samples differ by.

    Args:
        output: How it compares.

    Returns:
        A sentence; empty where it does, where the samples are fewer than 16, and where
        they differ by no more than float arithmetic.

    Example:
        >>> from kdlite.lite.output_report import compare
        >>> import numpy as np
        >>> years = np.random.default_rng(0).normal(2000.0, 3.0, (64, 1))
        >>> unfollowed(compare("y", np.full((64, 1), 1998.0), years, step=7.9))
        "output 'y' varies by 2.74 over 64 samples, and of that 0.0 dB are left, not 3"
    """
    return _unfollowed(output, _VARIES_SHARE)


def _unfollowed(output: OutputReport, share: float) -> str:
    if (
        output.samples < _ENOUGH_SAMPLES
        or output.varies <= max(share * output.largest_value, _FLOAT_FLOOR)
        or output.follows_db >= _LEAST_FOLLOWED_DB
    ):
        return ""
    return (
        f"output {output.name!r} varies by {output.varies:.3g} over {output.samples} "
        f"samples, and of that {output.follows_db:z.1f} dB are left, not "
        f"{_LEAST_FOLLOWED_DB:g}"
    )


def _too_wide(output: OutputReport) -> str:
    """Says that a step is too wide for what the output has to say of the samples."""
    if output.fixed_step or (output.step or 0.0) < output.varies:
        return ""
    told = unfollowed(output)
    return told and (
        f"{told}: a quantization step is {output.step:.3g} wide, as its range is "
        "that of an offset or of a few outliers in `calibration_data` (its values "
        f"reach {output.largest_value:.4g}). Leave the outliers out or clip them; let "
        "the model give the difference from the offset; or keep the layers that make "
        "the output in float. Or these samples are all alike: compare on others"
    )


def unresolved(output: OutputReport) -> str:
    """Says that steps are wider than what float arithmetic may have made, or not.

    Args:
        output: How it compares.

    Returns:
        A sentence; empty where a step is no wider, where samples differ by what float32
        rounds off, and where targets tell what is lost.

    Example:
        >>> from kdlite.lite.output_report import compare
        >>> import numpy as np
        >>> bars = np.random.default_rng(0).normal(101325.0, 0.5, (64, 1))
        >>> unresolved(compare("y", np.full((64, 1), 101325.0), bars, step=3.1))
        "output 'y' varies by 0.456 over ...: a quantization step is 3.1 wide..."
    """
    wide = not output.fixed_step and (output.step or 0.0) >= output.varies
    told = _unfollowed(output, _ROUNDED_SHARE)
    if not wide or output.keras_metric is not None or not told:
        return ""
    return (
        f"{told}: a quantization step is {output.step:.3g} wide. Where so little "
        "counts, let the model give the difference from an offset"
    )


def _lost(output: OutputReport) -> str:
    """Says that a file is not good for what the model is good for."""
    if output.lost_gain <= _MOST_LOST:
        return ""
    return f"output {_loss(output)}, and one answer for all {output.chance_metric:.4f}"


def caution(output: OutputReport) -> str:
    """Says that an output loses much of the task's metric, if it does and may.

    Args:
        output: How it compares.

    Returns:
        A sentence; empty where no more than 5 % is lost of what the model is better by
        than one answer for all samples, where that may be by chance, and where it is
        so much that the file is wrong.

    Example:
        >>> from kdlite.lite.output_report import compare
        >>> import numpy as np
        >>> y = np.tile([0, 1], 50)
        >>> right = np.eye(2)[y]
        >>> wrong = np.where(np.arange(100)[:, None] < 12, 1 - right, right)
        >>> caution(compare("y", wrong, right, target=y))
        "output 'y' loses 24% of ...: top-1 0.8800, where Keras has 1.0000"
    """
    if not _MUCH_LOST < output.lost_gain <= _MOST_LOST:
        return ""
    return f"output {_loss(output)}"


def _loss(output: OutputReport) -> str:
    share = f"{output.lost_gain:.0%}" if output.lost_gain < 1 else "all"
    return (
        f"{output.name!r} loses {share} of what the model is better by than one answer "
        f"for all samples: {output.metric} {output.file_metric:.4f}, where Keras has "
        f"{output.keras_metric:.4f}"
    )


def _one_alone(output: OutputReport) -> bool:
    """Whether a single value is off by more than a step, and by no more than two.

    Of 16 values one is 6 %: where one in two hundred is off, as behind a loop in float,
    every twelfth such file would be refused by chance.
    """
    values = sum(output.histogram)
    off = round((1 - output.within_one_step) * values)
    return off <= 1 and (output.largest_steps or 0.0) <= 2 + STEP_TOLERANCE
