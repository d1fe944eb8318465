"""`slm doctor` on machines of many kinds: what is there, what is wrong, and the line that mends it."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from slm_local import system
from slm_local.cli import diagnosis
from slm_local.hardware import Device, Hardware
from slm_local.installed import add_line
from slm_local.system import Accelerator
from tests.command import Result, slm
from tests.fake_runtimes import CPU, FakeRuntimes, fake_runtimes

__all__ = ["fake_runtimes", "slm"]

Slm = Callable[..., Result]

pytestmark = [
    pytest.mark.first_run,
    pytest.mark.skipif(sys.platform == "win32", reason="its children die by signals"),
]

IGPU = Accelerator(
    kind="gpu",
    vendor="intel",
    device_id="0x7d55",
    driver="xe",
    node="/dev/dri/renderD128",
    access="open",
    group="render",
)
NPU = replace(IGPU, kind="npu", device_id="0x7d1d", driver="intel_vpu", node="/dev/accel/accel0")
RTX = replace(IGPU, vendor="nvidia", device_id="0x28e0", driver="nvidia", node="/dev/dri/renderD129")

ARC = {"kind": "gpu", "description": "Intel(R) Arc(TM) Graphics (iGPU)", "integrated": True, "memory_bytes": 16 * 10**9}
BOOST = {"kind": "npu", "description": "Intel(R) AI Boost", "integrated": True, "driver": "1016"}
CUDA = {"kind": "gpu", "description": "RTX 4060", "integrated": False, "memory_bytes": 2**33, "architecture": "CUDA"}
METAL = {"kind": "gpu", "description": "Apple M3", "integrated": True, "memory_bytes": 2**34, "architecture": "MTL"}

ALL_LIBRARIES = ["opencl", "level_zero", "npu"]
INTEL_OPENCL = ("/usr/lib/x86_64-linux-gnu/intel-opencl/libigdrcl.so",)

HYBRID = Hardware(
    os="linux",
    cpu_name="Intel(R) Core(TM) Ultra 7 155H",
    vendor="intel",
    physical_cores=6,
    efficiency_cores=10,
    logical_cores=22,
    instruction_sets=("avx", "avx2", "fma", "f16c", "avx_vnni"),
    total_ram_bytes=32 * 10**9,
    free_ram_bytes=20 * 10**9,
    power="battery",
    devices=(Device(name="cpu", kind="cpu", description="Intel(R) Core(TM) Ultra 7 155H"),),
    engines=frozenset({"llamacpp", "openvino"}),
)
LUNAR = replace(HYBRID, cpu_name="Intel(R) Core(TM) Ultra 7 258V", physical_cores=4, efficiency_cores=4)
RYZEN = replace(HYBRID, cpu_name="AMD Ryzen 7 7840U", vendor="amd", efficiency_cores=0, power="mains")
OLD = replace(HYBRID, cpu_name="Intel(R) Core(TM) i5-3320M", instruction_sets=("avx", "f16c"), efficiency_cores=0)
M3 = replace(HYBRID, os="darwin", cpu_name="Apple M3", vendor="apple", instruction_sets=("asimd", "asimddp", "i8mm"))
WINDOWS = replace(HYBRID, os="win32", instruction_sets=("avx", "avx2"))


def openvino(*devices: dict[str, Any], libraries: list[str] | None = None) -> dict[str, Any]:
    return {"devices": [CPU, *devices], "libraries": ALL_LIBRARIES if libraries is None else libraries}


def llamacpp(*devices: dict[str, Any], built_for: tuple[str, ...] = ("AVX", "AVX2", "FMA")) -> dict[str, Any]:
    return {"devices": [*devices, CPU], "built_for": list(built_for)}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, and what is to be said of it."""

    hardware: Hardware = HYBRID
    cards: tuple[Accelerator, ...] = (IGPU, NPU)
    answers: dict[str, Any] = field(default_factory=lambda: {"openvino": openvino(ARC, BOOST), "llamacpp": llamacpp()})
    opencl: tuple[str, ...] = INTEL_OPENCL
    has_firmware: bool = True
    distributions: tuple[str, ...] = ("ubuntu", "debian")
    says: tuple[str, ...] = ()
    """A part of every problem, in order."""
    mends: tuple[str, ...] = ()
    """A part of every line that mends it."""
    code: int = 0


def without(answer: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"openvino": answer, "llamacpp": llamacpp(), **others}


DENIED = replace(IGPU, access="denied")
MACHINES: dict[str, Machine] = {
    "Meteor Lake with all drivers": Machine(),
    "Lunar Lake with all drivers": Machine(hardware=LUNAR),
    "Meteor Lake, not in the render group": Machine(
        cards=(DENIED, replace(NPU, access="denied")),
        answers=without(openvino()),
        says=(
            "the Intel GPU (0x7d55) and the Intel NPU (0x7d1d) are not used: you are not in the group render, which "
            "may open /dev/dri/renderD128 and /dev/accel/accel0",
        ),
        mends=("sudo usermod -aG render $USER",),
    ),
    "in the render group from the next login on": Machine(
        cards=(replace(DENIED, is_member=True),),
        answers=without(openvino()),
        says=("only from your next login on",),
        mends=("newgrp render",),
    ),
    "Lunar Lake without OpenCL": Machine(
        hardware=LUNAR,
        answers=without(openvino(BOOST, libraries=["level_zero", "npu"])),
        opencl=(),
        says=("the Intel GPU (0x7d55) is not used: Intel's OpenCL is not installed",),
        mends=("sudo apt install ocl-icd-libopencl1 intel-opencl-icd",),
    ),
    "another maker's OpenCL on Fedora": Machine(
        answers=without(openvino(BOOST)),
        opencl=("libnvidia-opencl.so.1",),
        distributions=("fedora",),
        says=("Intel's OpenCL is not installed",),
        mends=("sudo dnf install intel-compute-runtime",),
    ),
    "an OpenCL that is too old, on a Linux that nobody knows": Machine(
        answers=without(openvino(BOOST)),
        distributions=("plan9",),
        says=("does not know it",),
        mends=("xdg-open https://github.com/intel/compute-runtime/releases",),
    ),
    "openSUSE without OpenCL": Machine(
        answers=without(openvino(BOOST, libraries=[])),
        distributions=("opensuse-tumbleweed", "opensuse", "suse"),
        says=("Intel's OpenCL is not installed",),
        mends=("sudo zypper install intel-opencl",),
    ),
    "an Intel GPU without a kernel driver": Machine(
        cards=(replace(IGPU, driver=None, node=None, access=None),),
        answers=without(openvino()),
        says=("the kernel has no driver for it",),
        mends=("sudo modprobe -a i915 xe",),
    ),
    "a container without the GPU": Machine(
        cards=(replace(IGPU, access="absent", group=None),),
        answers=without(openvino()),
        says=("is not there, as in a container",),
        mends=("--device /dev/dri",),
    ),
    "NPU without its kernel driver": Machine(
        cards=(IGPU, replace(NPU, driver=None, node=None, access=None)),
        answers=without(openvino(ARC)),
        says=("the Intel NPU (0x7d1d) is not used: the kernel's driver intel_vpu",),
        mends=("sudo modprobe intel_vpu",),
    ),
    "NPU without firmware": Machine(
        cards=(IGPU, replace(NPU, driver=None, node=None, access=None)),
        answers=without(openvino(ARC)),
        has_firmware=False,
        says=("its firmware is missing",),
        mends=("sudo apt install --reinstall linux-firmware",),
    ),
    "NPU without Level Zero on Arch": Machine(
        answers=without(openvino(ARC, libraries=["opencl"])),
        distributions=("arch",),
        says=("the Intel NPU (0x7d1d) is not used: Level Zero is not installed",),
        mends=("sudo pacman -S level-zero-loader",),
    ),
    "NPU without its driver for programs": Machine(
        answers=without(openvino(ARC, libraries=["opencl", "level_zero"])),
        says=("its driver for programs is missing",),
        mends=("xdg-open https://github.com/intel/linux-npu-driver/releases",),
    ),
    "NPU whose driver kills OpenVINO": Machine(
        answers={
            "openvino": "SIGSEGV",
            "openvino CPU": openvino(),
            "openvino GPU": {"devices": [ARC]},
            "openvino NPU": "SIGSEGV",
            "llamacpp": llamacpp(),
        },
        says=("OpenVINO broke when it was asked for NPU, and goes without: killed by signal SIGSEGV",),
        mends=("xdg-open https://github.com/intel/linux-npu-driver/releases",),
    ),
    "a GPU that breaks OpenVINO, beside an NPU that may not be opened": Machine(
        cards=(IGPU, replace(NPU, access="denied")),
        answers={
            "openvino": "SIGABRT",
            "openvino CPU": openvino(),
            "openvino GPU": "SIGABRT",
            "openvino NPU": {"devices": []},
            "llamacpp": llamacpp(),
        },
        says=(
            "OpenVINO broke when it was asked for GPU, and goes without",
            "the Intel NPU (0x7d1d) is not used: you are",
        ),
        mends=("intel-opencl-icd", "sudo usermod -aG render $USER"),
    ),
    "Windows with an NPU that has no driver": Machine(
        hardware=WINDOWS,
        cards=(
            replace(IGPU, driver="32.0.101.5768", node=None, access=None, group=None),
            replace(NPU, driver=None, node=None, access=None, group=None),
        ),
        answers=without(openvino(ARC)),
        says=("the Intel NPU (0x7d1d) is not used: it has no driver",),
        mends=("start https://www.intel.com/",),
    ),
    "Windows with a GPU driver that is too old": Machine(
        hardware=WINDOWS,
        cards=(replace(IGPU, driver="27.20.100.8681", node=None, access=None, group=None),),
        answers=without(openvino()),
        says=("its driver 27.20.100.8681 does not serve OpenVINO",),
        mends=("start https://www.intel.com/",),
    ),
    "AMD, processor alone": Machine(
        hardware=RYZEN,
        cards=(replace(IGPU, vendor="amd", device_id="0x15bf", driver="amdgpu"),),
        answers=without(openvino()),
    ),
    "an old processor on which the build of llama.cpp dies": Machine(
        hardware=OLD,
        cards=(),
        answers={"openvino": openvino(), "llamacpp": "SIGILL"},
        says=("this build of llama.cpp needs an instruction set that this processor lacks", "has no AVX2"),
        mends=("--no-binary llama-cpp-python llama-cpp-python==", "slm ls --all"),
    ),
    "an old processor and a build that would die while computing": Machine(
        hardware=OLD,
        cards=(),
        answers=without(openvino()),
        says=("needs AVX2 and FMA that this processor lacks, and would die of them", "has no AVX2"),
        mends=("--no-binary llama-cpp-python llama-cpp-python==", "slm ls --all"),
    ),
    "an old processor and llama.cpp alone": Machine(
        hardware=replace(OLD, engines=frozenset({"llamacpp"})),
        cards=(),
        answers={"llamacpp": "SIGILL"},
        says=("OpenVINO is not installed", "this build of llama.cpp needs", "has no AVX2"),
        mends=("install slm-local", "--no-binary", "slm ls --all"),
        code=4,
    ),
    "Apple silicon": Machine(
        hardware=M3,
        cards=(),
        answers={"openvino": openvino(), "llamacpp": llamacpp(METAL, built_for=("NEON", "DOTPROD"))},
    ),
    "NVIDIA with a CUDA build of llama.cpp": Machine(
        hardware=RYZEN, cards=(RTX,), answers={"openvino": openvino(), "llamacpp": llamacpp(CUDA)}
    ),
    "NVIDIA with a build of llama.cpp for the processor alone": Machine(
        hardware=RYZEN,
        cards=(RTX,),
        answers=without(openvino()),
        says=("the NVIDIA GPU is not used: llama.cpp was built without CUDA",),
        mends=("CMAKE_ARGS=-DGGML_CUDA=on",),
    ),
    "no llama.cpp": Machine(
        hardware=replace(HYBRID, engines=frozenset({"openvino"})),
        answers={"openvino": openvino(ARC, BOOST)},
        says=("llama.cpp is not installed",),
        mends=("[llamacpp]",),
    ),
    "no OpenVINO": Machine(
        hardware=replace(HYBRID, engines=frozenset({"llamacpp"})),
        answers={"llamacpp": llamacpp()},
        says=("OpenVINO is not installed: Intel's GPUs and NPUs can't be used",),
        mends=("install slm-local",),
    ),
    "no engine at all": Machine(
        hardware=replace(HYBRID, engines=frozenset()),
        answers={},
        says=("llama.cpp is not installed", "OpenVINO is not installed"),
        mends=("[llamacpp]", "install slm-local"),
        code=4,
    ),
    "OpenVINO that does not load": Machine(
        answers={"openvino": {"failure": "ImportError: libtbb.so.12: cannot open"}, "llamacpp": llamacpp()},
        says=("OpenVINO does not run here: ImportError: libtbb.so.12",),
        mends=("--force-reinstall --no-deps --no-cache-dir openvino openvino-genai openvino-tokenizers",),
    ),
}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, fake_runtimes: FakeRuntimes) -> Callable[[Machine], None]:
    """Turn this machine into another at the seams of the system and of the runtimes' children."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", "/home/a/.venv")
    monkeypatch.setenv("VIRTUAL_ENV", "/home/a/.venv")
    monkeypatch.setattr("slm_local.installed._direct_url", dict)

    def become(machine: Machine) -> None:
        monkeypatch.setattr(diagnosis, "probe", lambda: machine.hardware)
        monkeypatch.setattr(system, "accelerators", lambda: machine.cards)
        monkeypatch.setattr(system, "opencl_drivers", lambda: machine.opencl)
        monkeypatch.setattr(system, "has_npu_firmware", lambda: machine.has_firmware)
        monkeypatch.setattr(system, "distributions", lambda: machine.distributions)
        fake_runtimes.answer(machine.answers)

    return become


On = Callable[[Machine], None]


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_problem_is_told_with_the_line_that_mends_it(machine: Machine, on: On, slm: Slm) -> None:
    on(machine)
    result = slm("doctor", "--json")
    found = json.loads(result.out)
    problems = found["problems"]
    assert len(problems) == len(machine.says) == len(machine.mends), problems
    for problem, says, mends in zip(problems, machine.says, machine.mends, strict=True):
        assert says in problem["what"]
        assert mends in problem["mend_line"]
    assert (result.code, found["can_run"]) == (machine.code, machine.code == 0)
    assert result.err == ""


def test_the_report_has_machine_devices_folders_and_hub(on: On, slm: Slm, slm_home: Path) -> None:
    on(MACHINES["Meteor Lake with all drivers"])
    result = slm("doctor")
    lines = [re.sub(r" {2,}", "  ", line).strip() for line in result.out.splitlines()]
    assert "processor  Intel(R) Core(TM) Ultra 7 155H, 6 performance and 10 efficiency cores" in lines
    assert "computes with avx, avx2, fma, f16c, avx_vnni" in lines
    assert "memory  20.0 GB of 32.0 GB free; speed not measured yet" in lines
    assert "power  battery" in lines
    assert "GPU  Intel 0x7d55, driver xe, /dev/dri/renderD128" in lines
    assert "gpu: Intel(R) Arc(TM) Graphics (iGPU), integrated, 16.0 GB" in lines
    assert "npu: Intel(R) AI Boost, integrated, driver 1016" in lines
    assert any(line.startswith(f"models  {slm_home / 'models'} (not there yet)") for line in lines)
    assert "address  https://huggingface.co" in lines
    assert "token  not set" in lines
    assert lines[-1] == "Nothing is missing or broken."
    assert (result.code, result.err) == (0, "")


def test_the_line_that_mends_stands_alone_and_whole(on: On, slm: Slm) -> None:
    on(MACHINES["an old processor on which the build of llama.cpp dies"])
    lines = [line.strip() for line in slm("doctor").out.splitlines()]
    assert "2 problems" in lines
    (mend,) = [line for line in lines if "--no-binary" in line]
    assert mend.startswith("pip install --force-reinstall")


def test_without_an_engine_the_report_says_that_no_model_can_answer(on: On, slm: Slm) -> None:
    on(MACHINES["no engine at all"])
    result = slm("doctor")
    assert result.code == 4
    assert "No engine runs here" in result.out
    assert result.out.count("not installed") >= 4
    assert add_line("llamacpp") in result.out


def test_the_token_is_in_no_output(on: On, slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine())
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    plain, values = slm("doctor"), slm("doctor", "--json")
    assert json.loads(values.out)["hub"] == {"endpoint": "https://huggingface.co", "offline": None, "token": "set"}
    assert "hf_planted" not in plain.out + plain.err + values.out + values.err


def test_a_network_that_is_forbidden_and_an_address_that_is_none_are_told(
    on: On, slm: Slm, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Machine())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert json.loads(slm("doctor", "--json").out)["hub"]["offline"] == "HF_HUB_OFFLINE"
    assert "forbidden by HF_HUB_OFFLINE" in slm("doctor").out
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("SLM_OFFLINE", "true")
    assert json.loads(slm("doctor", "--json").out)["hub"]["offline"] == "the setting offline"
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub")
    found = json.loads(slm("doctor", "--json").out)
    assert found["hub"]["endpoint"] is None
    assert "HF_ENDPOINT" in found["problems"][0]["what"]
    assert "HF_ENDPOINT" in found["problems"][0]["mend_line"]


@pytest.mark.parametrize("file", ["config.toml", "models.toml"])
def test_settings_that_can_not_be_read_are_a_problem_and_no_end(file: str, on: On, slm: Slm, slm_home: Path) -> None:
    on(Machine())
    (slm_home / "config").mkdir()
    (slm_home / "config" / file).write_text("threads = [", encoding="utf-8")
    result = slm("doctor", "--json")
    (problem,) = json.loads(result.out)["problems"]
    assert file in problem["what"]
    assert result.code == 0


def test_a_home_that_is_no_folder_is_a_problem_and_no_end(
    on: On, slm: Slm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Machine())
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "file"))
    found = json.loads(slm("doctor", "--json").out)
    assert found["folders"] == []
    assert "SLM_HOME is not a folder" in found["problems"][0]["what"]
    assert "SLM_HOME" in found["problems"][0]["mend_line"]


def test_what_a_driver_calls_itself_can_not_write_to_the_terminal(on: On, slm: Slm) -> None:
    hostile = {**ARC, "description": "Arc\x1b]52;c;cm0=\x07\x1b[2J", "architecture": "\u202ex"}
    failing = {"failure": "Error: \x1b[31mred\nnext line"}
    on(Machine(answers={"openvino": openvino(hostile, BOOST), "llamacpp": failing}))
    out = slm("doctor").out
    assert "Arc␛]52" in out
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_the_doctor_opens_no_socket(on: On, slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tries.append(arguments)
        raise OSError("there is no network")

    on(Machine())
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert slm("doctor").code == 0
    assert tries == []


def test_the_doctor_asks_anew_every_time(on: On, slm: Slm, fake_runtimes: FakeRuntimes) -> None:
    on(Machine())
    slm("doctor")
    slm("doctor")
    assert len(fake_runtimes.asked) == 4


def test_extras_that_are_missing_are_named_with_their_line(on: On, slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine())
    monkeypatch.setattr(diagnosis, "EXTRAS", {"convert": "no_such_package"})
    assert json.loads(slm("doctor", "--json").out)["missing_extras"] == [
        {"extra": "convert", "add_line": add_line("convert")}
    ]
    monkeypatch.setattr(diagnosis, "EXTRAS", {"convert": "json"})
    assert json.loads(slm("doctor", "--json").out)["missing_extras"] == []


def test_this_machine_is_told_too(slm: Slm) -> None:
    result = slm("doctor", "--json")
    found = json.loads(result.out)
    assert result.code == 0
    assert [each["engine"] for each in found["engines"] if each["runs"]] == ["llamacpp", "openvino"]
    assert found["machine"]["performance_cores"] >= 1
