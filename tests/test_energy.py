from __future__ import annotations

import importlib.util
import time

import pytest

from kdlite.reporting import energy
from kdlite.reporting.energy import EnergyUse, check_country, energy_of, track_energy

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None,
    reason='CodeCarbon is not installed: pip install "kdlite[energy]"',
)


def test_time_alone_is_measured_without_a_country() -> None:
    with track_energy(None) as tracker:
        time.sleep(0.01)
    assert tracker.used.seconds >= 0.01
    assert tracker.used.kwh is None and tracker.used.assumptions == ()
    assert str(tracker.used).endswith("energy not measured")


@needs_codecarbon
def test_energy_is_an_estimate_that_says_what_it_rests_on(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    used, count = energy_of(lambda: sum(range(20_000)), "DEU", seconds=1.5)
    assert count > 10 and used.seconds >= 1.5
    assert 0 < used.kwh < 0.01 and 0 < used.co2_kg < used.kwh
    text = " ".join(used.assumptions)
    for words in ("Estimated by CodeCarbon", "Germany", "CO2 equivalents a kWh", "PUE"):
        assert words in text
    grams = 1000 * used.co2_kg / used.kwh
    assert f"{grams:.0f} g" in text
    assert list(tmp_path.iterdir()) == []  # no emissions.csv


@needs_codecarbon
def test_work_that_fails_is_measured_and_fails(monkeypatch) -> None:
    with pytest.raises(KeyError), track_energy("FRA") as tracker:
        raise KeyError
    assert tracker.used.kwh is not None


@needs_codecarbon
@pytest.mark.parametrize("country", ["XX", "Germany", "deu", ""])
def test_countries_that_are_none_are_named(country) -> None:
    with pytest.raises(
        ValueError, match=f"ISO 3166.*Received: country='{country}'.*FRA"
    ):
        check_country(country)


def test_without_codecarbon_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed.*kdlite\[energy\]"):
        check_country("DEU")


@needs_codecarbon
def test_a_tracker_without_figures_is_a_warning_and_no_number(
    monkeypatch, caplog
) -> None:
    class Silent:
        def start(self) -> None: ...
        def stop(self) -> None: ...

    monkeypatch.setattr(energy, "_tracker", lambda country: Silent())
    with track_energy("DEU") as tracker:
        pass
    assert tracker.used.kwh is None
    assert "CodeCarbon gave no figures" in caplog.text


def test_uses_are_scaled_and_added() -> None:
    use = EnergyUse(2.0, 0.5, 0.1, ("Estimated.",))
    assert use.times(2) == EnergyUse(4.0, 1.0, 0.2, ("Estimated.",))
    assert use.plus(use).kwh == 1.0
    assert use.plus(EnergyUse(1.0)) == EnergyUse(3.0, None, None, ("Estimated.",))
    assert EnergyUse(3600.0, 0.5).watts == 500.0 and EnergyUse(1.0).watts is None
    assert EnergyUse(2.0).times(3) == EnergyUse(6.0)
    assert "estimated 0.5 kWh" in str(use)
