"""What the machine is found to be, and what is done with a measurement that is there or is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slm_local import system
from slm_local.hardware import KERNEL_FLAGS, measured_read_gb_s, probe


def test_the_probe_tells_what_the_system_tells() -> None:
    found = probe()
    assert found.os == sys.platform
    assert found.cpu_name
    assert 1 <= found.physical_cores <= found.logical_cores
    assert 0 < found.free_ram_bytes <= found.total_ram_bytes
    assert [(device.name, device.kind) for device in found.devices] == [("cpu", "cpu")]
    assert found.read_gb_s is None


def test_the_probe_imports_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    assert probe().engines == {"llamacpp"}
    assert "llama_cpp" not in sys.modules


def test_an_engine_that_is_not_installed_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.hardware.ENGINE_PACKAGES", {"llamacpp": "no_such_package"})
    assert probe().engines == frozenset()


def test_only_flags_that_kernels_differ_by_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset({"fpu", "avx2", "avx512_vnni"}))
    assert probe().instruction_sets == ("avx2", "avx512_vnni")
    monkeypatch.setattr(system, "cpu_flags", lambda: None)
    assert probe().instruction_sets is None
    assert len(set(KERNEL_FLAGS)) == len(KERNEL_FLAGS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"read_gb_s": 46.6}', 46.6),
        ('{"read_gb_s": 0}', None),
        ('{"read_gb_s": 1e9}', None),
        ('{"read_gb_s": "fast"}', None),
        ('{"read_gb_s": NaN}', None),
        ("[]", None),
        ("{}", None),
        ("{", None),
    ],
)
def test_a_measurement_counts_when_it_can_be_read_and_believed(
    slm_home: Path, content: str, expected: float | None
) -> None:
    cache = slm_home / "cache"
    cache.mkdir()
    (cache / "bandwidth.json").write_text(content)
    assert measured_read_gb_s() == expected


def test_a_home_that_is_no_folder_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "file"))
    assert measured_read_gb_s() is None
