"""What the machine is found to be, what the runtimes say of it, and what is done with a measurement."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from slm_local import hardware, system
from slm_local.hardware import KERNEL_FLAGS, Hardware, listing, measured_probe, probe, runtimes, with_devices
from slm_local.measured import NotMeasured, remember
from slm_local.paths import paths
from slm_local.system import Accelerator
from tests.fake_runtimes import CPU, FakeRuntimes, fake_runtimes

__all__ = ["fake_runtimes"]

pytestmark = pytest.mark.first_run

BOTH = {"llamacpp": {"devices": [CPU]}, "openvino": {"devices": [CPU]}}

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def test_the_probe_tells_what_the_system_tells() -> None:
    found = probe()
    assert found.os == sys.platform
    assert found.cpu_name
    assert 1 <= found.physical_cores <= found.logical_cores
    assert 0 < found.free_ram_bytes <= found.total_ram_bytes
    assert [(device.name, device.kind) for device in found.devices] == [("cpu", "cpu")]
    assert found.read_gb_s is None


def test_the_probe_imports_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {"llama_cpp", "openvino", "openvino_genai"}
    for name in [name for name in sys.modules if name.split(".")[0] in engines]:
        monkeypatch.delitem(sys.modules, name)
    assert probe().engines == {"llamacpp", "openvino"}
    assert not engines & set(sys.modules)


def test_an_engine_that_is_not_installed_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.hardware.ENGINE_PACKAGES", {"llamacpp": "no_such_package"})
    assert probe().engines == frozenset()


def test_the_plain_probe_starts_no_child(fake_runtimes: FakeRuntimes) -> None:
    fake_runtimes.answer(BOTH)
    found = probe()
    assert (found.listings, found.problems, fake_runtimes.asked) == ((), (), [])


def test_only_flags_that_kernels_differ_by_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset({"fpu", "avx2", "avx512_vnni"}))
    assert probe().instruction_sets == ("avx2", "avx512_vnni")
    monkeypatch.setattr(system, "cpu_flags", lambda: None)
    assert probe().instruction_sets is None
    assert len(set(KERNEL_FLAGS)) == len(KERNEL_FLAGS)


def test_what_was_measured_is_part_of_the_machine() -> None:
    remember(paths().cache, read_gb_s=50.0, engine_gb_s=("llamacpp", 40.0), download_bytes_s=2e6)
    found = probe()
    assert (found.read_gb_s, found.engine_shares, found.download_bytes_s) == (50.0, {"llamacpp": 0.8}, 2e6)


def test_the_bandwidth_is_measured_once_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "measure_read_gb_s", lambda cores, free_bytes: 46.6)
    said: list[str] = []
    assert measured_probe(said.append).read_gb_s == 46.6
    assert measured_probe(said.append).read_gb_s == 46.6
    assert said == ["measured: this machine's memory is read at 47 GB/s"]
    assert probe().read_gb_s == 46.6


def test_the_plain_probe_measures_nothing(slm_home: Path) -> None:
    probe()
    assert list(slm_home.iterdir()) == []


def test_what_can_not_be_measured_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cores: int, free_bytes: int) -> float:
        raise NotMeasured("numpy is not installed")

    monkeypatch.setattr(hardware, "measure_read_gb_s", fail)
    said: list[str] = []
    for _ in range(2):
        assert measured_probe(said.append).read_gb_s is None
    assert said == ["memory bandwidth is not measured: numpy is not installed"] * 2


def test_a_home_that_is_no_folder_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(hardware, "measure_read_gb_s", lambda cores, free_bytes: 46.6)
    assert probe().read_gb_s is None
    assert measured_probe().read_gb_s == 46.6


# ---- the runtimes' devices


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """Return a machine with both engines and no cards, whatever this one has."""
    monkeypatch.setattr(system, "accelerators", tuple)
    return replace(probe(), os="linux", vendor="amd", instruction_sets=("avx", "avx2", "fma"))


def test_the_runtimes_of_this_machine_list_its_processor() -> None:
    found = with_devices(probe())
    assert found.engines == {"llamacpp", "openvino"}
    assert [[device.kind for device in each.devices][:1] for each in found.listings] == [["cpu"], ["cpu"]]
    assert [each.failure for each in found.listings] == [None, None]
    assert [device.engine for device in found.devices if device.kind == "cpu"] == [None]
    assert "OPENMP" in found.listings[0].built_for


def test_devices_are_called_as_flags_name_them(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    igpu = {"kind": "gpu", "description": "Arc", "integrated": True, "memory_bytes": 2**34, "capabilities": ["FP16"]}
    card = {"kind": "gpu", "description": "B580", "integrated": False, "memory_bytes": 12 * 2**30}
    npu = {"kind": "npu", "description": "AI Boost", "integrated": True, "driver": "1016"}
    cuda = {"kind": "gpu", "description": "RTX", "integrated": False, "memory_bytes": 2**33, "architecture": "CUDA"}
    fake_runtimes.answer({"openvino": {"devices": [CPU, igpu, card, npu]}, "llamacpp": {"devices": [cuda, CPU]}})
    found = with_devices(plain)
    named = [(each.engine, each.name, each.integrated, each.free_bytes) for each in found.devices]
    assert named == [
        (None, "cpu", None, None),
        ("llamacpp", "gpu", False, 2**33),
        ("openvino", "gpu", True, None),
        ("openvino", "gpu.1", False, 12 * 2**30),
        ("openvino", "npu", True, None),
    ]
    assert (found.devices[1].architecture, found.devices[2].capabilities, found.devices[4].driver) == (
        "CUDA",
        ("FP16",),
        "1016",
    )


def test_what_the_runtimes_said_is_kept(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer(BOTH)
    first = with_devices(plain)
    assert with_devices(plain) == first
    assert sorted(each.split()[0] for each in fake_runtimes.asked) == ["llamacpp", "openvino"]
    with_devices(plain, fresh=True)
    assert len(fake_runtimes.asked) == 4


def test_children_are_given_no_secrets(
    fake_runtimes: FakeRuntimes, plain: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    fake_runtimes.answer(BOTH)
    with_devices(plain)
    assert len(fake_runtimes.asked) == 2
    assert not any("secret" in each for each in fake_runtimes.asked)
    assert "hf_planted" not in (paths().cache / runtimes.FILE).read_text()


Change = Callable[[pytest.MonkeyPatch], None]

GPU = Accelerator(kind="gpu", vendor="amd", device_id="0x1", driver="amdgpu", access="open")


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(runtimes, "engine_version", lambda engine: "99.0"),
        lambda patch: patch.setattr(system, "driver_marks", lambda: ("another kernel",)),
        lambda patch: patch.setattr(system, "accelerators", lambda: (GPU,)),
        lambda patch: patch.setenv("CUDA_VISIBLE_DEVICES", "1"),
    ],
    ids=["version", "kernel or driver", "a device", "a variable"],
)
def test_the_runtimes_are_asked_again_when_something_changed(
    change: Change, fake_runtimes: FakeRuntimes, plain: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtimes.answer(BOTH)
    with_devices(plain)
    change(monkeypatch)
    with_devices(plain)
    assert len(fake_runtimes.asked) == 4


def test_an_engine_that_came_or_another_machine_is_asked_anew(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer(BOTH)
    with_devices(replace(plain, engines=frozenset({"openvino"})))
    with_devices(plain)
    assert len(fake_runtimes.asked) == 3
    with_devices(replace(plain, cpu_name="Another"))
    assert len(fake_runtimes.asked) == 5


def damaged(text: str) -> list[str]:
    """Return a kept file's text damaged in several ways."""
    record = json.loads(text)
    devices: list[Any] = [1, [1], [{}], [{"kind": 1}], [{"kind": "tpu", "description": "x"}]]
    wrong: list[Any] = [{}, [], {"openvino": 1}]
    wrong += [{"openvino": {"devices": each}} for each in devices]
    kinds = [json.dumps({**record, "listings": each}) for each in wrong]
    return ["", "{", "[]", "null", text[: len(text) // 2], "[" * 100_000, *kinds]


def test_a_damaged_file_is_as_none(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    plain = replace(plain, engines=frozenset({"openvino"}))
    fake_runtimes.answer(BOTH)
    first = with_devices(plain)
    file = paths().cache / runtimes.FILE
    good = file.read_text()
    for count, text in enumerate(damaged(good), 2):
        file.write_text(text)
        assert with_devices(plain) == first
        assert len(fake_runtimes.asked) == count
        assert file.read_text() == good


def test_a_folder_that_can_not_be_written_is_no_error(
    fake_runtimes: FakeRuntimes, plain: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "file"))
    fake_runtimes.answer(BOTH)
    assert with_devices(plain).engines == {"llamacpp", "openvino"}


# ---- runtimes that break


@POSIX
def test_a_runtime_that_needs_another_processor_is_a_line(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer({**BOTH, "llamacpp": "SIGILL"})
    found = with_devices(plain)
    assert found.engines == {"openvino"}
    (said,) = [each for each in found.listings if each.engine == "llamacpp"]
    assert (said.devices, said.is_illegal_instruction) == ((), True)
    assert "SIGILL" in (said.failure or "")
    assert [each.what for each in found.problems] == [
        "this build of llama.cpp needs an instruction set that this processor lacks: it died of one"
    ]


def test_a_build_for_another_processor_does_not_run_though_it_loads(
    fake_runtimes: FakeRuntimes, plain: Hardware
) -> None:
    fake_runtimes.answer({**BOTH, "llamacpp": {"devices": [CPU], "built_for": ["AVX2", "AVX512", "AVX512_VNNI"]}})
    found = with_devices(plain)
    assert found.engines == {"openvino"}
    (problem,) = found.problems
    assert "needs AVX512 and AVX512_VNNI that this processor lacks" in problem.what
    assert "--no-binary" in (problem.mend_line or "")
    elsewhere = with_devices(replace(plain, os="win32"))
    assert "needs AVX512 that" in elsewhere.problems[0].what
    assert with_devices(replace(plain, instruction_sets=None)).engines == {"llamacpp", "openvino"}


@POSIX
def test_openvino_that_breaks_on_one_kind_of_device_has_the_others(
    fake_runtimes: FakeRuntimes, plain: Hardware
) -> None:
    gpu = {"kind": "gpu", "description": "Arc"}
    fake_runtimes.answer(
        {
            **BOTH,
            "openvino": "SIGSEGV",
            "openvino CPU": {"devices": [CPU], "libraries": ["opencl"]},
            "openvino GPU": {"devices": [gpu]},
            "openvino NPU": "SIGSEGV",
        }
    )
    found = with_devices(plain)
    assert found.engines == {"llamacpp", "openvino"}
    assert [each.name for each in found.devices] == ["cpu", "gpu"]
    (said,) = [each for each in found.listings if each.engine == "openvino"]
    assert (list(said.broken_kinds), list(said.libraries)) == (["npu"], ["opencl"])
    assert len(fake_runtimes.asked) == 5
    assert with_devices(plain) == found
    assert len(fake_runtimes.asked) == 5


@POSIX
def test_openvino_that_breaks_on_its_processor_too_does_not_run(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer({**BOTH, "openvino": "SIGSEGV", "openvino CPU": "SIGABRT"})
    found = with_devices(plain)
    assert found.engines == {"llamacpp"}
    assert found.problems[0].what.startswith("OpenVINO does not run here: killed by signal SIGSEGV")
    assert "--force-reinstall" in (found.problems[0].mend_line or "")


def test_a_runtime_that_hangs_is_killed_and_told(
    fake_runtimes: FakeRuntimes, plain: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "LIMIT_S", 0.4)
    fake_runtimes.answer({"llamacpp": "hang"})
    found = with_devices(replace(plain, engines=frozenset({"llamacpp"})))
    assert found.engines == frozenset()
    assert "llama.cpp does not run here: it did not answer within 0.4 s" in [each.what for each in found.problems]


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        "",
        "[]",
        '{"devices": 7}',
        {"devices": [{"kind": "cpu"}]},
        {"devices": [{**CPU, "memory_bytes": "x"}]},
    ],
)
def test_an_answer_that_is_none_is_told(answer: Any, fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer({**BOTH, "llamacpp": answer})
    found = with_devices(plain)
    assert found.engines == {"openvino"}
    assert "llama.cpp does not run here: its answer is not what it should be" in found.problems[0].what


def test_an_answer_without_end_is_told(
    fake_runtimes: FakeRuntimes, plain: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "MOST_BYTES", 1000)
    fake_runtimes.answer({**BOTH, "llamacpp": "x" * 1001})
    assert "not what it should be" in with_devices(plain).problems[0].what


def test_a_child_that_can_not_be_started_is_told(plain: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    found = with_devices(plain)
    assert found.engines == frozenset()
    assert all("no process could be started" in (each.failure or "") for each in found.listings)


def test_a_failure_is_kept_for_a_while_only(fake_runtimes: FakeRuntimes, plain: Hardware) -> None:
    fake_runtimes.answer({**BOTH, "llamacpp": "no JSON"})
    with_devices(plain)
    with_devices(plain)
    assert len(fake_runtimes.asked) == 2
    file = paths().cache / runtimes.FILE
    long_ago = file.stat().st_mtime - runtimes.FAILURE_KEPT_S - 1
    os.utime(file, (long_ago, long_ago))
    with_devices(plain)
    assert len(fake_runtimes.asked) == 4


# ---- the child


class FakeCore:
    """An OpenVINO with an integrated GPU, a card, an NPU and a device that is none."""

    available_devices = ("CPU", "GPU.0", "GPU.1", "NPU", "TEMPLATE")
    facts = {  # noqa: RUF012
        ("CPU", "FULL_DEVICE_NAME"): "Core Ultra 7 155H",
        ("CPU", "OPTIMIZATION_CAPABILITIES"): ["FP32", "INT8"],
        ("GPU.0", "FULL_DEVICE_NAME"): "Arc Graphics (iGPU)",
        ("GPU.0", "DEVICE_TYPE"): "Type.INTEGRATED",
        ("GPU.0", "GPU_DEVICE_TOTAL_MEM_SIZE"): 2**34,
        ("GPU.1", "DEVICE_TYPE"): "Type.DISCRETE",
        ("NPU", "FULL_DEVICE_NAME"): "AI Boost",
        ("NPU", "DEVICE_TYPE"): "Type.INTEGRATED",
        ("NPU", "NPU_DRIVER_VERSION"): 1016,
        ("NPU", "DEVICE_ARCHITECTURE"): "3720",
    }

    def get_property(self, device: str, key: str) -> Any:
        if (device, key) not in self.facts:
            raise RuntimeError(f"{device} has no {key}")
        return self.facts[device, key]


@pytest.fixture
def fake_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("openvino")
    module.Core = FakeCore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openvino", module)
    monkeypatch.setitem(sys.modules, "openvino_genai", ModuleType("openvino_genai"))


def test_openvino_is_asked_for_what_its_devices_have(fake_openvino: None) -> None:
    said = runtimes._listing("openvino", listing.openvino_devices(None))
    assert [(each.name, each.description, each.integrated, each.free_bytes) for each in said.devices] == [
        ("cpu", "Core Ultra 7 155H", None, None),
        ("gpu", "Arc Graphics (iGPU)", True, None),
        ("gpu.1", "GPU.1", False, None),
        ("npu", "AI Boost", True, None),
    ]
    assert (said.devices[0].capabilities, said.devices[1].memory_bytes) == (("FP32", "INT8"), 2**34)
    assert (said.devices[3].driver, said.devices[3].architecture) == ("1016", "3720")


def test_openvino_is_asked_for_one_device_that_may_not_be_there(fake_openvino: None) -> None:
    assert [each["kind"] for each in listing.openvino_devices("CPU")["devices"]] == ["cpu"]
    assert listing.openvino_devices("GPU")["devices"] == []


def fake_llamacpp(devices: list[tuple[int, bytes, int]], registry: bytes) -> Any:
    """Return llama.cpp's bindings with devices of a type, a description and a memory."""

    def memory(device: int, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 1, devices[device - 1][2]

    library = SimpleNamespace(
        ggml_backend_dev_count=lambda: len(devices),
        ggml_backend_dev_get=lambda index: index + 1,
        ggml_backend_dev_type=lambda device: devices[device - 1][0],
        ggml_backend_dev_description=lambda device: devices[device - 1][1],
        ggml_backend_dev_backend_reg=lambda device: device,
        ggml_backend_reg_name=lambda device: registry,
        ggml_backend_dev_memory=memory,
    )
    return SimpleNamespace(
        _lib=library,
        llama_backend_init=lambda: None,
        llama_print_system_info=lambda: b"CUDA : ARCHS = 890 | CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | ",
    )


def test_llamacpp_is_asked_for_its_devices_and_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [(1, b"RTX 4060", 2**33), (2, b"Iris", 2**34), (3, b"BLAS", 0), (0, b"Ryzen", 0)]
    monkeypatch.setattr(listing, "_bindings", lambda: fake_llamacpp(devices, b"CUDA"))
    said = runtimes._listing("llamacpp", listing.llamacpp_devices(None))
    assert [(each.name, each.description, each.integrated, each.memory_bytes) for each in said.devices] == [
        ("gpu", "RTX 4060", False, 2**33),
        ("gpu.1", "Iris", True, 2**34),
        ("cpu", "Ryzen", None, None),
    ]
    assert said.built_for == ("ARCHS", "SSE3", "AVX2")


def test_the_gpu_of_apple_silicon_shares_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_bindings", lambda: fake_llamacpp([(1, b"Apple M3", 2**34)], b"MTL"))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    (gpu,) = runtimes._listing("llamacpp", listing.llamacpp_devices(None)).devices
    assert (gpu.integrated, gpu.free_bytes) == (True, None)


def test_a_build_without_a_list_of_devices_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(_lib=ctypes.CDLL(None) if sys.platform != "win32" else object())
    bare.llama_backend_init, bare.llama_print_system_info = (lambda: None), (lambda: b"")
    monkeypatch.setattr(listing, "_bindings", lambda: bare)
    with pytest.raises(OSError, match="no ggml_backend_dev_count"):
        listing.llamacpp_devices(None)
