"""The header reader: facts of real files, a message of its own for every fault, bounds that hold."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import os
import random
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_local.errors import ModelBroken, SlmError
from slm_local.gguf_header import Bytes, GgufHeader, cache, checked_header, read_header, reader
from slm_local.gguf_header.formats import TENSOR_TYPES, TENSOR_TYPES_END
from slm_local.model import SamplingDefaults, Shape
from slm_local.sanitize import shell_word
from tests.gguf_files import (
    F32,
    HIDDEN,
    I32,
    LAYERS,
    MIB,
    TOKENS,
    U16,
    U32,
    Draft,
    DraftTensor,
    Keys,
    Malformed,
    malformed,
    numbers,
    scalar,
    small_model,
    text,
    texts,
    u32,
)

VOCABULARIES = os.environ.get("LLAMA_CPP_MODELS")
"""The folder `models` of llama.cpp's source package, which holds vocabularies without weights."""

EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(small_model().encode())
    return path


def header_of(tmp_path: Path, keys: Keys, *, tensors: list[DraftTensor] | None = None) -> GgufHeader:
    draft = small_model()
    draft.keys |= keys
    draft.tensors += tensors or []
    path = tmp_path / "changed.gguf"
    path.write_bytes(draft.encode())
    return read_header(path)


def renamed(architecture: str) -> Draft:
    """Draft the small model as one of another architecture."""
    draft = small_model()
    keys: Keys = {str(key).replace("llama.", f"{architecture}."): value for key, value in draft.keys.items()}
    draft.keys = {**keys, "general.architecture": text(architecture)}
    return draft


def refusal(path: Path) -> ModelBroken:
    with pytest.raises(ModelBroken) as caught:
        read_header(path)
    return caught.value


def test_the_real_model_has_the_facts_of_its_card(smollm2: Path) -> None:
    header = read_header(smollm2)

    assert header.shape == Shape(
        layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocabulary=49152, tied=True
    )
    assert (header.architecture, header.quant, header.licence) == ("llama", "Q4_1", "apache-2.0")
    assert (header.parameters, header.active_parameters, header.context_tokens) == (134_515_008, None, 8192)
    assert header.size_bytes == smollm2.stat().st_size
    assert header.decode_bytes == header.tensor_bytes == 96_576_768
    assert (header.bos_id, header.bos_text, header.eos_id, header.eos_text) == (1, "<|im_start|>", 2, "<|im_end|>")
    assert header.chat_template is not None
    assert header.chat_template.startswith("{% for message in messages %}")
    assert (header.tokenizer, header.adds_bos, header.think_tokens) == ("gpt2", False, ())
    assert (header.split_count, header.vocab_only, header.version) == (1, False, 3)


@pytest.mark.parametrize("which", ["small", "smollm2"])
def test_facts_agree_with_what_llama_cpp_says_of_the_same_file(which: str, request: pytest.FixtureRequest) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra: llamacpp)")
    path: Path = request.getfixturevalue(which)
    header = read_header(path)

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, "llama.cpp refuses the file"
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    said = {
        "parameters": llama_cpp.llama_model_n_params(model),
        "tensor_bytes": llama_cpp.llama_model_size(model),
        "context_tokens": llama_cpp.llama_model_n_ctx_train(model),
        "layers": llama_cpp.llama_model_n_layer(model),
        "hidden": llama_cpp.llama_model_n_embd(model),
        "heads": llama_cpp.llama_model_n_head(model),
        "kv_heads": llama_cpp.llama_model_n_head_kv(model),
        "vocabulary": llama_cpp.llama_vocab_n_tokens(vocabulary),
        "bos_id": llama_cpp.llama_vocab_bos(vocabulary),
        "eos_id": llama_cpp.llama_vocab_eos(vocabulary),
        "chat_template": llama_cpp.llama_model_chat_template(model, None).decode(),
    }
    llama_cpp.llama_model_free(model)

    assert {**dataclasses.asdict(header), **dataclasses.asdict(header.shape)}.items() >= said.items()


def test_the_table_of_tensor_types_is_the_engines() -> None:
    ggml = pytest.importorskip("llama_cpp._ggml", reason="llama-cpp-python is not installed (extra: llamacpp)").libggml
    if importlib.metadata.version("llama-cpp-python") != "0.3.36":
        pytest.skip("the table is that of llama-cpp-python 0.3.36")
    blocks = {number: ggml.ggml_blck_size(number) for number in range(TENSOR_TYPES_END)}
    known = {number: (block, ggml.ggml_type_size(number)) for number, block in blocks.items() if block}

    assert {number: (kind.block_elements, kind.block_bytes) for number, kind in TENSOR_TYPES.items()} == known


CASES = malformed()


def test_there_are_at_least_forty_ways_to_be_malformed() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_malformed_file_gets_its_own_message_in_one_line(case: Malformed, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(case.content())
    tracemalloc.start()
    error = refusal(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert case.says in error.message
    assert error.message.startswith(f"{path} ")
    assert "\n" not in error.message
    assert error.hint
    assert error.exit_code == 5
    assert peak_bytes < 32 * MIB


def test_a_folder_is_refused_with_the_line_that_shows_it(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert "is a folder" in error.message
    assert error.hint == f"slm show {tmp_path}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.gguf").message == f"{tmp_path / 'gone.gguf'} is not there"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "is not a regular file" in refusal(tmp_path / "pipe.gguf").message


def test_a_name_with_a_zero_byte_is_refused() -> None:
    assert "can't be reached" in refusal(Path("a\0b.gguf")).message


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "a.gguf")
    with pytest.raises(ModelBroken, match="can't be reached"):
        checked_header(tmp_path / "a.gguf", tmp_path / "cache")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read_says_what_to_type(small: Path) -> None:
    small.chmod(0)
    assert refusal(small).hint == f"chmod u+r {small}"


def test_names_from_the_file_are_harmless_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    draft = small_model()
    draft.keys["general.architecture"] = text("\x1b[2J" + "x" * 500)
    path.write_bytes(draft.encode())
    assert "\x1b" not in refusal(path).message
    assert len(refusal(path).message) < 300


def test_bytes_that_are_not_utf8_change_nothing_but_the_name(tmp_path: Path, small: Path) -> None:
    odd = header_of(tmp_path, {"general.name": text(b"caf\xe9"), "general.author": text(b"\xff"), b"\xfe\xff": u32(1)})

    assert odd.name == "caf�"
    healthy = read_header(small)
    assert dataclasses.replace(odd, name=healthy.name, path=healthy.path, size_bytes=healthy.size_bytes) == healthy


def test_a_newer_engine_may_know_an_architecture_that_we_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(renamed("llama9").encode())

    assert "needs a newer engine" in refusal(path).message
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.4.0")
    assert read_header(path).architecture == "llama9"


def test_thinking_marks_and_special_tokens_come_from_the_vocabulary(small: Path) -> None:
    header = read_header(small)
    assert header.think_tokens == ("<think>", "</think>")
    assert (header.bos_text, header.eos_text, header.adds_bos) == ("<s>", "</s>", True)


def test_a_mark_inside_another_token_is_not_a_token(tmp_path: Path) -> None:
    tokens = ["<s>", "a<think>", "<think>b", ""]
    header = header_of(
        tmp_path,
        {
            "tokenizer.ggml.tokens": texts(tokens),
            "tokenizer.ggml.scores": numbers(F32, [0.0] * 4),
            "tokenizer.ggml.token_type": numbers(I32, [1] * 4),
        },
    )
    assert header.think_tokens == ()
    assert header.shape.vocabulary == 4
    assert (header.bos_id, header.eos_id) == (1, 2)


def test_a_special_id_that_no_token_has_is_none(tmp_path: Path) -> None:
    header = header_of(tmp_path, {"tokenizer.ggml.eos_token_id": u32(len(TOKENS))})
    assert (header.eos_id, header.eos_text) == (None, "")


def test_sampling_defaults_of_the_file_are_read_as_decimals(tmp_path: Path) -> None:
    header = header_of(
        tmp_path,
        {
            "general.sampling.temp": scalar(F32, 0.6),
            "general.sampling.top_p": scalar(F32, 0.95),
            "general.sampling.top_k": scalar(I32, 20),
            "general.sampling.min_p": scalar(F32, float("nan")),
        },
    )
    assert header.sampling == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)


def test_a_mixture_of_experts_reads_only_the_experts_it_uses(tmp_path: Path, small: Path) -> None:
    size = 8 * HIDDEN * HIDDEN
    experts = DraftTensor("blk.0.ffn_up_exps.weight", (HIDDEN, HIDDEN, 8), bytes(4 * size))
    header = header_of(tmp_path, {"llama.expert_count": u32(8), "llama.expert_used_count": u32(2)}, tensors=[experts])
    dense = read_header(small)

    assert (header.experts, header.experts_used) == (8, 2)
    assert header.parameters == dense.parameters + size
    assert header.active_parameters == dense.parameters + size // 4
    assert header.decode_bytes == dense.decode_bytes + size


def test_an_embedding_with_an_output_beside_it_is_not_read_for_a_token(tmp_path: Path, small: Path) -> None:
    output = DraftTensor("output.weight", (HIDDEN, len(TOKENS)), bytes(4 * HIDDEN * len(TOKENS)))
    header = header_of(tmp_path, {}, tensors=[output])

    assert header.shape.tied is False
    assert header.decode_bytes == read_header(small).decode_bytes
    assert header.tensor_bytes == header.decode_bytes + len(output.data)


def test_without_a_file_type_the_majority_of_the_weights_names_the_quantization(tmp_path: Path) -> None:
    big = DraftTensor("big.weight", (256, 16), bytes(16 * 144), kind=12)
    draft = small_model()
    del draft.keys["general.file_type"]
    draft.tensors = [DraftTensor("norm.weight", (32,), bytes(128)), big]
    path = tmp_path / "unnamed.gguf"
    path.write_bytes(draft.encode())
    assert read_header(path).quant == "Q4_K"


@pytest.mark.parametrize(
    ("keys", "kv_heads", "kv_layers"),
    [
        ({"llama.attention.head_count_kv": numbers(U32, [2, 0])}, 2, 1),
        ({"llama.attention.recurrent_layers": numbers(I32, [1, 0])}, 2, 1),
        ({"llama.attention.head_count_kv": numbers(U32, [2, 4])}, 4, None),
        ({}, 2, None),
    ],
)
def test_layers_without_a_cache_are_not_counted(
    keys: Keys, kv_heads: int, kv_layers: int | None, tmp_path: Path
) -> None:
    shape = header_of(tmp_path, keys).shape
    assert (shape.kv_heads, shape.kv_layers) == (kv_heads, kv_layers)


@pytest.mark.parametrize(
    ("keys", "ffn"),
    [
        ({"llama.feed_forward_length": numbers(U32, [64, 96])}, 96),
        ({"llama.expert_count": u32(8), "llama.expert_used_count": u32(2)}, 128),
        (
            {
                "llama.expert_count": u32(8),
                "llama.expert_used_count": u32(2),
                "llama.expert_feed_forward_length": u32(16),
            },
            32,
        ),
        (
            {
                "llama.expert_count": u32(8),
                "llama.expert_used_count": u32(2),
                "llama.expert_feed_forward_length": u32(16),
                "llama.leading_dense_block_count": u32(1),
            },
            64,
        ),
    ],
)
def test_the_feed_forward_part_is_as_wide_as_all_experts_in_use(keys: Keys, ffn: int, tmp_path: Path) -> None:
    assert header_of(tmp_path, {"llama.feed_forward_length": u32(64), **keys}).shape.ffn == ffn


def test_the_states_of_a_hybrid_are_those_that_llama_cpp_reserves(tmp_path: Path) -> None:
    """Per recurrent layer, in f32: (kernel - 1) * (inner + 2 * groups * state) + state * inner."""
    draft = renamed("qwen35")
    names = {"conv_kernel": 4, "inner_size": 64, "state_size": 16, "group_count": 2}
    draft.keys |= {"qwen35.block_count": u32(24), **{f"qwen35.ssm.{name}": u32(n) for name, n in names.items()}}
    path = tmp_path / "hybrid.gguf"
    path.write_bytes(draft.encode())
    assert read_header(path).shape.state_bytes == 4 * 18 * (3 * (64 + 2 * 2 * 16) + 16 * 64)


def test_a_hybrid_keeps_a_cache_in_every_fourth_layer(tmp_path: Path) -> None:
    draft = renamed("qwen35")
    draft.keys["qwen35.block_count"] = u32(24)
    path = tmp_path / "hybrid.gguf"
    path.write_bytes(draft.encode())
    assert read_header(path).shape.kv_layers == 6


@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [(None, None), (u32(2), 1), (u32(0), LAYERS), (numbers(I32, [1, 1]), 2), (numbers(I32, [0, 1]), 1)],
)
def test_a_sliding_window_is_counted_where_the_file_says_which_layers(
    pattern: bytes | None, windowed: int | None, tmp_path: Path
) -> None:
    keys: Keys = {"llama.attention.sliding_window": u32(128)}
    if pattern is not None:
        keys["llama.attention.sliding_window_pattern"] = pattern
    header = header_of(tmp_path, keys)
    assert (header.sliding_window, header.windowed_layers) == (128, windowed)


def test_a_vocabulary_without_weights_is_read_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    path.write_bytes(dataclasses.replace(small_model(), tensors=[]).encode())

    header = read_header(path, allow_vocab_only=True)
    assert header.vocab_only
    assert (header.parameters, header.shape.vocabulary, header.shape.tied) == (0, len(TOKENS), None)
    assert "vocabulary without weights" in refusal(path).message


def test_texts_longer_than_a_read_are_stepped_over(tmp_path: Path, small: Path) -> None:
    long = ["x" * (3 * reader.CHUNK_BYTES + 5), "", "y"]
    header = header_of(
        tmp_path, {"a.long": texts(long), "b.long": text(long[0]), "c.long": numbers(F32, [0.5] * 600_000)}
    )
    assert header.parameters == read_header(small).parameters


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 2 * reader.CHUNK_BYTES)
    path = tmp_path / "long.gguf"
    draft = small_model()
    draft.keys["x"] = text("x" * 3 * MIB)
    path.write_bytes(draft.encode())
    assert "has a header of more than 2,097,152 bytes" in refusal(path).message


def split_model(folder: Path, names: tuple[str, str] = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")) -> Path:
    """Write the small model in two parts, as llama-gguf-split does."""
    first, second = small_model(), Draft()
    first.keys |= {"split.no": scalar(U16, 0), "split.count": scalar(U16, 2)}
    second.keys = {"split.no": scalar(U16, 1), "split.count": scalar(U16, 2)}
    first.tensors, second.tensors = first.tensors[:8], first.tensors[8:]
    for name, part in zip(names, (first, second), strict=True):
        (folder / name).write_bytes(part.encode())
    return folder / names[0]


def test_a_split_model_is_read_whole(tmp_path: Path, small: Path) -> None:
    header = read_header(split_model(tmp_path))
    whole = read_header(small)
    assert header.split_count == 2
    assert (header.parameters, header.decode_bytes) == (whole.parameters, whole.decode_bytes)
    assert header.size_bytes == sum(part.stat().st_size for part in tmp_path.glob("m-*.gguf"))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    second.unlink()
    assert refusal(first).message == f"{second} is missing: part 2 of 2 of this model"


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    second.write_bytes(second.read_bytes()[:-64])
    assert refusal(first).message.startswith(f"{second} is truncated")


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    error = refusal(tmp_path / "m-00002-of-00002.gguf")
    assert "is part 2 of 2; name the first" in error.message
    assert error.hint == f"slm show {first}"


def test_a_later_part_without_the_first_says_so(tmp_path: Path) -> None:
    split_model(tmp_path).unlink()
    message = refusal(tmp_path / "m-00002-of-00002.gguf").message
    assert message.endswith("is part 2 of 2, and the first is missing: m-00001-of-00002.gguf")


def test_a_broken_file_in_the_models_folder_is_to_be_verified(slm_home: Path, tmp_path: Path) -> None:
    (slm_home / "models").mkdir()
    for content in (b"GGUF", b"what is this\0"):
        place = slm_home / "models" / "x y.gguf"
        place.write_bytes(content)
        assert refusal(place).hint == f"slm verify {shell_word(str(place))}", content
    outside = tmp_path / "x.gguf"
    outside.write_bytes(b"GGUF")
    assert (refusal(outside).hint or "").startswith(f"slm show {shell_word(str(outside))}  ")


def test_a_part_in_another_parts_place_is_refused(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(first.read_bytes())
    assert "is not part 2 of 2, though named so" in refusal(first).message


class InMemory:
    """Files that are nowhere on this disk, given out a few bytes at a time."""

    def __init__(self, files: Mapping[Path, bytes], at_once: int, missing_bytes: int = 0) -> None:
        self.files = files
        self.at_once = at_once
        self.missing_bytes = missing_bytes
        """So many fewer bytes come than the size says."""

    def has(self, path: Path) -> bool:
        return path in self.files

    @contextmanager
    def open(self, path: Path) -> Iterator[Bytes]:
        content = self.files[path]
        stream = io.BytesIO(content[: len(content) - self.missing_bytes])
        yield Bytes(size_bytes=len(content), read=lambda size: stream.read(min(size, self.at_once)))


@pytest.mark.parametrize("at_once", [1, 7, 4096, 8 * MIB])
def test_a_header_from_elsewhere_says_the_same_however_few_bytes_come_at_a_time(at_once: int, small: Path) -> None:
    assert read_header(small, files=InMemory({small: small.read_bytes()}, at_once)) == read_header(small)


def test_a_split_model_from_elsewhere_is_read_whole_or_names_the_missing_part(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    parts = {path: path.read_bytes() for path in tmp_path.glob("m-*.gguf")}
    expected = read_header(first)
    for path in parts:
        path.unlink()

    assert read_header(first, files=InMemory(parts, 100)) == expected
    with pytest.raises(ModelBroken, match="is missing: part 2 of 2"):
        read_header(first, files=InMemory({first: parts[first]}, 100))


def test_a_source_that_ends_before_its_size_says_so(small: Path) -> None:
    cut = InMemory({small: small.read_bytes()}, 100, missing_bytes=small.stat().st_size - 500)
    with pytest.raises(ModelBroken, match="became shorter while it was read"):
        read_header(small, files=cut)


def damaged(content: bytes, seed: int, end: int) -> bytes:
    """Change 1 to 16 bytes before `end`."""
    source, result = random.Random(seed), bytearray(content)
    for _ in range(source.randint(1, 16)):
        result[source.randrange(end)] ^= source.randint(1, 255)
    return bytes(result)


def outcome(path: Path) -> str:
    """Read a header, which may only succeed or end in an error of ours."""
    try:
        return read_header(path).architecture
    except SlmError as error:
        return error.message


@pytest.mark.parametrize("seed", range(100))
def test_random_damage_ends_in_facts_or_in_a_message(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(small_model().encode(), seed, end=len(small_model().header())))
    assert outcome(path)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_to_the_real_model_ends_in_facts_or_in_a_message(
    seed: int, smollm2: Path, tmp_path: Path
) -> None:
    with smollm2.open("rb") as file:
        start = file.read(2 * MIB)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(start, seed, end=64 << 10))
    os.truncate(path, smollm2.stat().st_size)
    assert outcome(path)


@EASY
@given(length=st.integers(min_value=0, max_value=len(small_model().encode()) - 1))
def test_every_prefix_of_a_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "prefix.gguf"
    path.write_bytes(small_model().encode()[:length])
    assert any(words in refusal(path).message for words in ("is truncated", "is empty", "is a text"))


@EASY
@given(content=st.binary(max_size=400), keys=st.integers(0, 4), tensors=st.integers(0, 3))
def test_whatever_follows_the_counts_is_refused(content: bytes, keys: int, tensors: int, tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    frame = Draft(key_count=keys, tensor_count=tensors).header()
    path.write_bytes(frame + content)
    assert refusal(path).hint


@EASY
@given(pairs=st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=8))
def test_keys_that_nobody_asks_for_change_nothing(pairs: dict[str, str], tmp_path: Path) -> None:
    draft = small_model()
    draft.keys |= {f"x.{key}": text(value) for key, value in pairs.items()}
    path = tmp_path / "more.gguf"
    path.write_bytes(draft.encode())
    assert read_header(path).parameters == sum(len(tensor.data) // 4 for tensor in draft.tensors)


@pytest.fixture
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note every header that is really read."""
    reads: list[Path] = []

    def read(path: Path, **options: Any) -> GgufHeader:
        reads.append(path)
        return read_header(path, **options)

    monkeypatch.setattr(cache, "read_header", read)
    return reads


def test_a_checked_header_is_read_once(small: Path, tmp_path: Path, counted_reads: list[Path]) -> None:
    first = checked_header(small, tmp_path / "cache")
    again = checked_header(small, tmp_path / "cache")
    assert first == again == read_header(small)
    assert counted_reads == [small]


def test_a_changed_file_is_read_anew(small: Path, tmp_path: Path, counted_reads: list[Path]) -> None:
    checked_header(small, tmp_path / "cache")
    os.utime(small, ns=(1, 1))
    checked_header(small, tmp_path / "cache")
    small.write_bytes(small.read_bytes()[:-40])
    with pytest.raises(ModelBroken, match="is truncated"):
        checked_header(small, tmp_path / "cache")
    assert counted_reads == [small] * 3


@pytest.mark.parametrize("damage", ["", "{", "[]", "[" * 100_000, '{"format": 1}', "format", "quant"])
def test_a_damaged_cache_is_passed_over_and_mended(
    damage: str, small: Path, tmp_path: Path, counted_reads: list[Path]
) -> None:
    expected = checked_header(small, tmp_path / "cache")
    (remembered,) = (tmp_path / "cache" / "headers").iterdir()
    record = json.loads(remembered.read_text())
    if damage == "format":
        remembered.write_text(json.dumps(record | {"format": 0}))
    elif damage == "quant":
        remembered.write_text(json.dumps(record | {"header": record["header"] | {"quant": "Q2_K"}}))
    else:
        remembered.write_text(damage)

    assert checked_header(small, tmp_path / "cache") == expected
    assert checked_header(small, tmp_path / "cache") == expected
    assert len(counted_reads) == 2


def test_a_cache_that_cannot_be_written_does_no_harm(small: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert checked_header(small, tmp_path / "cache").architecture == "llama"


def test_a_remembered_vocabulary_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    path.write_bytes(dataclasses.replace(small_model(), tensors=[]).encode())
    assert checked_header(path, tmp_path / "cache", allow_vocab_only=True).vocab_only
    with pytest.raises(ModelBroken, match="without weights"):
        checked_header(path, tmp_path / "cache")


def test_the_cache_is_the_owners_alone(small: Path, tmp_path: Path) -> None:
    checked_header(small, tmp_path / "cache")
    folder = tmp_path / "cache" / "headers"
    (remembered,) = folder.iterdir()
    if os.name == "posix":
        assert (folder.stat().st_mode & 0o777, remembered.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_split_model_is_checked_each_time(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    checked_header(first, tmp_path / "cache")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelBroken, match="part 2 of 2"):
        checked_header(first, tmp_path / "cache")


def peak_bytes_of_reading(path: Path) -> int:
    tracemalloc.start()
    read_header(path, allow_vocab_only=True)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak_bytes


def test_reading_a_vocabulary_takes_little_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    words = [f"word{number}" for number in range(20_000)]
    draft = dataclasses.replace(small_model(), tensors=[])
    draft.keys |= {
        "tokenizer.ggml.tokens": texts(words),
        "tokenizer.ggml.merges": texts(words),
        "tokenizer.ggml.scores": numbers(F32, [0.0] * len(words)),
        "tokenizer.ggml.token_type": numbers(I32, [1] * len(words)),
    }
    path.write_bytes(draft.encode())
    assert peak_bytes_of_reading(path) < 4 * path.stat().st_size + 2 * reader.CHUNK_BYTES


@pytest.mark.skipif(VOCABULARIES is None, reason="LLAMA_CPP_MODELS does not name llama.cpp's folder of vocabularies")
def test_the_vocabulary_of_an_8b_model_costs_little_memory() -> None:
    path = Path(VOCABULARIES or "") / "ggml-vocab-llama-bpe.gguf"
    assert read_header(path, allow_vocab_only=True).shape.vocabulary == 128_256
    assert peak_bytes_of_reading(path) < 40 * MIB
