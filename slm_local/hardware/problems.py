"""What is missing or broken on this machine, each with the line that mends it.

What the system knows (which cards there are, who may open them) is held against what the runtimes list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slm_local import system
from slm_local.hardware.values import Hardware, Listing, Problem
from slm_local.installed import add_line, reinstall_line
from slm_local.measured import engine_version
from slm_local.system import Accelerator

NAMES = {"llamacpp": "llama.cpp", "openvino": "OpenVINO"}

BUILT_FOR = {
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX_VNNI": "avx_vnni",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
"""What llama.cpp calls the instruction sets that its build uses, and Linux the processor's. Source: ggml-cpu.cpp."""

TOLD_EVERYWHERE = frozenset({"avx", "avx2", "avx512f"})
"""Those that Windows and macOS tell of, too: of others nothing is concluded there."""

COMPUTE_RUNTIME = {
    "debian": "sudo apt install ocl-icd-libopencl1 intel-opencl-icd",
    "fedora": "sudo dnf install intel-compute-runtime",
    "arch": "sudo pacman -S ocl-icd intel-compute-runtime",
    "suse": "sudo zypper install intel-opencl",
    "": "xdg-open https://github.com/intel/compute-runtime/releases",
}
"""What installs Intel's OpenCL for its GPUs, by the family of the Linux."""

LEVEL_ZERO = {
    "debian": "sudo apt install libze1",
    "fedora": "sudo dnf install oneapi-level-zero",
    "arch": "sudo pacman -S level-zero-loader",
    "": "xdg-open https://github.com/oneapi-src/level-zero/releases",
}

FIRMWARE = {
    "ubuntu": "sudo apt install --reinstall linux-firmware",
    "debian": "sudo apt install firmware-intel-misc",
    "fedora": "sudo dnf upgrade linux-firmware",
    "arch": "sudo pacman -S linux-firmware",
    "": "xdg-open https://github.com/intel/linux-npu-driver/releases",
}

NPU_DRIVER = "xdg-open https://github.com/intel/linux-npu-driver/releases"
"""Packages that carry it are rare, and the snap of that name serves other snaps alone."""

WINDOWS_DRIVER = "start https://www.intel.com/content/www/us/en/support/detect.html"


def find_problems(hardware: Hardware) -> tuple[Problem, ...]:
    """Return what is missing or broken on a machine whose runtimes were asked."""
    here = {each.engine: each for each in hardware.listings}
    found = [*_engines(hardware, here), *_processor(hardware)]
    cards = system.accelerators()
    if "openvino" in here and here["openvino"].devices:
        intel = [each for each in cards if each.vendor == "intel"]
        listed = {device.kind for device in here["openvino"].devices}
        for kind in ("gpu", "npu"):
            same = [each for each in intel if each.kind == kind]
            if same and kind not in listed:
                found.append(_unused(same[0], here["openvino"], hardware.os))
    if "llamacpp" in here and any(each.vendor == "nvidia" for each in cards):
        found += _nvidia(here["llamacpp"])
    return tuple(found)


def lacking(listing: Listing, hardware: Hardware) -> tuple[str, ...]:
    """Return the instruction sets that a runtime's build uses and this processor lacks, as the runtime names them."""
    if hardware.instruction_sets is None:
        return ()
    told = set(BUILT_FOR.values()) if hardware.os == "linux" else TOLD_EVERYWHERE
    return tuple(
        name
        for name in listing.built_for
        if BUILT_FOR.get(name) in told and BUILT_FOR[name] not in hardware.instruction_sets
    )


def _engines(hardware: Hardware, here: dict[str, Listing]) -> Iterator[Problem]:
    if "llamacpp" not in here:
        yield Problem(
            what="llama.cpp is not installed: GGUF files run only where OpenVINO can read them",
            mend_line=add_line("llamacpp"),
        )
    if "openvino" not in here:
        yield Problem(what="OpenVINO is not installed: Intel's GPUs and NPUs can't be used", mend_line=add_line())
    for engine, listing in here.items():
        name, lacks = NAMES[engine], lacking(listing, hardware)
        if listing.is_illegal_instruction or lacks:
            what = " and ".join(lacks) or "an instruction set"
            died = f": {listing.failure}" if listing.failure else ", and would die of it"
            yield Problem(
                what=f"this build of {name} needs {what} that this processor lacks{died}",
                mend_line=_anew(engine, from_source=True) if engine == "llamacpp" else add_line("llamacpp"),
            )
        elif listing.failure and listing.devices:
            yield Problem(
                what=f"{name} broke when it looked for GPU and NPU, and runs on the processor alone: {listing.failure}",
                mend_line=WINDOWS_DRIVER if hardware.os == "win32" else _of_family(COMPUTE_RUNTIME),
            )
        elif listing.failure:
            yield Problem(what=f"{name} does not run here: {listing.failure}", mend_line=_anew(engine))


def _anew(engine: str, *, from_source: bool = False, cmake: str = "") -> str:
    """Return the line that installs an engine anew."""
    if engine == "openvino":
        return reinstall_line("openvino", "openvino-genai", "openvino-tokenizers")
    package = f"llama-cpp-python=={engine_version(engine)}"
    return reinstall_line(package, extras=["llamacpp"], from_source=from_source, cmake=cmake)


def _processor(hardware: Hardware) -> Iterator[Problem]:
    is_x86 = hardware.vendor in ("intel", "amd")
    if is_x86 and hardware.instruction_sets is not None and "avx2" not in hardware.instruction_sets:
        yield Problem(
            what="this processor has no AVX2: every engine is slow on it, so take a small model",
            mend_line="slm ls --all",
        )


def _unused(card: Accelerator, listing: Listing, platform: str) -> Problem:
    """Say why OpenVINO does not list a card that is there: the first thing on its way that is missing."""
    name = f"{'the Intel GPU' if card.kind == 'gpu' else 'the Intel NPU'} ({card.device_id})"
    if platform != "linux":
        has = f"its driver {card.driver} does not serve OpenVINO" if card.driver else "it has no driver"
        return Problem(what=f"{name} is not used: {has}", mend_line=WINDOWS_DRIVER)
    if card.driver is None or card.node is None:
        return _without_kernel_driver(card, name)
    if card.access == "absent":
        folder = "dri" if card.kind == "gpu" else "accel"
        return Problem(
            what=f"{name} is not used: {card.node} is not there, as in a container that it was not given to",
            mend_line=f"docker run --device /dev/{folder} ...",
        )
    if card.access == "denied":
        return _without_access(card, name)
    return _without_runtime(card, name, listing)


def _without_kernel_driver(card: Accelerator, name: str) -> Problem:
    if card.kind == "gpu":
        return Problem(
            what=f"{name} is not used: the kernel has no driver for it, or an older one than it needs",
            mend_line="sudo modprobe -a i915 xe",
        )
    if not system.has_npu_firmware():
        return Problem(what=f"{name} is not used: its firmware is missing", mend_line=_of_family(FIRMWARE))
    return Problem(
        what=f"{name} is not used: the kernel's driver intel_vpu (Linux 6.8 and newer) is not loaded",
        mend_line="sudo modprobe intel_vpu",
    )


def _without_access(card: Accelerator, name: str) -> Problem:
    if card.is_member:
        return Problem(
            what=f"{name} is not used: you are in the group {card.group} only from your next login on",
            mend_line=f"newgrp {card.group}",
        )
    return Problem(
        what=f"{name} is not used: you are not in the group {card.group}, which may open {card.node}; "
        "log in again after this",
        mend_line=f"sudo usermod -aG {card.group} $USER",
    )


def _without_runtime(card: Accelerator, name: str, listing: Listing) -> Problem:
    if card.kind == "npu":
        if "level_zero" not in listing.libraries:
            return Problem(what=f"{name} is not used: Level Zero is not installed", mend_line=_of_family(LEVEL_ZERO))
        if "npu" not in listing.libraries:
            return Problem(what=f"{name} is not used: its driver for programs is missing", mend_line=NPU_DRIVER)
        return Problem(what=f"{name} is not used: its driver does not serve this OpenVINO", mend_line=NPU_DRIVER)
    has_intel = any("igdrcl" in each for each in system.opencl_drivers())
    if "opencl" not in listing.libraries or not has_intel:
        return Problem(
            what=f"{name} is not used: Intel's OpenCL is not installed", mend_line=_of_family(COMPUTE_RUNTIME)
        )
    return Problem(
        what=f"{name} is not used: the OpenCL that is installed does not know it, or OpenVINO does not",
        mend_line=_of_family(COMPUTE_RUNTIME),
    )


def _nvidia(listing: Listing) -> Iterable[Problem]:
    if listing.devices and not any(device.kind == "gpu" for device in listing.devices):
        yield Problem(
            what="the NVIDIA GPU is not used: llama.cpp was built without CUDA (building it needs the CUDA toolkit)",
            mend_line=_anew("llamacpp", from_source=True, cmake="-DGGML_CUDA=on"),
        )


def _of_family(lines: dict[str, str]) -> str:
    """Return the line for this Linux or the nearest that it is made from; the one for all others stands under ''."""
    families = (each.removeprefix("open").partition("-")[0] for each in system.distributions())
    return next((lines[each] for each in families if each in lines), lines[""])
