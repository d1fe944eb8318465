"""Which of a repository's GGUF files to run: reads quantizations off names, puts parts together, chooses. Pure.

Uploaders name files each in their own way (dash, dot or underscore, upper or lower case, folders), so a name is only
read, never built. What a file really holds, its header says later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slm_local.download.values import RemoteFile
from slm_local.errors import DownloadFailed, UsageError
from slm_local.hardware import Hardware
from slm_local.model import gigabytes
from slm_local.sanitize import one_line

QUANT = re.compile(
    r"(?<![A-Za-z0-9])"
    r"((?:UD[-_.])?(?:I?Q[1-8]_(?:K(?:_(?:S|M|L|XL))?|[01](?:_[48]_[48])?|XXS|XS|S|M|NL)|Q[2-8]|TQ[12]_0"
    r"|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
"""A quantization in a name; UD- marks Unsloth's mixtures, which differ from the plain ones of the same name."""

PART = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""The stem of one part of a split model, as llama-gguf-split names it."""

COMPANION = re.compile(r"(?<![a-z])(mmproj|projector|vocab)(?![a-z])", re.IGNORECASE)
"""Files beside a model that are none: what it sees with, a bare vocabulary."""

IMATRIX = re.compile(r"imatrix", re.IGNORECASE)
"""What a model was quantized with; with a quantization in its name it is such a model."""

PREFERRED = (
    *("Q4_K_M", "Q4_K_XL", "Q4_K_L", "Q4_K", "Q4_K_S", "MXFP4_MOE", "MXFP4", "IQ4_NL", "IQ4_XS", "Q4_0", "Q4_1", "Q4"),
    *("Q5_K_M", "Q5_K_XL", "Q5_K_L", "Q5_K", "Q5_K_S", "Q5_1", "Q5_0", "Q5", "Q6_K", "Q6_K_XL", "Q6_K_L", "Q6"),
    *("Q8_0", "Q8_K_XL", "Q8", "BF16", "F16", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K", "IQ3_M", "Q3_K_S", "IQ3_S"),
    *("IQ3_XS", "IQ3_XXS", "Q3", "Q2_K_XL", "Q2_K_L", "Q2_K", "IQ2_M", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2"),
    *("IQ1_M", "IQ1_S", "F32"),
)
"""What to take where nothing is asked for, the first that fits: four bits, at which a model loses little and reads
little; more only where there is no such file; fewer only where memory is short. Source: the perplexities in
llama.cpp's tools/quantize."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Other names of a quantization, as llama-quantize has them."""

ARM_DOT_PRODUCTS = frozenset({"asimddp", "i8mm"})
"""Processor flags of ARM, either of which has llama.cpp repack."""

USABLE_SHARE = 0.8
"""Largest share of the free memory for weights and `ROOM_BYTES`: the KV cache has the rest."""

ROOM_BYTES = 256 << 20
"""For the engine, its vocabulary and its buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of a model in a repository: a file, or all the parts of a split one."""

    quant: str
    """As the field writes it; empty where the name says none."""
    files: tuple[RemoteFile, ...]
    """In the order of their numbers."""
    parts: int = 1
    """How many files it should have."""

    @property
    def path(self) -> str:
        """Return the path of the (first) file in the repository."""
        return self.files[0].path

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(each.size_bytes for each in self.files)

    @property
    def label(self) -> str:
        """Return the quantization, or the file's name where that says none, for a message."""
        return self.quant or one_line(self.path, 80)


def quant_name(path: str) -> str:
    """Return the quantization that a file's name, else its folder's, ends in or holds; empty for none."""
    for step in reversed(path.split("/")):
        if found := QUANT.findall(_stem(step)):
            return _canonical(found[-1])
    return ""


def forms(files: Iterable[RemoteFile]) -> tuple[Form, ...]:
    """Return the models among a repository's files, in the order of their names."""
    grouped: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in files:
        if not _is_model(file.path):
            continue
        part = PART.fullmatch(file.path[: -len(".gguf")])
        key, number = ((part["prefix"], int(part["count"])), int(part["number"])) if part else ((file.path, 1), 1)
        grouped.setdefault(key, {})[number] = file
    return tuple(
        Form(quant=quant_name(members[min(members)].path), files=tuple(members[at] for at in sorted(members)), parts=n)
        for (_, n), members in sorted(grouped.items())
    )


def choose_quant(
    found: Sequence[Form], asked: str | None, hardware: Hardware, repo: str, *, file: str | None = None
) -> tuple[Form, str]:
    """Choose a form and say why: the file or the quantization asked for, else the preferred one that fits memory.

    Errors: `UsageError` for a quantization that is not there, naming those that are, and where several models have
    the one chosen; `DownloadFailed` for a file that is not there or lacks parts.
    """
    if file is not None:
        return _whole(_with_file(found, file, repo), repo), "as its address says"
    if asked is not None:
        fitting = _asked(found, asked, repo)
        return _whole(_one_of(fitting, repo), repo), "as asked"
    whole = [each for each in found if len(each.files) == each.parts]
    if not whole:
        return _whole(found[0], repo), ""
    if len(whole) == 1:
        return whole[0], "the only one there"
    best, why = _best(whole, hardware)
    return _one_of([each for each in whole if each.quant == best.quant], repo), why


def prefers_q4_0(hardware: Hardware) -> bool:
    """Tell whether this processor computes Q4_0 enough faster than Q4_K_M to make up for what it loses.

    llama.cpp repacks both for AVX2, and for ARM with dot products (ggml-cpu/repack.cpp). On x86 there is no difference
    to speak of: layers of an 8B model read a prompt at 111 (Q4_0) and 119 tokens/s (Q4_K_M) and decoded at 41 and 40,
    measured with AVX-512 on two cores; for AVX2 the same kernels exist. On ARM the plain kernels are well ahead of
    those with super-blocks: an 8B model's prompt at 160 tokens/s (Q8_0) and 92 (Q4_K) on one M4 Max (llama.cpp #18096,
    #16739).
    """
    return not ARM_DOT_PRODUCTS.isdisjoint(hardware.instruction_sets or ())


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    if not name.lower().endswith(".gguf") or COMPANION.search(name):
        return False
    return not IMATRIX.search(name) or QUANT.search(name) is not None


def _best(whole: Sequence[Form], hardware: Hardware) -> tuple[Form, str]:
    order = ("Q4_0", *PREFERRED) if prefers_q4_0(hardware) else PREFERRED
    ranked = sorted(whole, key=lambda each: _rank(each.quant, order))
    free = f"{gigabytes(hardware.free_ram_bytes)} of free memory"
    best = next((each for each in ranked if _fits(each, hardware)), None)
    if best is None:
        return min(whole, key=lambda each: each.size_bytes), f"the smallest, and yet too large for {free}"
    if best is not ranked[0]:
        return best, f"the best that fits {free}; {ranked[0].label} does not"
    if best.quant == order[0] == "Q4_0":
        return best, "which this processor computes faster than Q4_K_M"
    return best, "the usual balance of size and quality" if best.quant == "Q4_K_M" else "there is no Q4_K_M"


def _rank(quant: str, order: Sequence[str]) -> tuple[int, bool]:
    plain = quant.removeprefix("UD-")
    return (order.index(plain) if plain in order else len(order), plain != quant)


def _fits(form: Form, hardware: Hardware) -> bool:
    return form.size_bytes + ROOM_BYTES <= USABLE_SHARE * hardware.free_ram_bytes


def _with_file(found: Sequence[Form], file: str, repo: str) -> Form:
    for form in found:
        if any(each.path == file for each in form.files):
            return form
    raise DownloadFailed(f"{repo} has no model in {one_line(file)}", hint=f"slm show hf:{repo}")


def _asked(found: Sequence[Form], asked: str, repo: str) -> list[Form]:
    """Return the forms of a quantization or of a file's name, however it is written.

    Where there is no plain one, an Unsloth mixture answers to the name without UD-.
    """
    for name in (asked, f"UD-{asked}", ALIASES.get(asked.upper(), asked)):
        wanted = _plain(_stem(name))
        if wanted and (fitting := [form for form in found if wanted in (_plain(form.quant), _plain(_stem(form.path)))]):
            return fitting
    known = list(dict.fromkeys(form.label for form in found))
    usual = min(found, key=lambda form: _rank(form.quant, PREFERRED))
    hint = f"slm show hf:{repo}:{usual.quant}" if usual.quant else f"slm show {address_of(repo, usual.path)}"
    raise UsageError(f"{repo} has no {one_line(asked, 80)}; there is {', '.join(known)}", hint=hint)


def _one_of(fitting: Sequence[Form], repo: str) -> Form:
    """Return the form that is the repository's model; `UsageError` where several models have that quantization."""
    title = _plain(re.sub("[-_.]gguf$", "", repo.partition("/")[2].lower()))
    named = [form for form in fitting if _model_name(form.path) == title]
    names = {_model_name(form.path) for form in fitting}
    if len(names) > 1 and not named:
        listed = ", ".join(one_line(form.path, 80) for form in fitting)
        hint = f"slm show {address_of(repo, fitting[0].path)}"
        of_quant = f" as {fitting[0].quant}" if fitting[0].quant else ""
        raise UsageError(f"{repo} holds several models{of_quant}: {listed}; name the file", hint=hint)
    return min(named or fitting, key=lambda form: (form.path.count("/"), form.path))


def _whole(form: Form, repo: str) -> Form:
    if len(form.files) != form.parts:
        raise DownloadFailed(
            f"{repo} has {len(form.files)} of the {form.parts} parts of {one_line(form.path)}",
            hint=f"slm show hf:{repo}",
        )
    return form


def address_of(repo: str, file: str) -> str:
    """Return a reference that names one file of a repository."""
    return f"hf.co/{repo}/blob/main/{one_line(file)}"


def _model_name(path: str) -> str:
    """Return what a file's name says of the model, the quantization left out."""
    return _plain(QUANT.sub("", _stem(path)).replace(".i1-", ""))


def _stem(path: str) -> str:
    stem = re.sub(r"\.gguf$", "", path.rpartition("/")[2], flags=re.IGNORECASE)
    part = PART.fullmatch(stem)
    return part["prefix"] if part else stem


def _canonical(quant: str) -> str:
    name = re.sub("^UD[_.]", "UD-", quant.upper())
    return {"FP16": "F16", "FP32": "F32"}.get(name, name)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
