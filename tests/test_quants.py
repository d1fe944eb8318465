"""Quantizations in the names that uploaders give, parts of split models, and which form is chosen of a repository."""

from __future__ import annotations

import pytest

from slm_local.download.quants import Form, choose_quant, forms, quant_name
from slm_local.download.values import RemoteFile
from slm_local.errors import DownloadFailed, UsageError
from slm_local.hardware import Hardware

GB = 10**9


def machine(free_gb: float = 16.0, flags: tuple[str, ...] = ("avx2",)) -> Hardware:
    return Hardware(
        os="linux",
        cpu_name="cpu",
        physical_cores=4,
        logical_cores=8,
        instruction_sets=flags,
        total_ram_bytes=64 * GB,
        free_ram_bytes=int(free_gb * GB),
        devices=(),
        engines=frozenset({"llamacpp"}),
    )


def listed(*names: str, gb: float = 1.0) -> tuple[Form, ...]:
    return forms(RemoteFile(path=name, size_bytes=int(gb * GB)) for name in names)


def sized(repo_name: str, sizes: dict[str, float]) -> tuple[Form, ...]:
    files = [RemoteFile(path=f"{repo_name}-{quant}.gguf", size_bytes=int(gb * GB)) for quant, gb in sizes.items()]
    return forms(files)


LLAMA_8B = {
    "Q2_K": 3.2,
    "Q3_K_M": 4.0,
    "IQ4_XS": 4.5,
    "Q4_0": 4.7,
    "Q4_K_S": 4.7,
    "Q4_K_M": 4.9,
    "Q5_K_M": 5.7,
    "Q6_K": 6.6,
    "Q8_0": 8.5,
    "f16": 16.1,
}


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("DeepSeek-R1-Distill-Llama-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("DeepSeek-R1-Distill-Llama-8B-Q4_0.gguf", "Q4_0"),
        ("Meta-Llama-3.1-8B-Instruct.Q8_0.gguf", "Q8_0"),
        ("llama-2-7b-chat.Q4_K_M.gguf", "Q4_K_M"),
        ("deepseek-moe-16b-chat.i1-Q4_K_M.gguf", "Q4_K_M"),
        ("smollm2-360m-instruct-q8_0.gguf", "Q8_0"),
        ("smollm2-1.7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("deepseek-ai_DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("HuggingFaceTB_SmolLM3-3B-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM3-Q4_K_M.gguf", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("openai_gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Qwen3-30B-A3B-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Qwen3-4B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3-4B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("DeepSeek-R1-0528-Qwen3-8B-UD-TQ1_0.gguf", "UD-TQ1_0"),
        ("Phi-4-mini-reasoning-IQ4_NL.gguf", "IQ4_NL"),
        ("Phi-4-mini-reasoning-IQ3_M.gguf", "IQ3_M"),
        ("LFM2.5-1.2B-Thinking-BF16.gguf", "BF16"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("LFM2.5-1.2B-Thinking-F32.gguf", "F32"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("model_q5_k_s.gguf", "Q5_K_S"),
        ("ggml-model-Q6_K.gguf", "Q6_K"),
        ("Qwen3-4B-Q6_K_L.gguf", "Q6_K_L"),
        ("Llama-3.2-3B-Instruct-Q4_0_8_8.gguf", "Q4_0_8_8"),
        ("Llama-3.2-3B-Instruct-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("Llama-3-8B-F16-merged-Q5_K_M.gguf", "Q5_K_M"),
        ("DeepSeek-R1-Distill-Llama-70B-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("DeepSeek-R1-Distill-Llama-70B-Q8_0/DeepSeek-R1-Distill-Llama-70B-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("UD-Q4_K_XL/model-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("BF16/model.gguf", "BF16"),
        ("tiny-reasoner.gguf", ""),
        ("DeepSeek-R1-Distill-Qwen-1.5B.gguf", ""),
        ("QwQ-32B.gguf", ""),
    ],
)
def test_the_quantization_is_read_off_a_name(path: str, quant: str) -> None:
    assert quant_name(path) == quant


def test_what_is_no_model_is_left_out() -> None:
    found = listed(
        *("README.md", ".gitattributes", "config.json", "imatrix.dat", "imatrix_unsloth.gguf", "Qwen3-4B.imatrix.gguf"),
        *("mmproj-F16.gguf", "mmproj-model-f16.gguf", "Qwen3.5-4B.mmproj-Q8_0.gguf", "ggml-vocab-llama-bpe.gguf"),
        *("Qwen3.5-4B-Q4_K_M.gguf", "Qwen3.5-4B-Q8_0.gguf.part1of2", "Qwen3.5-4B-imatrix-Q5_K_M.gguf"),
    )
    assert [form.path for form in found] == ["Qwen3.5-4B-Q4_K_M.gguf", "Qwen3.5-4B-imatrix-Q5_K_M.gguf"]


def test_parts_of_a_split_model_are_one_form() -> None:
    names = [f"Q8_0/Llama-70B-Q8_0-{number:05d}-of-00003.gguf" for number in (2, 1, 3)]
    found = listed(*names, "Llama-70B-Q4_K_M.gguf", gb=25.0)

    assert [(form.quant, form.parts, form.size_bytes) for form in found] == [
        ("Q4_K_M", 1, 25 * GB),
        ("Q8_0", 3, 75 * GB),
    ]
    assert [file.path for file in found[1].files] == sorted(names)


def test_the_usual_balance_is_chosen_where_it_fits() -> None:
    form, why = choose_quant(sized("Llama-8B", LLAMA_8B), None, machine(), "o/Llama-8B-GGUF")
    assert (form.quant, why) == ("Q4_K_M", "the usual balance of size and quality")


@pytest.mark.parametrize(
    ("free_gb", "quant"), [(6.5, "Q4_K_M"), (6.3, "Q4_K_S"), (6.0, "IQ4_XS"), (5.5, "Q3_K_M"), (4.5, "Q2_K")]
)
def test_the_best_that_fits_memory_is_chosen(free_gb: float, quant: str) -> None:
    form, why = choose_quant(sized("Llama-8B", LLAMA_8B), None, machine(free_gb), "o/Llama-8B-GGUF")
    assert form.quant == quant
    assert (f"the best that fits {free_gb} GB" in why) == (quant != "Q4_K_M")


def test_where_nothing_fits_the_smallest_is_chosen_and_that_is_said() -> None:
    form, why = choose_quant(sized("Llama-8B", LLAMA_8B), None, machine(2.0), "o/Llama-8B-GGUF")
    assert (form.quant, why) == ("Q2_K", "the smallest, and yet too large for 2.0 GB of free memory")


@pytest.mark.parametrize(
    ("flags", "quant"),
    [
        (("avx", "avx2", "fma"), "Q4_K_M"),
        (("avx2", "avx512f", "avx512_vnni"), "Q4_K_M"),
        (("asimd",), "Q4_K_M"),
        (("asimd", "asimddp"), "Q4_0"),
        (("asimd", "asimddp", "i8mm", "sve"), "Q4_0"),
    ],
)
def test_q4_0_is_chosen_where_the_processor_is_faster_with_it(flags: tuple[str, ...], quant: str) -> None:
    form, why = choose_quant(sized("Llama-8B", LLAMA_8B), None, machine(flags=flags), "o/Llama-8B-GGUF")
    assert form.quant == quant
    assert ("faster than Q4_K_M" in why) == (quant == "Q4_0")


@pytest.mark.parametrize(
    ("there", "quant"),
    [
        (("Q8_0", "F16"), "Q8_0"),
        (("BF16", "UD-Q4_K_XL", "Q4_K_S"), "UD-Q4_K_XL"),
        (("UD-Q4_K_M", "Q4_K_M"), "Q4_K_M"),
        (("MXFP4", "Q8_0"), "MXFP4"),
        (("Q2_K", "Q6_K", "Q3_K_L"), "Q6_K"),
        (("Q4_0_8_8", "Q8_0"), "Q8_0"),
    ],
)
def test_without_the_usual_balance_the_nearest_is_chosen(there: tuple[str, ...], quant: str) -> None:
    form, why = choose_quant(sized("m", dict.fromkeys(there, 1.0)), None, machine(), "o/m-GGUF")
    assert form.quant == quant
    assert ("there is no Q4_K_M" in why) == (quant != "Q4_K_M")


@pytest.mark.parametrize(
    ("asked", "quant"),
    [
        ("Q8_0", "Q8_0"),
        ("q8_0", "Q8_0"),
        ("q4-k-m", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("Q5_K_XL", "UD-Q5_K_XL"),
        ("ud-q5_k_xl", "UD-Q5_K_XL"),
        ("f16", "F16"),
        ("Llama-8B-Q6_K.gguf", "Q6_K"),
    ],
)
def test_the_quantization_asked_for_is_found_however_it_is_written(asked: str, quant: str) -> None:
    found = sized("Llama-8B", LLAMA_8B | {"UD-Q5_K_XL": 6.0})
    assert choose_quant(found, asked, machine(1.0), "o/Llama-8B-GGUF")[0].quant == quant


def test_a_plain_quantization_is_not_answered_with_a_mixture_of_that_name() -> None:
    found = listed("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf")
    assert choose_quant(found, "Q4_K_M", machine(), "o/m-GGUF")[0].path == "m-Q4_K_M.gguf"


@pytest.mark.parametrize("asked", ["Q7_K", "--", "Q4"])
def test_a_quantization_that_is_not_there_names_those_that_are(asked: str) -> None:
    with pytest.raises(UsageError, match="Q4_K_M, Q8_0") as caught:
        choose_quant(listed("m-Q8_0.gguf", "m-Q4_K_M.gguf"), asked, machine(), "o/m-GGUF")
    assert caught.value.exit_code == 2
    assert caught.value.hint == "slm show hf:o/m-GGUF:Q4_K_M"


def test_files_without_a_quantization_are_named_by_their_names() -> None:
    found = listed("tiny-direct.gguf", "tiny-reasoner.gguf")
    with pytest.raises(UsageError, match=r"several models.*tiny-direct.gguf, tiny-reasoner.gguf") as caught:
        choose_quant(found, None, machine(), "slm-local/tiny-GGUF")
    assert caught.value.hint == "slm show hf.co/slm-local/tiny-GGUF/blob/main/tiny-direct.gguf"
    assert choose_quant(found, "tiny-reasoner", machine(), "slm-local/tiny-GGUF")[0].path == "tiny-reasoner.gguf"


def test_of_several_models_that_of_the_repositorys_name_is_taken() -> None:
    found = listed("draft-0.5B-Q4_K_M.gguf", "Qwen3-4B-Q4_K_M.gguf", "older/Qwen3-4B-Q4_K_M.gguf")
    form, _ = choose_quant(found, None, machine(), "unsloth/Qwen3-4B-GGUF")
    assert form.path == "Qwen3-4B-Q4_K_M.gguf"


def test_a_page_of_any_part_names_the_whole_model() -> None:
    names = [f"m-Q8_0-{number:05d}-of-00002.gguf" for number in (1, 2)]
    form, why = choose_quant(listed(*names, "m-Q4_K_M.gguf"), None, machine(), "o/m", file=names[1])
    assert [file.path for file in form.files] == names
    assert why == "as its address says"


def test_a_file_that_is_not_there_is_a_failed_download() -> None:
    with pytest.raises(DownloadFailed, match=r"o/m has no model in mmproj-F16.gguf"):
        choose_quant(listed("m-Q4_K_M.gguf", "mmproj-F16.gguf"), None, machine(), "o/m", file="mmproj-F16.gguf")


def test_a_model_that_lacks_a_part_is_not_chosen_and_says_so_when_asked_for() -> None:
    found = listed("m-Q4_K_M-00002-of-00002.gguf", "m-Q8_0.gguf", "m-Q6_K.gguf")
    assert choose_quant(found, None, machine(), "o/m")[0].quant == "Q6_K"
    with pytest.raises(DownloadFailed, match=r"o/m has 1 of the 2 parts of m-Q4_K_M-00002-of-00002.gguf"):
        choose_quant(found, "Q4_K_M", machine(), "o/m")


def test_names_of_the_repository_are_harmless_in_messages() -> None:
    with pytest.raises(UsageError) as caught:
        choose_quant(listed("\x1b[2Ja.gguf", "b\n.gguf"), "Q4_K_M", machine(), "o/m")
    assert not {"\x1b", "\n"} & set(f"{caught.value.message} {caught.value.hint}")
