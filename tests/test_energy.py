"""What the machine spends: counters and batteries as Linux writes them, and what their readings amount to."""

from __future__ import annotations

import sys
import threading
from itertools import count
from pathlib import Path

import pytest

from slm_local.metrics import MIN_BATTERY_S, MIN_STORED_S, EnergyMeter, energy_of
from slm_local.system import EnergyCounter, EnergyReading, energy, read_energy

LINUX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="names of files with a colon")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Write zones as Intel's driver does: two packages with parts, the platform, and a package once more by MMIO."""
    root = tmp_path / "powercap"
    write(root / "intel-rapl", enabled=1)
    write(root / "intel-rapl:0", name="package-0", energy_uj=5_000_000, max_energy_range_uj=262_143_328_850)
    write(root / "intel-rapl:0:0", name="core", energy_uj=3_000_000, max_energy_range_uj=262_143_328_850)
    write(root / "intel-rapl:0:2", name="dram", energy_uj=900_000, max_energy_range_uj=262_143_328_850)
    write(root / "intel-rapl:1", name="psys", energy_uj=9_000_000, max_energy_range_uj=262_143_328_850)
    write(root / "intel-rapl:2", name="package-1", energy_uj=7_000_000, max_energy_range_uj=65_532_610_987)
    write(root / "intel-rapl-mmio:0", name="package-0", energy_uj=5_000_000, max_energy_range_uj=262_143_328_850)
    return root


def battery(root: Path, name: str = "BAT0", **values: object) -> Path:
    write(root / name, type="Battery", status="Discharging", **values)
    return root


@LINUX_ONLY
def test_packages_are_read_and_neither_their_parts_nor_the_platform(powercap: Path, tmp_path: Path) -> None:
    reading = energy._linux_reading(powercap, tmp_path / "none")
    assert [(each.name, each.microjoules) for each in reading.counters] == [
        ("package-0", 5_000_000),
        ("package-1", 7_000_000),
    ]
    assert reading.counters[1].range_microjoules == 65_532_610_987
    assert not reading.reason


@LINUX_ONLY
def test_counters_for_root_only_are_absent_and_the_reason_says_so(
    powercap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, *args: object, **kwargs: object) -> str:
        if file.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(file))
        return file.read_bytes().decode()

    monkeypatch.setattr(Path, "read_text", refuse)
    reading = energy._linux_reading(powercap, tmp_path / "none")
    assert reading.counters == ()
    assert "root only" in reading.reason
    assert str(powercap) in reading.reason


@LINUX_ONLY
def test_one_package_that_cannot_be_read_makes_all_absent(powercap: Path, tmp_path: Path) -> None:
    (powercap / "intel-rapl:2" / "energy_uj").write_text("")
    assert energy._linux_reading(powercap, tmp_path / "none").counters == ()


def test_without_counters_the_battery_tells(tmp_path: Path) -> None:
    supplies = battery(tmp_path, power_now=12_500_000, energy_now=40_000_000)
    reading = energy._linux_reading(tmp_path / "none", supplies)
    assert reading.battery_w == pytest.approx(12.5)
    assert reading.stored_j == pytest.approx(40 * 3600)


def test_current_and_voltage_make_power_whatever_the_sign(tmp_path: Path) -> None:
    supplies = battery(tmp_path, current_now=-1_000_000, voltage_now=11_400_000)
    reading = energy._linux_reading(tmp_path / "none", supplies)
    assert reading.battery_w == pytest.approx(11.4)
    assert reading.stored_j is None


def test_two_batteries_add_up_and_one_that_is_silent_makes_power_absent(tmp_path: Path) -> None:
    battery(tmp_path / "both", power_now=5_000_000)
    battery(tmp_path / "both", "BAT1", power_now=6_000_000)
    assert energy._linux_reading(tmp_path, tmp_path / "both").battery_w == pytest.approx(11.0)
    battery(tmp_path / "one", power_now=5_000_000)
    battery(tmp_path / "one", "BAT1")
    assert energy._linux_reading(tmp_path, tmp_path / "one").battery_w is None


def test_a_mouse_is_no_battery_and_on_mains_nothing_is_read(tmp_path: Path) -> None:
    write(tmp_path / "mouse" / "hidpp", type="Battery", status="Discharging", scope="Device", power_now=1)
    assert energy._linux_reading(tmp_path, tmp_path / "mouse").reason
    supplies = battery(tmp_path / "mains", power_now=5_000_000)
    write(supplies / "AC", type="Mains", online=1)
    reading = energy._linux_reading(tmp_path, supplies)
    assert (reading.battery_w, reading.stored_j) == (None, None)
    assert "not on battery" in reading.reason


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_say_why_they_tell_nothing(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    reading = read_energy()
    assert reading.reason
    assert reading.counters == ()


def test_this_machine_is_read_or_says_why_not() -> None:
    reading = read_energy()
    has_something = bool(reading.counters) or reading.battery_w is not None or reading.stored_j is not None
    assert has_something != bool(reading.reason)


def counters(*microjoules: int, whole: int = 1_000_000) -> EnergyReading:
    return EnergyReading(
        counters=tuple(
            EnergyCounter(name=f"package-{number}", microjoules=value, range_microjoules=whole)
            for number, value in enumerate(microjoules)
        )
    )


def test_what_packages_counted_adds_up() -> None:
    spent = energy_of([(0.0, counters(100_000, 200_000)), (1.0, counters(400_000, 300_000))])
    assert spent.joules == pytest.approx(0.4)


def test_a_counter_that_starts_anew_is_carried_on() -> None:
    readings = [counters(900_000), counters(200_000), counters(100_000)]
    assert energy_of(list(enumerate(readings))).joules == pytest.approx(0.3 + 0.9)


def test_a_counter_without_a_range_that_starts_anew_makes_the_energy_absent() -> None:
    spent = energy_of([(0.0, counters(900_000, whole=0)), (1.0, counters(100_000, whole=0))])
    assert spent.joules is None
    assert spent.reason


def test_a_batterys_power_is_added_up_over_time() -> None:
    samples = [(0.0, EnergyReading(battery_w=10.0)), (10.0, EnergyReading(battery_w=20.0))]
    assert energy_of([*samples, (20.0, EnergyReading(battery_w=20.0))]).joules == pytest.approx(150 + 200)


def test_a_reply_too_short_for_the_gauge_has_no_energy() -> None:
    for reading, least_s in (
        (EnergyReading(battery_w=9.0), MIN_BATTERY_S),
        (EnergyReading(stored_j=9.0), MIN_STORED_S),
    ):
        short = energy_of([(0.0, reading), (least_s - 1, reading)])
        assert (short.joules, "too short" in short.reason) == (None, True)
        assert energy_of([(0.0, reading), (least_s, reading)]).joules is not None


def test_what_left_the_battery_is_taken_where_it_tells_no_power() -> None:
    samples = [(0.0, EnergyReading(stored_j=5000.0)), (MIN_STORED_S, EnergyReading(stored_j=4100.0))]
    assert energy_of(samples).joules == pytest.approx(900.0)


def test_a_charger_plugged_in_meanwhile_makes_the_energy_absent() -> None:
    mains = EnergyReading(reason="not on battery")
    assert energy_of([(0.0, EnergyReading(battery_w=9.0)), (60.0, mains)]).joules is None
    assert energy_of([(0.0, EnergyReading(battery_w=9.0)), (60.0, counters(5))]).joules is None


def test_the_meter_reads_from_start_to_stop_and_between() -> None:
    steps = count(0, 100_000)
    was_read = threading.Semaphore(0)

    def read() -> EnergyReading:
        was_read.release()
        return counters(next(steps), whole=10**9)

    meter = EnergyMeter(read=read, sample_s=0.001)
    meter.start()
    for _ in range(5):
        assert was_read.acquire(timeout=60)
    spent = meter.stop()
    assert spent.joules is not None
    assert spent.joules >= 0.4


def test_a_meter_with_nothing_to_read_starts_no_thread() -> None:
    before = set(threading.enumerate())
    meter = EnergyMeter(read=lambda: EnergyReading(reason="nothing here"))
    meter.start()
    assert set(threading.enumerate()) <= before
    assert (meter.stop().joules, meter.stop().reason) == (None, "nothing here")
