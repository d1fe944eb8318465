"""The registry: what ships holds together, every fault has its message, every reference means something."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local.errors import ConfigError, UnknownModel, UsageError
from slm_local.generation import ReasoningTags, ThinkControl, Thinking
from slm_local.gguf_header import GgufHeader, read_header
from slm_local.model import ModelSpec, Shape, Variant
from slm_local.reasoning import FAMILIES
from slm_local.registry import Registry, catalogue, derived_thinking, find_local, load_registry, scan, spec_for_file
from slm_local.sanitize import shell_word
from tests.gguf_files import small_model, text

ROOT = Path(__file__).parents[1]

SECOND_HAND = {
    *("deepseek-moe-16b-chat", "deepseek-llm-7b-chat", "qwq-32b-preview", "phi-2", "phi-4-reasoning", "lfm2.5-350m"),
}

KV_BYTES_PER_TOKEN = {
    "deepseek-r1-distill-qwen-1.5b": 28,
    "deepseek-r1-distill-qwen-7b": 56,
    "deepseek-r1-distill-qwen-14b": 192,
    "deepseek-r1-distill-qwen-32b": 256,
    "deepseek-r1-distill-llama-8b": 128,
    "deepseek-r1-distill-llama-70b": 320,
    "deepseek-r1-0528-qwen3-8b": 144,
    "llama-3.1-8b-instruct": 128,
    "llama-2-7b-chat": 512,
    "qwq-32b": 256,
    "deepseek-moe-16b-chat": 224,
    "deepseek-llm-7b-chat": 480,
    "phi-2": 320,
    "smollm2-135m-instruct": 22.5,
    "smollm2-360m-instruct": 40,
    "smollm2-1.7b-instruct": 192,
    "smollm3-3b": 72,
    "qwen3-0.6b": 112,
    "qwen3-1.7b": 112,
    "qwen3-4b": 144,
    "qwen3-8b": 144,
    "qwen3-4b-thinking-2507": 144,
    "phi-4-mini-reasoning": 128,
    "phi-4-reasoning": 200,
    "gpt-oss-20b": 48,
    "qwen3.5-0.8b": 12,
    "qwen3.5-4b": 32,
    "qwen3.5-9b": 32,
    "lfm2.5-1.2b-thinking": 12,
    "minicpm5-1b": 24,
}
"""KiB, as worked out by hand from each model's published dimensions, f16."""

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a user's models.toml."""

    def to_file(text: str) -> Path:
        file = tmp_path / "models.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return to_file


def model(registry: Registry, name: str) -> ModelSpec:
    found = registry.get(name)
    assert found is not None, name
    return found


# ---- what ships


def test_every_entry_arrives_whole(registry: Registry) -> None:
    raw = tomllib.loads((ROOT / "models.toml").read_text(encoding="utf-8"))["models"]
    assert [spec.id for spec in registry.models] == list(raw)
    for spec in registry.models:
        entry = raw[spec.id]
        for key in entry.keys() - {"shape", "sampling", "sampling_no_think", "tags", "think", "variants", "scores"}:
            value = tuple(entry[key]) if isinstance(entry[key], list) else entry[key]
            assert getattr(spec, key) == value, (spec.id, key)
        for key in ("shape", "sampling", "sampling_no_think", "think"):
            assert_has(getattr(spec, key), entry.get(key, {}))
        assert (spec.tags is None) == ("tags" not in entry)
        for variant, written in zip(spec.variants, entry["variants"], strict=True):
            assert_has(variant, {key: value for key, value in written.items() if key != "size"})
            assert variant.size_is_exact == ("size" not in written)


def test_published_scores_arrive_as_their_source_prints_them(registry: Registry) -> None:
    raw = tomllib.loads((ROOT / "models.toml").read_text(encoding="utf-8"))["models"]
    scored = {model: entry["scores"] for model, entry in raw.items() if "scores" in entry}
    assert len(scored) == 10
    for name, written in scored.items():
        scores = model(registry, name).scores
        assert scores is not None
        found = {"source": scores.source} | {each.name: each.value for each in scores.figures}
        assert [(key, str(value)) for key, value in found.items()] == [
            (key, str(each)) for key, each in written.items()
        ]


def assert_has(value: object, written: dict[str, Any]) -> None:
    for key, expected in written.items():
        assert getattr(value, key) == expected, (value, key)


def test_every_name_in_any_case_resolves_to_its_model(registry: Registry) -> None:
    for spec in registry.models:
        for name in (spec.id, *spec.aliases):
            for written in (name, name.upper()):
                resolved = registry.resolve(written)
                assert (resolved.kind, resolved.spec) == ("registry", spec)


def test_models_known_second_hand_are_marked(registry: Registry) -> None:
    assert {spec.id for spec in registry.models if not spec.verified} == SECOND_HAND
    for spec in registry.models:
        if spec.id in SECOND_HAND:
            assert not any(each.verified for each in spec.variants if each.kind == "gguf")
        elif any(each.kind == "gguf" for each in spec.variants):
            assert spec.variants[0].verified


def test_the_default_file_is_q4_k_m_where_there_is_one(registry: Registry) -> None:
    for spec in registry.models:
        quants = [each.quant for each in spec.variants]
        if "Q4_K_M" in quants:
            assert quants[0] == "Q4_K_M", spec.id


def test_no_file_of_a_repository_stands_twice(registry: Registry) -> None:
    places = [(each.repo, each.file) for spec in registry.models for each in spec.variants if each.repo]
    assert len(places) == len(set(places))


def test_file_names_that_no_pattern_would_give_are_kept_exactly(registry: Registry) -> None:
    files = {each.file for spec in registry.models for each in spec.variants}
    assert files >= {
        "deepseek-ai_DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf",
        "Meta-Llama-3.1-8B-Instruct.Q8_0.gguf",
        "llama-2-7b-chat.Q4_K_M.gguf",
        "smollm2-360m-instruct-q8_0.gguf",
        "SmolLM3-Q4_K_M.gguf",
        "gpt-oss-20b-mxfp4.gguf",
    }


@pytest.mark.parametrize(("name", "kib"), KV_BYTES_PER_TOKEN.items())
def test_kv_cache_per_token_is_what_the_dimensions_give(registry: Registry, name: str, kib: float) -> None:
    assert model(registry, name).shape.kv_bytes_per_token() == kib * 1024


def test_r1_distills_sample_as_their_authors_say_and_open_thinking(registry: Registry) -> None:
    distills = [spec for spec in registry.models if spec.id.startswith("deepseek-r1-distill")]
    assert len(distills) == 6
    for spec in distills:
        assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.top_k) == (0.6, 0.95, None)
        assert spec.tags == ReasoningTags("<think>", "</think>", force_open=True)


def test_a_system_prompt_is_advised_against_where_the_makers_do(registry: Registry) -> None:
    advised = {spec.id for spec in registry.models if spec.advises_against_system}
    distills = {spec.id for spec in registry.models if spec.id.startswith("deepseek-r1-distill")}
    assert advised == {*distills, "deepseek-moe-16b-chat", "deepseek-llm-7b-chat"}


def test_what_the_registry_says_of_embedded_models_is_what_their_files_say(registry: Registry) -> None:
    for spec in (spec for spec in registry.models if spec.embedded):
        assert spec.variants[0].path is not None
        header = read_header(Path(spec.variants[0].path))
        assert (spec.parameters, spec.context_tokens) == (header.parameters, header.context_tokens)
        assert (spec.shape, spec.architecture) == (header.shape, header.architecture)
        assert spec.variants[0].quant == header.quant


def test_embedded_models_lie_in_the_package_and_are_greedy(registry: Registry) -> None:
    embedded = [spec for spec in registry.models if spec.embedded]
    assert [spec.id for spec in embedded] == ["tiny-reasoner", "tiny-direct"]
    for spec in embedded:
        assert spec.variants[0].path == str(ROOT / "slm_local" / "tiny" / "weights" / f"{spec.id}.gguf")
        assert spec.sampling.temperature == 0.0
        assert spec.refusal
    assert [spec.thinks for spec in embedded] == [True, False]


def test_gpt_oss_can_not_be_silenced_by_an_empty_block(registry: Registry) -> None:
    spec = model(registry, "gpt-oss")
    assert spec.think is not None
    assert not spec.think.off_block
    assert spec.tags is not None
    written = "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B"
    rest = written.partition(spec.tags.open)[2].partition(spec.tags.close)
    answer = rest[2]
    for skipped in spec.tags.skip:
        answer = answer.replace(skipped, "")
    assert (rest[0], answer) == ("A", "B")
    assert written == f"{spec.tags.open}A{spec.tags.close}{spec.tags.answer_open}B"


def test_the_page_of_models_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_models.py"))["generate"]()
    assert page == (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "python docs/generate_models.py"


def test_an_installed_package_reads_the_file_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    (tmp_path / "models.toml").write_text(
        '[models.only]\nvariants = [{ quant = "F16", repo = "a/b", file = "c.gguf" }]'
    )
    assert [spec.id for spec in load_registry().models] == ["only"]


# ---- faults

ONE_FILE = 'variants = [{ quant = "F16", repo = "a/b", file = "c.gguf" }]'

FAULTS = [
    ("[models.x]\nvariants = [", "not TOML", "line 2, column"),
    ("[models.x]\nname = 'a'\nname = 'b'", "not TOML", "line 3"),
    (f"[models.x]\n{ONE_FILE}\nparameters = 'many'", "line 3, model x: key 'parameters'", "whole number, not text"),
    (f"[models.x]\n{ONE_FILE}\nparameters = true", "line 3, model x: key 'parameters'", "not true or false"),
    (f"[models.x]\n{ONE_FILE}\nparameters = 0", "line 3, model x: key 'parameters'", "from 1 to"),
    (f"[models.x]\n{ONE_FILE}\ngated = 'no'", "line 3, model x: key 'gated'", "true or false, not text"),
    (f"[models.x]\n{ONE_FILE}\nname = ' '", "line 3, model x: key 'name'", "must not be empty"),
    (f"[models.x]\n{ONE_FILE}\nname = 3", "line 3, model x: key 'name'", "text in quotes, not a number"),
    (f"[models.x]\n{ONE_FILE}\nreleased = 2025-01-20", "line 3, model x: key 'released'", "not a date or time"),
    (f"[models.x]\n{ONE_FILE}\naliases = 'y'", "line 3, model x: key 'aliases'", "a list in [ ], not text"),
    (f"[models.x]\n{ONE_FILE}\naliases = ['a b']", "model x: item 1 of 'aliases'", "without spaces"),
    (f"[models.x]\n{ONE_FILE}\nshape = 3", "line 3, model x: key 'shape'", "a table, not a number"),
    (f"[models.x]\n{ONE_FILE}\nshape = {{ layers = -1 }}", "line 3, model x: key 'shape.layers'", "from 1 to"),
    (
        f"[models.x]\n{ONE_FILE}\n[models.x.shape]\nhidden = 1\nheads = 'a'",
        "line 5, model x: key 'shape.heads'",
        "text",
    ),
    (f"[models.x]\n{ONE_FILE}\nsampling = {{ top_p = 1.5 }}", "line 3, model x: key 'sampling.top_p'", "from 0 to 1"),
    (f"[models.x]\n{ONE_FILE}\nsampling = {{ top_p = nan }}", "line 3, model x: key 'sampling.top_p'", "from 0 to 1"),
    (f"[models.x]\n{ONE_FILE}\ntags = {{ open = '<a>' }}", "line 3, model x: key 'tags'", "lacks its key 'close'"),
    (f"[models.x]\n{ONE_FILE}\ntags = {{ open = 'a', close = 'a' }}", "key 'tags.close'", "differ"),
    (f"[models.x]\n{ONE_FILE}\nthink = 'much'", "line 3, model x: key 'think'", "takes off, on, auto"),
    (f"[models.x]\n{ONE_FILE}\nthink = {{ default = -1 }}", "line 3, model x: key 'think.default'", "not -1"),
    (f"[models.x]\n{ONE_FILE}\ncontext_tokens = 8", "line 3, model x: key 'context_tokens'", "from 32"),
    (f"[models.x]\n{ONE_FILE}\nparameters = 5\nactive_parameters = 6", "line 4, model x", "more than all"),
    (f"[models.x]\n{ONE_FILE}\nscores = {{ AIME = 1 }}", "line 3, model x: key 'scores'", "no source"),
    (f"[models.x]\n{ONE_FILE}\nurl = 'http://x'", "line 3, model x: key 'url'", "not allowed"),
    (f"[models.x]\n{ONE_FILE}\ncommand = 'rm'", "line 3, model x: key 'command'", "not allowed"),
    (f"[models.x]\n{ONE_FILE}\nbase = 'nobody'", "line 3, model x: key 'base'", "names no entry: 'nobody'"),
    ("[models.x]\nbase = 'y'\n[models.y]\nbase = 'x'", "line 4, model y: key 'base'", "circle"),
    ("[models.x]\nname = 'a'", "line 1, model x:", "has no variants"),
    ("[models.x]\nvariants = []", "line 1, model x:", "has no variants"),
    ("[models.x]\nremote = 'ftp://x'", "line 2, model x: key 'remote'", "http(s)://host/v1#model-name"),
    ("[models.x]\nremote = 'http://x#m'\nkey_env = 'sk-12'", "line 3, model x: key 'key_env'", "name of a variable"),
    (f"[models.x]\n{ONE_FILE}\nkey_env = 'KEY'", "line 3, model x: key 'key_env'", "it has no remote"),
    (f"[models.'a b']\n{ONE_FILE}", "model a b:", "a name of letters"),
    (f"[models.'hf:a']\n{ONE_FILE}", "model hf:a:", "a name of letters"),
    (f"[models.x]\n{ONE_FILE}\naliases = ['R1-8B']", "line 3, model x: key 'aliases'", "taken by deepseek-r1-distill"),
    (f"[models.tiny]\n{ONE_FILE}", "line 1, model tiny:", "taken by tiny-reasoner"),
    (f"[model.x]\n{ONE_FILE}", "line 1: key 'model'", "did you mean models?"),
    ("models = 3", "key 'models'", "must hold tables"),
    ("models.x = 3", "model x", "must be a table"),
    (f"schema = 2\n[models.x]\n{ONE_FILE}", "line 1: key 'schema'", "this program reads form 1"),
]


@pytest.mark.parametrize(("text", "place", "message"), FAULTS)
def test_a_fault_names_its_line_and_key(write: Write, text: str, place: str, message: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        load_registry(file)
    assert str(file) in caught.value.message
    assert place in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint == f"mv {shell_word(str(file))} {shell_word(f'{file}.off')}"
    assert caught.value.exit_code == 2
    assert load_registry().models, "the package's own registry still loads"


VARIANT_FAULTS = [
    ('quant = "Q8_0", repo = "a/b"', "item 2 of 'variants'", "lacks its key 'file'"),
    ('quant = "Q8_0", file = "c.gguf"', "item 2 of 'variants'", "lacks its key 'repo'"),
    ('repo = "a/b", file = "c.gguf"', "item 2 of 'variants'", "lacks its key 'quant'"),
    ('kind = "onnx", quant = "Q8_0"', "key 'kind' of item 2", "gguf, openvino or checkpoint"),
    ('kind = "openvino", quant = "int4", repo = "a/b", file = "c"', "key 'file' of item 2", "folder"),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", sha256 = "abc"', "key 'sha256' of item 2", "64 hexadecimal"),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", revision = "main"', "key 'revision' of item 2", "40 hexadecimal"),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", size = "4 pounds"', "key 'size' of item 2", '"4.6 GiB"'),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", size_bytes = 0', "key 'size_bytes' of item 2", "from 1 to"),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", size_bytes = 9, size = "9 GB"', "key 'size' of item 2", "twice"),
    ('quant = "Q8_0", repo = "a/b", file = "c.gguf", device = "tpu"', "key 'device' of item 2", "cpu, gpu or npu"),
]


@pytest.mark.parametrize(("variant", "place", "message"), VARIANT_FAULTS)
def test_a_fault_in_a_variant_names_the_line_of_that_variant(
    write: Write, variant: str, place: str, message: str
) -> None:
    first = '{ quant = "F16", repo = "a/b", file = "a.gguf", sha256 = "' + "0" * 64 + '" }'
    file = write(f"[models.x]\nvariants = [\n  {first},\n  {{ {variant} }},\n]\n")
    with pytest.raises(ConfigError) as caught:
        load_registry(file)
    assert (
        f"line 4, model x: {place}" in caught.value.message or f"line 4, model x: key {place}" in caught.value.message
    )
    assert message in caught.value.message


UNSAFE_FILES = [
    *("/etc/passwd", "../x.gguf", "a/../../x.gguf", "..", ".", "a//b.gguf", "a/", "~/x.gguf"),
    *("C:/x.gguf", "C:x.gguf", "\\\\server\\share\\x.gguf", "//server/share/x.gguf", "a\\b.gguf", "x\ty.gguf"),
    *("con", "NUL.gguf", "a/com1.gguf", "x.gguf ", "x.gguf.", "x?.gguf", "a" * 256),
]


@pytest.mark.parametrize("name", UNSAFE_FILES)
def test_a_file_name_that_is_not_safe_everywhere_is_refused(write: Write, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace("\t", "\\t")
    file = write(f'[models.x]\nvariants = [{{ quant = "F16", repo = "a/b", file = "{quoted}" }}]')
    with pytest.raises(ConfigError, match="key 'file' of item 1"):
        load_registry(file)


def test_a_file_in_a_folder_of_its_repository_is_taken(write: Write) -> None:
    file = write('[models.x]\nvariants = [{ quant = "BF16", repo = "a/b", file = "BF16/x-00001-of-00002.gguf" }]')
    assert model(load_registry(file), "x").variants[0].file == "BF16/x-00001-of-00002.gguf"


UNSAFE_REPOS = ["../../x", "a", "a/b/c", "a/b.git", "a/..", "a/b--c", "a/-b", "a/b.", "a b/c", f"a/{'b' * 95}", ""]


@pytest.mark.parametrize("name", [*UNSAFE_REPOS, "http://host/a/b", "file:///a/b", "ä/b"])
def test_a_name_that_is_no_repository_is_refused(write: Write, name: str) -> None:
    file = write(f'[models.x]\nvariants = [{{ quant = "F16", repo = "{name}", file = "c.gguf" }}]')
    with pytest.raises(ConfigError, match="key 'repo' of item 1"):
        load_registry(file)


def test_an_unknown_key_of_the_package_is_an_error_with_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    variant = '{ quant = "F16", repo = "a/b", file = "c.gguf", size_byts = 3 }'
    (tmp_path / "models.toml").write_text(f"[models.qwen3-4b]\nvariants = [\n  {variant},\n]\n")
    with pytest.raises(ConfigError) as caught:
        load_registry()
    assert caught.value.message == (
        "models.toml line 3, model qwen3-4b: key 'size_byts' of item 1 of 'variants' is unknown; "
        "did you mean size_bytes?"
    )


def test_an_unknown_key_of_a_user_is_passed_over_with_a_warning(write: Write) -> None:
    variant = '{ quant = "F16", repo = "a/b", file = "c.gguf", size_byts = 3 }'
    loaded = load_registry(
        write(f"[models.x]\nsytem = 'a'\nsampling = {{ tmp = 1, top_k = 3 }}\nvariants = [{variant}]")
    )
    assert model(loaded, "x").sampling.top_k == 3
    assert len(loaded.warnings) == 3
    assert "line 2, model x: key 'sytem' is unknown; did you mean system?; it is passed over" in loaded.warnings[0]
    assert "line 3, model x: key 'sampling.tmp' is unknown" in loaded.warnings[1]
    assert "line 4, model x: key 'size_byts' of item 1" in loaded.warnings[2]


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        load_registry(file)
    file.write_bytes(b"#" * 10_000_001)
    with pytest.raises(ConfigError, match="larger than 10 MB"):
        load_registry(file)
    file.write_text("x = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"nested too deeply|not TOML"):
        load_registry(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="can't be read"):
        load_registry(file)


def test_without_a_file_of_their_own_a_user_gets_what_ships(tmp_path: Path, registry: Registry) -> None:
    assert load_registry(tmp_path / "models.toml").models == registry.models


# ---- a user's own


def test_an_override_changes_the_keys_it_gives_and_no_others(write: Write, registry: Registry) -> None:
    file = write('[models.deepseek-r1-distill-llama-8b]\nsampling = { temperature = 0.3 }\nsystem = "Short."\n')
    before, after = model(registry, "r1-8b"), model(load_registry(file), "r1-8b")
    assert after == replace(
        before, sampling=replace(before.sampling, temperature=0.3), system="Short.", origin=str(file)
    )


def test_a_model_of_ones_own_goes_on_from_another(write: Write, registry: Registry) -> None:
    file = write('[models.Maths]\nbase = "R1-8B"\nsystem = "Box it."\naliases = ["m"]\ntags = { force_open = false }\n')
    base, own = model(registry, "r1-8b"), model(load_registry(file), "maths")
    assert (own.id, own.name, own.aliases, own.system) == ("Maths", "Maths", ("m",), "Box it.")
    assert (own.variants, own.sampling, own.think, own.shape) == (base.variants, base.sampling, base.think, base.shape)
    assert own.tags == ReasoningTags("<think>", "</think>", force_open=False)


def test_an_own_entry_may_name_a_file_anywhere_and_say_how_it_thinks(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    tags = 'tags = { open = "<think>", close = "</think>", force_open = true }'
    entry = f"[models.mine]\nvariants = [{{ quant = \"Q8_0\", path = '{file}' }}]\n{tags}\n"
    own = model(load_registry(write(entry)), "mine")
    assert own.variants[0].path == str(file)
    assert own.tags == ReasoningTags("<think>", "</think>", force_open=True)
    assert [each.path for each in find_local(own, {})] == [str(file)]


def test_bases_may_follow_one_another_in_any_order(write: Write) -> None:
    loaded = load_registry(write('[models.b]\nbase = "a"\n[models.a]\nbase = "tiny"\nsystem = "Hm."\n'))
    own = model(loaded, "b")
    assert (own.system, own.embedded) == ("Hm.", False)
    assert own.variants[0].path == model(loaded, "tiny").variants[0].path


def test_a_new_model_may_stand_on_its_own(write: Write) -> None:
    file = write(f"[models.mine]\n{ONE_FILE}\ncontext_tokens = 2048\ntags = {{ open = '<t>', close = '</t>' }}\n")
    own = model(load_registry(file), "mine")
    assert own.tags == ReasoningTags(open="<t>", close="</t>")
    assert own.think == ThinkControl()
    assert own.origin == str(file)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("think = 512", Thinking(mode="open", max_tokens=512, word="512")),
        ('think = "30s"', Thinking(mode="open", max_s=30.0, word="30s")),
        ("think = false", Thinking(mode="off", word="off")),
        ('think = { default = "max", off_block = false }', Thinking(word="max")),
    ],
)
def test_a_model_of_ones_own_may_think_so_long_where_nobody_says(write: Write, written: str, meant: Thinking) -> None:
    own = model(load_registry(write(f'[models.mine]\nbase = "r1-8b"\n{written}\nbridge = " So:"\n')), "mine")
    assert (own.thinking, own.bridge) == (meant, " So:")
    assert own.think == ThinkControl(off_block="off_block" not in written)


def test_a_name_of_ones_own_may_stand_for_a_remote(write: Write) -> None:
    loaded = load_registry(write('[models.big]\nremote = "http://box:8080/v1#qwen"\nsystem = "Hi."\n'))
    resolved = loaded.resolve("big@think=off")
    assert (resolved.kind, resolved.url, resolved.remote_model) == ("url", "http://box:8080/v1", "qwen")
    assert resolved.spec is not None
    assert resolved.spec.system == "Hi."
    assert resolved.settings == {"think": "off"}
    assert resolved.key_env == ""


def test_the_variable_with_the_key_for_a_remote_is_its_own_and_not_inherited(write: Write) -> None:
    first = '[models.big]\nremote = "http://box:8080/v1#qwen"\nkey_env = "BOX_KEY"\n'
    loaded = load_registry(write(first + '[models.other]\nbase = "big"\nremote = "http://elsewhere/v1#qwen"\n'))
    assert (loaded.resolve("big").key_env, loaded.resolve("other").key_env) == ("BOX_KEY", "")


def test_a_remote_has_the_facts_of_the_entry_it_goes_on_from_but_none_of_its_files(write: Write) -> None:
    loaded = load_registry(write('[models.lab]\nbase = "tiny-reasoner"\nremote = "http://box:8080/v1#t"\n'))
    spec = loaded.resolve("lab").spec
    assert spec is not None
    assert (spec.thinks, spec.variants, spec.context_tokens) == (True, (), 512)


# ---- references


@pytest.mark.parametrize(
    ("written", "name", "settings"),
    [
        ("r1-8b", "deepseek-r1-distill-llama-8b", {}),
        ("deepseek-r1:8b", "deepseek-r1-distill-llama-8b", {}),
        ("r1-8b@no-think", "deepseek-r1-distill-llama-8b", {"no-think": ""}),
        ("R1-8B@quant=Q8_0,device=gpu", "deepseek-r1-distill-llama-8b", {"quant": "Q8_0", "device": "gpu"}),
        ("tiny@think=off", "tiny-reasoner", {"think": "off"}),
        (" tiny@temp=0.5,no-think ", "tiny-reasoner", {"temp": "0.5", "no-think": ""}),
    ],
)
def test_settings_hang_on_a_name(registry: Registry, written: str, name: str, settings: dict[str, str]) -> None:
    resolved = registry.resolve(written)
    assert resolved.spec is model(registry, name)
    assert resolved.settings == settings
    assert resolved.reference == written


@pytest.mark.parametrize(
    ("written", "repo", "file", "quant", "revision"),
    [
        ("hf:owner/repo", "owner/repo", None, None, None),
        ("HF:owner/repo:Q4_K_M", "owner/repo", None, "Q4_K_M", None),
        ("hf.co/owner/repo", "owner/repo", None, None, None),
        ("hf.co/owner/repo:Q8_0", "owner/repo", None, "Q8_0", None),
        ("huggingface.co/owner/repo/", "owner/repo", None, None, None),
        ("https://huggingface.co/owner/repo", "owner/repo", None, None, None),
        ("https://huggingface.co/owner/repo/tree/main", "owner/repo", None, None, None),
        ("https://huggingface.co/owner/repo/blob/main/x.gguf", "owner/repo", "x.gguf", None, None),
        ("https://huggingface.co/owner/repo/resolve/main/d/x.gguf?download=true", "owner/repo", "d/x.gguf", None, None),
        ("https://hf.co/owner/repo/blob/refs%2Fpr%2F1/x.gguf", "owner/repo", "x.gguf", None, "refs/pr/1"),
    ],
)
def test_the_hub_is_named_in_every_way_people_paste(
    registry: Registry, written: str, repo: str, file: str | None, quant: str | None, revision: str | None
) -> None:
    resolved = registry.resolve(written)
    assert resolved.kind == "hf"
    assert (resolved.repo, resolved.file, resolved.quant, resolved.revision) == (repo, file, quant, revision)
    assert resolved.spec is None


def test_a_hub_repository_of_the_registry_brings_its_facts(registry: Registry) -> None:
    resolved = registry.resolve("hf:unsloth/Qwen3-4B-GGUF:q8_0@no-think")
    assert resolved.spec is not None
    assert (resolved.spec.id, [each.quant for each in resolved.spec.variants]) == ("qwen3-4b", ["Q8_0"])
    assert resolved.notes == ("unsloth/Qwen3-4B-GGUF is qwen3-4b in the registry: its facts apply",)
    assert registry.resolve("hf:unsloth/Qwen3-4B-GGUF:Q2_K").spec is None


@pytest.mark.parametrize(
    "written",
    [
        *("hf:", "hf:owner", "hf:owner/repo/more", "hf:../x", "hf.co/owner", "https://huggingface.co/owner/repo/wiki"),
        *("https://huggingface.co/owner/repo/blob/main/..%2Fx", "http://host/v1", "http://#m", "https://", "@x"),
    ],
)
def test_a_reference_that_can_not_be_is_a_usage_error(registry: Registry, written: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.resolve(written)
    assert caught.value.hint


def test_an_address_names_a_remote(registry: Registry) -> None:
    resolved = registry.resolve("https://me@host:8443/v1#Qwen/Qwen3-8B@temp=1")
    assert resolved.kind == "url"
    assert (resolved.url, resolved.remote_model) == ("https://me@host:8443/v1", "Qwen/Qwen3-8B")
    assert resolved.settings == {"temp": "1"}


def test_a_path_is_a_path_whatever_it_holds(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    for name in ("x.gguf", "x@think=off", "hf x:y.GGUF"):
        (folder / name).touch()
        resolved = registry.resolve(str(folder / name))
        assert (resolved.kind, resolved.path, resolved.settings) == ("path", str(folder / name), {})
    resolved = registry.resolve(f"{folder / 'x.gguf'}@no-think,ctx=512")
    assert (resolved.path, resolved.settings) == (str(folder / "x.gguf"), {"no-think": "", "ctx": "512"})


def test_a_known_name_goes_before_a_file_of_that_name(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "other").touch()
    assert registry.resolve("tiny").kind == "registry"
    assert registry.resolve("other").kind == "path"
    assert registry.resolve("./other").kind == "path"


def test_an_openvino_folder_is_recognised(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").touch()
    resolved = registry.resolve(str(tmp_path))
    assert (resolved.kind, resolved.path) == ("openvino", str(tmp_path))


def test_any_other_folder_says_what_is_in_it(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="neither a"):
        registry.resolve(str(tmp_path))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UnknownModel, match="name a file in it") as caught:
        registry.resolve(str(tmp_path))
    assert caught.value.hint == f"slm run {tmp_path / 'b.gguf'}"


@pytest.mark.parametrize("written", ["x.gguf", "./x", "/no/x", "~/no/such/x", "C:\\models\\x", "d:/models/x", "a\\b"])
def test_a_missing_path_says_so(registry: Registry, written: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        registry.resolve(written)
    assert caught.value.message == f"there is no file {written}"


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("qwne3-4b", "qwen3-4b"),
        ("deepseek-r1", "deepseek-r1-distill-llama-8b"),
        ("tiny-reasonr", "tiny-reasoner"),
        ("R1-8B-no@think=off", "deepseek-r1-distill-llama-8b"),
    ],
)
def test_an_unknown_name_brings_the_nearest(registry: Registry, written: str, near: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        registry.resolve(written)
    names = caught.value.message.partition("near it: ")[2].split(", ")
    assert near in names
    assert len(names) <= 3
    assert caught.value.hint == "slm ls --all"


def test_a_whole_prompt_is_no_name_and_is_not_repeated(registry: Registry) -> None:
    for prompt in ("What is 3/4 of 12?", "word " * 200, "a\x00b"):
        with pytest.raises(UnknownModel) as caught:
            registry.resolve(prompt)
        assert len(caught.value.message) < 200


def test_a_bare_repository_is_told_how_to_be_written(registry: Registry) -> None:
    with pytest.raises(UnknownModel) as caught:
        registry.resolve("unsloth/Qwen3-4B-GGUF")
    assert caught.value.hint == "slm run hf:unsloth/Qwen3-4B-GGUF"


def test_scripts_play_only_where_they_are_let(registry: Registry, tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.touch()
    with pytest.raises(UsageError, match="for tests"):
        registry.resolve(f"scripted:{script}", environment={})
    resolved = registry.resolve(f"scripted:{script}@no-think", environment={"SLM_SCRIPTED": "1"})
    assert (resolved.kind, resolved.path) == ("scripted", str(script))
    assert resolved.spec is not None
    assert resolved.spec.variants[0].path == str(script)
    with pytest.raises(UsageError, match="no script"):
        registry.resolve("scripted:nothing.jsonl", environment={"SLM_SCRIPTED": "1"})


# ---- files on this disk


def test_files_are_found_by_exact_name_below_the_models_folder(registry: Registry, tmp_path: Path) -> None:
    spec = model(registry, "qwen3-4b")
    place = tmp_path / "unsloth" / "Qwen3-4B-GGUF" / "Qwen3-4B-Q8_0.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF")
    (tmp_path / "qwen3-4b-q4_0.gguf").touch()
    (tmp_path / "Qwen3-4B-Q4_0.gguf").symlink_to(tmp_path / "gone")
    found = find_local(spec, tmp_path)
    assert [(each.quant, each.path, each.size_bytes, each.size_is_exact) for each in found] == [
        ("Q8_0", str(place), 4, True)
    ]
    assert find_local(spec, scan(tmp_path)) == found
    assert find_local(spec, tmp_path / "nothing") == ()


def test_a_file_of_two_repositories_counts_for_the_one_whose_size_it_has(tmp_path: Path) -> None:
    rounded = Variant(kind="gguf", quant="Q8_0", repo="a/b", file="x.gguf", size_bytes=5, size_is_exact=False)
    exact = Variant(kind="gguf", quant="Q8_0", repo="c/d", file="x.gguf", size_bytes=4)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for variants in ((rounded, exact), (exact, rounded)):
        (found,) = find_local(ModelSpec(id="x", name="x", variants=variants), tmp_path)
        assert found.repo == "c/d"


def test_embedded_models_are_always_here(registry: Registry, tmp_path: Path) -> None:
    spec = model(registry, "tiny")
    assert [each.path for each in find_local(spec, tmp_path)] == [spec.variants[0].path]


# ---- files that are a registry model, and files that are none


def header_of(tmp_path: Path, name: str = "x.gguf", *, template: str | None = None, title: str = "Some") -> GgufHeader:

    draft = small_model(template=template)
    draft.keys["general.name"] = text(title)
    path = tmp_path / name
    path.write_bytes(draft.encode())
    return read_header(path)


SMALL = ModelSpec(
    id="small-think",
    name="Small-Think",
    architecture="llama",
    shape=Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, vocabulary=264),
    tags=ReasoningTags(open="<t>", close="</t>", force_open=True),
    think=ThinkControl(),
    variants=(Variant(kind="gguf", quant="F32", repo="a/b", file="org_Small-Think-F32.gguf", sha256="0" * 64),),
)


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("x.gguf", "Small Think"),
        ("small-think.Q8_0.gguf", "Mix1 Ep2"),
        ("Small_Think-Q4_K_M.gguf", "?"),
        ("org_Small-Think-F16.gguf", "?"),
    ],
)
def test_a_file_is_recognised_by_name_and_shape(tmp_path: Path, file: str, title: str) -> None:
    spec, line = spec_for_file(header_of(tmp_path, file, title=title), [SMALL])
    assert (spec.id, spec.tags, spec.think) == ("small-think", SMALL.tags, SMALL.think)
    assert spec.variants[0].path == str(tmp_path / file)
    assert spec.variants[0].decode_bytes
    assert line == (f"{file} is small-think by its name and shape: its sampling and thinking tags apply")


@pytest.mark.parametrize(
    ("file", "title"),
    [("Small-Think-2507-Q8_0.gguf", "Small Think 2507"), ("x.gguf", "Small"), ("small-think-abliterated.gguf", "?")],
)
def test_a_model_made_from_it_is_not_taken_for_it(tmp_path: Path, file: str, title: str) -> None:
    spec, _ = spec_for_file(header_of(tmp_path, file, title=title), [SMALL])
    assert spec.id != "small-think"


def test_a_name_without_the_shape_is_not_enough(tmp_path: Path) -> None:
    other = replace(SMALL, shape=replace(SMALL.shape, layers=3))
    spec, _ = spec_for_file(header_of(tmp_path, title="Small Think"), [other])
    assert spec.origin == "file"
    assert spec.id == "x"


def test_a_digest_is_enough_and_so_are_name_and_size(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    _, line = spec_for_file(header, [SMALL], sha256="0" * 64)
    assert "by its digest" in line
    sized = Variant(kind="gguf", quant="Q8_0", file="x.gguf", size_bytes=header.size_bytes)
    shapeless = replace(SMALL, shape=Shape(), architecture=None, variants=(sized,))
    spec, line = spec_for_file(header, [shapeless])
    assert "by file name and size" in line
    assert spec.variants[0].quant == "Q8_0"
    _, line = spec_for_file(header, [replace(shapeless, variants=(replace(sized, size_bytes=1),))])
    assert "not in the registry" in line


def test_the_real_smollm2_is_recognised(registry: Registry, smollm2: Path) -> None:
    spec, line = spec_for_file(read_header(smollm2), registry.models)
    assert spec.id == "smollm2-135m-instruct"
    assert (spec.sampling.temperature, spec.variants[0].quant) == (0.2, "Q4_1")
    assert line == "SmolLM2-135M-Instruct.Q4_1.gguf is smollm2-135m-instruct by its name and shape: " + (
        "its sampling applies"
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.tags.open)
def test_tags_are_derived_from_a_template(tmp_path: Path, family: Any) -> None:
    template = f"{{{{ '{family.tags.open}' + m + '{family.tags.close}' }}}} "
    tags, control, source = derived_thinking(header_of(tmp_path, template=template))
    assert (tags, source) == (family.tags, "template")
    assert control == ThinkControl(off_block=not family.tags.skip)


def test_the_switch_is_derived_from_a_template(tmp_path: Path) -> None:
    template = "{% if enable_thinking %}<think></think>{% endif %}{{ '/no_think' }}"
    spec, line = spec_for_file(header_of(tmp_path, template=template), [])
    assert spec.think == ThinkControl(switch="enable_thinking", off_word="/no_think")
    assert line == (
        "x.gguf is not in the registry: from its template, thinking is marked by <think> and </think>, "
        "switched by enable_thinking, greedy, for nothing advises a sampling"
    )


def test_tags_are_derived_from_the_vocabulary_where_the_template_is_silent(tmp_path: Path) -> None:
    tags, _, source = derived_thinking(header_of(tmp_path, template="{{ messages }}"))
    assert (tags, source) == (ReasoningTags(open="<think>", close="</think>"), "vocabulary")


def test_a_model_without_marks_does_not_think(tmp_path: Path) -> None:
    header = replace(header_of(tmp_path, template="{{ messages }}"), think_tokens=())
    spec, line = spec_for_file(header, [])
    assert (spec.tags, spec.think, spec.thinks) == (None, None, False)
    assert "neither its template nor its vocabulary marks thinking" in line
