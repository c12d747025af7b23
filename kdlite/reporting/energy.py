"""Time, energy and CO2 of some work: CodeCarbon's estimate, offline.

An estimate is what it is: where the processor has no energy counter that can be read,
CodeCarbon takes its rated power times its load. Each figure carries its assumptions.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_EVERY_S = 1.0  # seconds between two looks at the power


@dataclass(frozen=True)
class EnergyUse:
    """What some work took.

    Attributes:
        seconds: Wall time.
        kwh: Energy, an estimate; None where it was not measured.
        co2_kg: CO2 equivalents of it, an estimate.
        assumptions: What the estimates rest on, a sentence each.
    """

    seconds: float
    kwh: float | None = None
    co2_kg: float | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def watts(self) -> float | None:
        """The mean power, or None where it is not known."""
        if self.kwh is None or not self.seconds:
            return None
        return 3.6e6 * self.kwh / self.seconds

    def times(self, factor: float) -> EnergyUse:
        """Returns what so many times the work takes."""
        return EnergyUse(
            self.seconds * factor,
            None if self.kwh is None else self.kwh * factor,
            None if self.co2_kg is None else self.co2_kg * factor,
            self.assumptions,
        )

    def plus(self, other: EnergyUse) -> EnergyUse:
        """Returns what both take; energy is not known where that of one is not."""
        known = None not in (self.kwh, other.kwh)
        return EnergyUse(
            self.seconds + other.seconds,
            (self.kwh or 0) + (other.kwh or 0) if known else None,
            (self.co2_kg or 0) + (other.co2_kg or 0) if known else None,
            tuple(dict.fromkeys((*self.assumptions, *other.assumptions))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**asdict(self), "assumptions": list(self.assumptions)}

    def __str__(self) -> str:
        if self.kwh is None:
            return f"{self.seconds:,.1f} s, energy not measured"
        return (
            f"{self.seconds:,.1f} s, an estimated {self.kwh:.3g} kWh and "
            f"{self.co2_kg:.3g} kg CO2"
        )


class EnergyTracker:
    """Measures the work inside a `with`; see `track_energy`.

    Attributes:
        used: What it took, once it is over.
    """

    def __init__(self, country: str | None) -> None:
        self.used = EnergyUse(0.0)
        self._country = check_country(country)
        self._tracker: Any = None

    def __enter__(self) -> EnergyTracker:
        if self._country is not None:
            self._tracker = _tracker(self._country)
            self._tracker.start()
        # After the start, in which CodeCarbon looks for the hardware.
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._started
        self.used = EnergyUse(seconds)
        if self._tracker is not None:
            self._tracker.stop()
            data = getattr(self._tracker, "final_emissions_data", None)
            if data is None:  # CodeCarbon keeps its own errors to itself
                logger.warning("CodeCarbon gave no figures; energy is not measured")
                return
            self.used = EnergyUse(
                seconds,
                float(data.energy_consumed),
                float(data.emissions),
                _assumptions(data),
            )


def track_energy(country: str | None) -> EnergyTracker:
    """Measures time, energy and CO2 of the work inside a `with`.

    Nothing is sent and no file is written: CodeCarbon's offline tracker, for the
    processor, the memory and NVIDIA GPUs of this process.

    Args:
        country: Where the electricity comes from, three letters as in ISO 3166: "FRA".
            None: time alone is measured.

    Returns:
        A tracker; after the `with` its `used` has the figures, for
        `kdlite.report(training={"student": tracker.used})`.

    Raises:
        ValueError: If CodeCarbon does not know the country.
        ModuleNotFoundError: If CodeCarbon is not installed.

    Example:
        >>> with track_energy(None) as tracker:
        ...     _ = sum(range(1000))
        >>> tracker.used.kwh is None and tracker.used.seconds > 0
        True

    Reference:
        Courty et al., CodeCarbon, 2024, doi:10.5281/zenodo.11171501.
    """
    return EnergyTracker(country)


def check_country(country: str | None) -> str | None:
    """Raises as `track_energy` says, before any work; returns the country."""
    if country is None:
        return None
    if importlib.util.find_spec("codecarbon") is None:
        raise ModuleNotFoundError(
            "Energy is estimated by CodeCarbon, which is not installed. Received: "
            f'country={country!r}. Fix: pip install "kdlite[energy]", or leave '
            "`country` out."
        )
    from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        raise ValueError(
            "`country` must be three letters as in ISO 3166, of a country that "
            f"CodeCarbon knows. Received: country={country!r}. Fix: give for example "
            f"'FRA'; there are {len(known)}."
        )
    return country


def energy_of(
    work: Callable[[], object], country: str | None, seconds: float = 4.0
) -> tuple[EnergyUse, int]:
    """Repeats some work until it can be measured.

    Args:
        work: What to repeat.
        country: As `track_energy` takes it.
        seconds: For how long.

    Returns:
        What all of it took, and how often it was done.
    """
    count = 0
    with track_energy(country) as tracker:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            work()
            count += 1
    return tracker.used, count


def _tracker(country: str) -> Any:
    # Its own switch comes too late for its first lines.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    from codecarbon import OfflineEmissionsTracker

    return OfflineEmissionsTracker(
        country_iso_code=country,
        measure_power_secs=_EVERY_S,
        tracking_mode="process",
        output_methods=[],
        allow_multiple_runs=True,
        log_level="critical",
    )


def _assumptions(data: Any) -> tuple[str, ...]:
    hardware = [
        f"processor {data.cpu_model or 'unknown'}",
        f"{data.ram_total_size:.0f} GB of memory",
    ]
    if data.gpu_count:
        hardware.append(f"GPU {data.gpu_model}")
    told = [
        f"Estimated by CodeCarbon {data.codecarbon_version} for this process alone: "
        "from energy counters where the system lets them be read, else from rated "
        "power and load.",
        f"Hardware: {', '.join(hardware)}. No cooling and no network (PUE "
        f"{data.pue:g}).",
    ]
    if data.energy_consumed > 0:
        grams = 1000 * data.emissions / data.energy_consumed
        told.append(
            f"Electricity of {data.country_name}: {grams:.0f} g CO2 equivalents a kWh, "
            "a yearly mean."
        )
    return tuple(told)
