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
        found += _unused(here["openvino"], hardware.os, [each for each in cards if each.vendor == "intel"])
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
            died = ": it died of one" if listing.is_illegal_instruction else ", and would die of them"
            yield Problem(
                what=f"this build of {name} needs {what} that this processor lacks{died}",
                mend_line=_anew(engine, from_source=True) if engine == "llamacpp" else add_line("llamacpp"),
            )
        elif listing.failure and listing.devices:
            kinds = " and ".join(kind.upper() for kind in listing.broken_kinds) or "all devices together"
            yield Problem(
                what=f"{name} broke when it was asked for {kinds}, and goes without: {listing.failure}",
                mend_line=_driver("npu" if "npu" in listing.broken_kinds else "gpu", hardware.os),
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


def _unused(listing: Listing, platform: str, cards: list[Accelerator]) -> Iterator[Problem]:
    """Say of the kinds that are there and that OpenVINO does not list the first thing on their way that is missing."""
    known = {device.kind for device in listing.devices} | set(listing.broken_kinds)
    firsts = [next((each for each in cards if each.kind == kind), None) for kind in ("gpu", "npu") if kind not in known]
    unused = [each for each in firsts if each is not None]
    denied = [each for each in unused if each.access == "denied"]
    if denied:
        yield _without_access(denied)
    for card in unused:
        if platform != "linux":
            has = f"its driver {card.driver} does not serve OpenVINO" if card.driver else "it has no driver"
            yield Problem(what=f"{_name(card)} is not used: {has}", mend_line=WINDOWS_DRIVER)
        elif card.driver is None or card.node is None:
            yield _without_kernel_driver(card)
        elif card.access == "absent":
            folder = "dri" if card.kind == "gpu" else "accel"
            yield Problem(
                what=f"{_name(card)} is not used: {card.node} is not there, as in a container that it was not given to",
                mend_line=f"docker run --device /dev/{folder} ...",
            )
        elif card.access == "open":
            yield _without_runtime(card, listing)


def _name(card: Accelerator) -> str:
    return f"the Intel {card.kind.upper()} ({card.device_id})"


def _driver(kind: str, platform: str) -> str:
    if platform == "win32":
        return WINDOWS_DRIVER
    return NPU_DRIVER if kind == "npu" else _of_family(COMPUTE_RUNTIME)


def _without_kernel_driver(card: Accelerator) -> Problem:
    if card.kind == "gpu":
        reason, line = "the kernel has no driver for it, or an older one than it needs", "sudo modprobe -a i915 xe"
    elif not system.has_npu_firmware():
        reason, line = "its firmware is missing", _of_family(FIRMWARE)
    else:
        reason = "the kernel's driver intel_vpu (Linux 6.8 and newer) is not loaded"
        line = "sudo modprobe intel_vpu"
    return Problem(what=f"{_name(card)} is not used: {reason}", mend_line=line)


def _without_access(cards: list[Accelerator]) -> Problem:
    """Say of one or two cards that the user may not open them; they belong to one group."""
    names = " and ".join(map(_name, cards)) + (" is" if len(cards) == 1 else " are")
    group, nodes = cards[0].group, " and ".join(each.node or "" for each in cards)
    if cards[0].is_member:
        return Problem(
            what=f"{names} not used: you are in the group {group} only from your next login on",
            mend_line=f"newgrp {group}",
        )
    return Problem(
        what=f"{names} not used: you are not in the group {group}, which may open {nodes}; log in again after this",
        mend_line=f"sudo usermod -aG {group} $USER",
    )


def _without_runtime(card: Accelerator, listing: Listing) -> Problem:
    has_intel = any("igdrcl" in each for each in system.opencl_drivers())
    line = NPU_DRIVER if card.kind == "npu" else _of_family(COMPUTE_RUNTIME)
    if card.kind == "npu" and "level_zero" not in listing.libraries:
        reason, line = "Level Zero is not installed", _of_family(LEVEL_ZERO)
    elif card.kind == "npu" and "npu" not in listing.libraries:
        reason = "its driver for programs is missing"
    elif card.kind == "npu":
        reason = "its driver does not serve this OpenVINO"
    elif "opencl" not in listing.libraries or not has_intel:
        reason = "Intel's OpenCL is not installed"
    else:
        reason = "the OpenCL that is installed does not know it, or OpenVINO does not"
    return Problem(what=f"{_name(card)} is not used: {reason}", mend_line=line)


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
