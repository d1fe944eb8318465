"""The OpenVINO backend's parts that need no model here: chunks, ledger, cache, files; GPU and NPU behind a fake."""

from __future__ import annotations

import os
import shutil
import threading
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends.openvino import cache, loading, pipelines
from slm_local.backends.openvino.backend import OpenVinoBackend
from slm_local.backends.openvino.cache import compile_folder, open_cache, size_of
from slm_local.backends.openvino.library import genai, refuse_load
from slm_local.backends.openvino.pipelines import Single, make_pipeline, properties_for
from slm_local.backends.openvino.reading import LEAST_TOKENS, ChunkSize, Ledger
from slm_local.backends.openvino.sampling import sampling_fields
from slm_local.backends.openvino.support import check_folder, unreadable_file, unreadable_kind
from slm_local.errors import DoesNotFit, ModelBroken, SlmError
from slm_local.generation import Control, LoadSettings, Piece, Prompt, PromptRun, Sampling
from slm_local.gguf_header import read_header
from tests.gguf_files import small_model, text, u32
from tests.loading import load_settings_for
from tests.openvino_files import openvino_folder

QUESTION = "<｜begin▁of▁sentence｜><｜User｜>What is 47 + 38?<｜Assistant｜><think>\n"


def settings_for(path: Path, folder: Path, device: str = "cpu") -> LoadSettings:
    return replace(load_settings_for("openvino", path, context=512), device=device, cache_dir=str(folder))


# ---- chunks and what was read before


def test_a_chunk_is_what_half_a_second_is_predicted_to_hold() -> None:
    chunks = ChunkSize(512)
    assert chunks.size == LEAST_TOKENS
    chunks.record(32, 0.1)
    assert chunks.size == 128  # 160 would fit, 4 times as many as before is the most, in blocks of 32
    chunks.record(128, 0.2)
    assert chunks.size == 320
    chunks.record(320, 0.1)
    assert chunks.size == 512
    chunks.record(512, 2.0)
    assert chunks.size == 128


def test_a_chunk_never_falls_below_its_least_nor_rises_above_its_most() -> None:
    slow, small = ChunkSize(512), ChunkSize(100)
    slow.record(32, 20.0)
    assert slow.size == LEAST_TOKENS
    for _ in range(4):
        small.record(small.size, 0.001)
    assert small.size == 96


def test_a_short_rest_of_a_prompt_changes_no_prediction() -> None:
    chunks = ChunkSize(512)
    for _ in range(3):
        chunks.record(chunks.size, 0.01)
    chunks.record(5, 0.03)
    assert chunks.size == 512


def test_the_ledger_knows_the_longest_beginning_but_never_the_last_token() -> None:
    ledger = Ledger(100)
    ledger.remember([1, 2, 3, 4])
    ledger.remember([1, 2, 9])
    assert ledger.known([1, 2, 3, 7, 8]) == 3
    assert ledger.known([1, 2, 9]) == 2
    assert ledger.known([5]) == 0


def test_the_ledger_forgets_the_oldest_and_counts_a_longer_text_once() -> None:
    ledger = Ledger(10)
    ledger.remember([1] * 4)
    ledger.remember([1] * 6)
    ledger.remember([2] * 4)
    assert ledger.known([1] * 9) == 6
    ledger.remember([3] * 4)
    assert ledger.known([1] * 9) == 0
    assert ledger.known([2] * 9) == 4


# ---- sampling


@pytest.mark.parametrize(
    ("sampling", "fields"),
    [
        (Sampling(), {"do_sample": False}),
        (Sampling(top_k=5, seed=1), {"do_sample": False}),
        (
            Sampling(temperature=0.6, top_p=0.9, top_k=40, min_p=0.05),
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05},
        ),
        (Sampling(repeat_penalty=1.1), {"do_sample": False, "repetition_penalty": 1.1}),
        (Sampling(repeat_penalty=1.1, repeat_last_n=0), {"do_sample": False}),
        (
            Sampling(presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=-1),
            {"do_sample": False, "presence_penalty": 0.5, "frequency_penalty": 0.25},
        ),
    ],
    ids=["greedy", "greedy needs no truncation", "all truncations", "penalty", "penalty over nothing", "penalties"],
)
def test_sampling_is_said_in_openvinos_words(sampling: Sampling, fields: dict[str, Any]) -> None:
    assert sampling_fields(sampling) == fields


def test_every_field_of_sampling_has_a_place_in_a_generation_config() -> None:
    sampling = Sampling(
        temperature=0.6,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    fields = sampling_fields(sampling)
    config = genai().GenerationConfig(**fields, max_new_tokens=5)
    for name, value in fields.items():
        assert getattr(config, name) == pytest.approx(value), name


# ---- what can be read


@pytest.mark.parametrize(
    ("architecture", "quant", "reason"),
    [
        ("llama", "Q4_K_M", None),
        ("qwen2", "Q8_0", None),
        ("qwen3", "q4_0", None),
        (None, "F16", None),
        ("phi3", "Q4_0", "this is phi3"),
        ("llama", "Q5_K_M", "this is Q5_K_M"),
        ("llama", "Q4_K_S", "this is Q4_K_S"),
    ],
)
def test_what_openvino_reads_is_known_before_the_file_is_here(
    architecture: str | None, quant: str, reason: str | None
) -> None:
    found = unreadable_kind(architecture, quant)
    assert found is None if reason is None else found is not None and reason in found


def test_a_files_own_tensors_say_whether_openvino_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    draft = small_model()
    path.write_bytes(draft.encode())
    assert unreadable_file(read_header(path)) is None
    draft.tensors[0] = replace(draft.tensors[0], kind=8, data=bytes(34 * draft.tensors[0].dims[1]))  # Q8_0
    path.write_bytes(draft.encode())
    assert unreadable_file(read_header(path)) is None
    draft.tensors[0] = replace(draft.tensors[0], kind=6, data=bytes(22 * draft.tensors[0].dims[1]))  # Q5_0
    path.write_bytes(draft.encode())
    assert "does not know tensors in Q5_0" in (unreadable_file(read_header(path)) or "")


def test_a_rope_over_part_of_a_head_is_not_readable(tmp_path: Path) -> None:
    draft = small_model()
    draft.keys["llama.rope.dimension_count"] = u32(4)
    draft.keys["llama.rope.scaling.type"] = text("none")
    path = tmp_path / "model.gguf"
    path.write_bytes(draft.encode())
    assert "part of a head" in (unreadable_file(read_header(path)) or "")


NETWORK = '<net><layers><layer type="Const"><data offset="8" size="{size}"/></layer></layers></net>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an OpenVINO folder that is whole, as far as can be seen without a runtime."""
    place = tmp_path / "model"
    place.mkdir()
    for name in ("openvino_model", "openvino_tokenizer", "openvino_detokenizer"):
        (place / f"{name}.xml").write_text(NETWORK.format(size=100), encoding="utf-8")
        (place / f"{name}.bin").write_bytes(bytes(108))
    check_folder(place)
    return place


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("openvino_model.bin", r"has no openvino_model\.bin: the model is missing"),
        ("openvino_model.xml", r"has no openvino_model\.xml: the model is missing"),
        ("openvino_tokenizer.xml", r"has no openvino_tokenizer\.xml: its tokenizer is missing"),
        ("openvino_detokenizer.bin", r"has no openvino_detokenizer\.bin: its tokenizer is missing"),
    ],
)
def test_a_missing_file_of_a_folder_is_named(folder: Path, file: str, message: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelBroken, match=message):
        check_folder(folder)


def test_weights_that_are_one_byte_short_are_told_with_both_sizes(folder: Path) -> None:
    (folder / "openvino_model.bin").write_bytes(bytes(107))
    with pytest.raises(ModelBroken, match=r"truncated: it has 107 bytes and openvino_model\.xml needs 108"):
        check_folder(folder)


def test_a_network_that_is_cut_is_told(folder: Path) -> None:
    network = folder / "openvino_model.xml"
    network.write_text(network.read_text(encoding="utf-8")[:-7], encoding="utf-8")
    with pytest.raises(ModelBroken, match=r"openvino_model\.xml is damaged or cut"):
        check_folder(folder)


def test_a_broken_folder_never_reaches_native_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "make_pipeline", pytest.fail)
    (folder / "openvino_model.bin").unlink()
    with pytest.raises(ModelBroken):
        OpenVinoBackend().load(settings_for(folder, folder), Control(), lambda fraction: None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("at a.cpp:1:\nFailed to allocate 5000000 bytes\n"), DoesNotFit),
        (MemoryError(), DoesNotFit),
        (RuntimeError("Exception from src/core.cpp:7:\nUnable to read the model\n"), ModelBroken),
    ],
    ids=["allocation", "no memory", "anything else"],
)
def test_what_the_runtime_raises_becomes_an_error_of_ours(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        refuse_load(error, "model.gguf", "gpu")
    assert "a.cpp" not in str(caught.value)
    assert "core.cpp" not in str(caught.value)


# ---- compiled models


def grown(folder: Path, size: int, used_at: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "1.blob").write_bytes(bytes(size))
    os.utime(folder, (used_at, used_at))
    return folder


def test_a_model_that_changed_or_another_device_gets_another_folder(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    first = compile_folder(settings_for(model, tmp_path))
    assert compile_folder(settings_for(model, tmp_path)) == first
    assert compile_folder(settings_for(model, tmp_path, "gpu")) != first
    model.write_bytes(b"other")
    assert compile_folder(settings_for(model, tmp_path)) != first


def test_compiled_models_used_longest_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST_BYTES", 1000)
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(200))  # 300 with what compiling adds
    root = tmp_path / "root"
    old, middle, young = (grown(root / name, 300, at) for name, at in (("a", 10.0), ("b", 20.0), ("c", 30.0)))
    kept = open_cache(settings_for(model, root))
    assert kept is not None
    assert kept.is_dir()
    assert [each.is_dir() for each in (old, middle, young)] == [False, True, True]
    assert size_of(root) <= 1000


def test_a_model_too_large_for_the_disk_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = types.SimpleNamespace(total=4000, used=0, free=4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(900))
    assert open_cache(settings_for(model, tmp_path / "root")) is None
    assert loading._compiling(None, set(), 3.0) == "compiled in 3.0 s, and not kept: the disk has no room for it"


# ---- GPU and NPU, behind a fake of the runtime


class FakeStreamer:
    """What a listener is derived from."""


class FakePipeline:
    """Stands for both pipelines: keeps what it was made with, and writes a script of tokens for each request."""

    made: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def __init__(self, *arguments: Any, **properties: Any) -> None:
        type(self).made.append((arguments, properties))
        self.asked: list[list[int]] = []

    def generate(self, tensor: Any, config: Any, listener: Any) -> Any:
        self.asked.append(tensor.data[0].tolist())
        for token in (64, 65, 66, *[67] * (config.max_new_tokens - 3)):
            if listener.write([token]) != "go on":
                break
        return types.SimpleNamespace(finish_reasons=["length"])


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> type[FakePipeline]:
    """Put a fake in the place of the runtime's pipelines; tensors, configs and tokenizers stay real."""
    fake = type("Fake", (FakePipeline,), {"made": []})
    module = types.SimpleNamespace(
        LLMPipeline=fake,
        ContinuousBatchingPipeline=fake,
        SchedulerConfig=genai().SchedulerConfig,
        Tokenizer=genai().Tokenizer,
        StreamerBase=FakeStreamer,
        StreamingStatus=types.SimpleNamespace(STOP="stop", RUNNING="go on"),
        GenerationFinishReason=types.SimpleNamespace(LENGTH="length"),
    )
    monkeypatch.setattr(pipelines, "genai", lambda: module)
    monkeypatch.setattr(loading, "check_device", lambda name: None)
    return fake


def npu(tiny_reasoner: Path, folder: Path, **changes: Any) -> OpenVinoBackend:
    backend = OpenVinoBackend()
    settings = replace(settings_for(tiny_reasoner, folder, "npu"), **changes)
    backend.load(settings, Control(), lambda fraction: None)
    return backend


def steps(backend: OpenVinoBackend, count: int) -> list[Piece]:
    found: list[Piece] = []
    while len(found) < count and not (found and found[-1].end):
        found += [update for update in backend.step(Control()) if isinstance(update, Piece)]
    return found


def raw(ids: Sequence[int]) -> Prompt:
    return Prompt(ids=tuple(ids))


def test_an_npu_is_compiled_for_the_lengths_of_the_plan_and_never_for_the_default(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path
) -> None:
    npu(tiny_reasoner, tmp_path).close()
    npu(tiny_reasoner, tmp_path, prompt_tokens=300, response_tokens=200).close()
    (whole_arguments, whole), (_, given) = runtime.made
    assert whole_arguments[2] == "NPU"
    assert (whole["MAX_PROMPT_LEN"], whole["MIN_RESPONSE_LEN"]) == (512, 512)
    assert (given["MAX_PROMPT_LEN"], given["MIN_RESPONSE_LEN"]) == (300, 200)
    assert "CACHE_DIR" in whole
    assert "INFERENCE_NUM_THREADS" not in whole


def test_an_npu_reads_everything_again_after_an_injection(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path
) -> None:
    backend = npu(tiny_reasoner, tmp_path)
    handle = backend.add(raw([1, 2, 3]), Sampling())
    before = steps(backend, 2)
    backend.inject(handle, "ab")
    after = steps(backend, 4)
    injected = [token for piece in after if piece.injected for token in piece.ids]
    asked = backend._pipeline._pipeline.asked  # type: ignore[attr-defined]
    assert [token for piece in before for token in piece.ids] == [64, 65]
    assert asked == [[1, 2, 3], [1, 2, 3, 64, 65, *injected]]
    assert [piece.ids for piece in after if not piece.injected][:2] == [(64,), (65,)]
    backend.remove(handle)
    backend.close()
    assert (backend.max_sequences, backend.capabilities) == (1, frozenset({"rereads"}))
    assert loading.REREADS in backend._facts.notes


def test_a_thought_longer_than_an_npu_reads_again_ends_the_sequence(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path
) -> None:
    backend = npu(tiny_reasoner, tmp_path, prompt_tokens=5)
    handle = backend.add(raw([1, 2, 3]), Sampling())
    steps(backend, 2)
    backend.inject(handle, "abc")
    assert [(piece.ids, piece.end) for piece in steps(backend, 9)] == [((), "context")]
    backend.close()


def test_an_npus_sequence_that_stopped_goes_on_after_an_injection(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path
) -> None:
    backend = npu(tiny_reasoner, tmp_path)
    backend._ends = frozenset({66})
    handle = backend.add(raw([1, 2, 3]), Sampling())
    assert [(piece.ids, piece.end) for piece in steps(backend, 9)] == [((64,), None), ((65,), None), ((66,), "stop")]
    assert backend.step(Control()) == []
    backend.inject(handle, "a")
    (nudge,) = backend._words.tokenize("a", parse_control=True)
    assert [piece.ids for piece in steps(backend, 2)] == [(nudge,), (64,)]
    assert backend._pipeline._pipeline.asked[-1] == [1, 2, 3, 64, 65, nudge]  # type: ignore[attr-defined]
    backend.remove(handle)
    backend.close()


def test_a_full_context_ends_an_npus_sequence(runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path) -> None:
    backend = npu(tiny_reasoner, tmp_path)
    handle = backend.add(raw(range(500)), Sampling())
    found = steps(backend, 100)
    assert (len(found), found[-1].end, handle.prompt_tokens) == (14, "context", 500)
    backend.close()


def test_a_cancel_while_an_npu_reads_comes_back_at_once(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = threading.Event()
    monkeypatch.setattr(
        runtime, "generate", lambda self, *rest: reads.wait() and types.SimpleNamespace(finish_reasons=[])
    )
    backend = npu(tiny_reasoner, tmp_path)
    handle = backend.add(raw([1, 2, 3]), Sampling())
    control = Control()
    threading.Timer(0.05, control.cancel).start()
    assert backend.step(control) == []
    backend.remove(handle)
    reads.set()
    backend.close()


def test_an_error_in_an_npus_thread_is_raised_where_it_is_stepped(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FakePipeline, *rest: Any) -> Any:
        raise RuntimeError("Exception from somewhere.cpp:1:\nthe device was lost\n")

    monkeypatch.setattr(runtime, "generate", fails)
    backend = npu(tiny_reasoner, tmp_path)
    backend.add(raw([1, 2, 3]), Sampling())
    with pytest.raises(SlmError, match="failed to compute: the device was lost"):
        backend.step(Control())
    backend.close()


def test_a_gpu_gets_the_batched_pipeline_with_its_own_blocks_and_no_threads(
    runtime: type[FakePipeline], tiny_reasoner: Path, tmp_path: Path
) -> None:
    settings = settings_for(tiny_reasoner, tmp_path, "gpu.1")
    made = make_pipeline(settings, tiny_reasoner, properties_for(settings, tmp_path), None)
    ((arguments, properties),) = runtime.made
    scheduler, device = arguments[2:4]
    assert device == "GPU.1"
    assert properties == {"CACHE_DIR": str(tmp_path)}
    assert scheduler.enable_prefix_caching
    assert scheduler.num_kv_blocks == 512 // 16 + made.sequences + made.forks
    assert scheduler.max_num_batched_tokens == settings.batch_tokens + made.sequences + made.forks
    assert made.keeps_prefixes


def test_the_single_pipeline_answers_for_real_on_the_processor(
    tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = openvino_folder(tiny_reasoner, tmp_path)
    monkeypatch.setattr(loading, "make_pipeline", lambda *values: Single(*values[:3]))
    monkeypatch.setattr(loading, "properties_for", lambda settings, place: {"ATTENTION_BACKEND": "SDPA"})
    backend = OpenVinoBackend()
    backend.load(settings_for(folder, tmp_path / "compiled"), Control(), lambda fraction: None)
    prompt = Prompt(runs=(PromptRun(text=QUESTION, allows_control=True),))
    handle = backend.add(prompt, Sampling())
    before = steps(backend, 5)
    backend.inject(handle, "\n</think>\n\n")
    after = steps(backend, 60)
    assert len(before) == 5
    assert "".join(piece.text for piece in after if not piece.injected).startswith("The answer is")
    assert after[-1].end == "stop"
    backend.add(prompt, Sampling())
    assert "".join(piece.text for piece in steps(backend, 400)).endswith("85**.")
    backend.close()
