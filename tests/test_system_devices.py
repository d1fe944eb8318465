"""Cards, NPUs, power and instruction sets as the systems tell of them, read from what each would write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from slm_local import system
from slm_local.system import devices, processor

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="links and device files as Linux has them")


def pci(root: Path, slot: str, number: str, vendor: str, device: str, driver: str = "", node: str = "") -> None:
    """Write what Linux says of a PCI device below /sys/bus/pci/devices."""
    folder = root / "pci" / slot
    folder.mkdir(parents=True)
    for name, value in (("class", number), ("vendor", vendor), ("device", device)):
        (folder / name).write_text(value + "\n")
    if driver:
        (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(root / "drivers" / driver)
    if node:
        (folder / node).mkdir(parents=True)


def device_file(root: Path, name: str) -> Path:
    file = root / "dev" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


@LINUX_ONLY
def test_cards_and_npus_are_found_on_the_bus_and_nothing_else(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:02.0", "0x030000", "0x8086", "0x7d55", "xe", "drm/renderD128")
    pci(tmp_path, "0000:00:0b.0", "0x120000", "0x8086", "0x7d1d", "intel_vpu", "accel/accel0")
    pci(tmp_path, "0000:00:1f.3", "0x040100", "0x8086", "0x7e28", "snd_hda_intel")
    pci(tmp_path, "0000:01:00.0", "0x030200", "0x10de", "0x28e0")
    pci(tmp_path, "0000:02:00.0", "0x030000", "0x1a03", "0x2000", "ast")
    node = device_file(tmp_path, "dri/renderD128")

    gpu, npu, nvidia, other = devices._linux_accelerators(tmp_path / "pci", tmp_path / "dev")
    assert (gpu.kind, gpu.vendor, gpu.device_id, gpu.driver) == ("gpu", "intel", "0x7d55", "xe")
    assert (gpu.node, gpu.access) == (str(node), "open")
    assert gpu.group
    assert (npu.kind, npu.driver, npu.access) == ("npu", "intel_vpu", "absent")
    assert (nvidia.vendor, nvidia.driver, nvidia.node, nvidia.access) == ("nvidia", None, None, None)
    assert other.vendor == "0x1a03"


@LINUX_ONLY
def test_a_device_that_may_not_be_opened_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci(tmp_path, "0000:00:02.0", "0x030000", "0x8086", "0x7d55", "xe", "drm/renderD128")
    device_file(tmp_path, "dri/renderD128")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (gpu,) = devices._linux_accelerators(tmp_path / "pci", tmp_path / "dev")
    assert gpu.access == "denied"


def test_a_machine_without_pci_has_no_cards(tmp_path: Path) -> None:
    assert list(devices._linux_accelerators(tmp_path, tmp_path)) == []


def supplies(root: Path, **of: dict[str, str]) -> Path:
    for name, values in of.items():
        (root / name).mkdir()
        for key, value in values.items():
            (root / name / key).write_text(value + "\n")
    return root


@pytest.mark.parametrize(
    ("of", "source"),
    [
        ({}, None),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": {"type": "Battery", "status": "Charging"}}, "mains"),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "status": "Discharging"}}, "battery"),
        ({"BAT0": {"type": "Battery", "status": "Full"}}, "mains"),
        ({"UCSI": {"type": "USB", "online": "1"}, "BAT0": {"type": "Battery", "status": "Discharging"}}, "mains"),
        ({"mouse": {"type": "Battery", "status": "Discharging", "scope": "Device"}}, None),
    ],
)
def test_the_source_of_power_is_read_off_the_supplies(
    of: dict[str, dict[str, str]], source: str | None, tmp_path: Path
) -> None:
    assert devices.linux_power(supplies(tmp_path, **of)) == source


def record(efficiency_class: int, size: int) -> bytes:
    """Return a core as Windows tells of it."""
    head = (0).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes([1, efficiency_class])
    return head + bytes(size - len(head))


def test_cores_of_windows_are_counted_by_their_class() -> None:
    hybrid = b"".join([*(record(2, 48) for _ in range(6)), *(record(1, 64) for _ in range(8)), record(0, 48)])
    assert processor._core_classes(hybrid) == (6, 9)
    assert processor._core_classes(record(0, 48) * 4) == (4, 0)
    assert processor._core_classes(b"") == (0, 0)
    assert processor._core_classes(bytes(100)) == (0, 0)


def test_flags_of_macos_are_called_as_linux_calls_them() -> None:
    listed = "hw.optional.floatingpoint: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert processor._macos_flags(listed + "hw.optional.AdvSIMD: 1") == frozenset({"asimd", "asimddp"})
    assert processor._macos_flags("") is None


def test_kinds_of_windows_devices_are_read_off_their_compatible_names() -> None:
    assert devices._windows_kind(["PCI\\VEN_8086&CC_030000", "PCI\\CC_0300"]) == "gpu"
    assert devices._windows_kind(["PCI\\VEN_8086&CC_120000"]) == "npu"
    assert devices._windows_kind(["PCI\\CC_0401"]) is None
    assert devices._windows_kind(None) is None


def test_children_get_no_secrets() -> None:
    given = {"PATH": "/bin", "HF_TOKEN": "hf_x", "OPENAI_API_KEY": "k", "db_password": "p", "KEYBOARD": "de"}
    assert system.without_secrets(given) == {"PATH": "/bin", "KEYBOARD": "de"}


def test_death_by_an_illegal_instruction_is_known_on_every_system() -> None:
    assert all(map(system.met_illegal_instruction, (-4, 0xC000001D)))
    assert not any(map(system.met_illegal_instruction, (0, 4, -9, -11, 0xC0000005, None)))


def test_this_machine_can_be_asked_all_of_it() -> None:
    assert system.cpu_vendor() == system.cpu_vendor().lower()
    assert system.efficiency_cores() >= 0
    assert system.power_source() in ("mains", "battery", None)
    assert all(each.kind in ("gpu", "npu") for each in system.accelerators())
    assert system.driver_marks() == system.driver_marks()
    assert system.driver_marks()[0]
    assert all(system.distributions())
    assert isinstance(system.opencl_drivers(), tuple)
