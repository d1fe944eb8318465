"""Settings from every source, in the order of the contract, and what is said of those that can't be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slm_local.config import (
    KINDS,
    OTHER_VARIABLES,
    REPL,
    SAMPLING_FIELDS,
    Settings,
    load_settings,
    sampling_option,
    with_setting,
)
from slm_local.errors import ConfigError, UsageError
from slm_local.generation import Thinking

PACKAGE = Path(__file__).resolve().parents[1] / "slm_local"


def environment(home: Path, **variables: str) -> dict[str, str]:
    return {"SLM_HOME": str(home), **variables}


def write_config(home: Path, text: str) -> Path:
    file = home / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_without_any_source_all_is_left_to_model_and_machine(tmp_path: Path) -> None:
    assert load_settings({}, environment=environment(tmp_path)) == Settings()


def test_each_source_yields_to_the_next(tmp_path: Path) -> None:
    write_config(tmp_path, 'threads = 1\nctx = 1001\ntop_k = 1\nquant = "A"\nmodel = "file"\n')
    variables = environment(tmp_path, SLM_CTX="2002", SLM_TOP_K="2", SLM_QUANT="B", SLM_MODEL="variable")
    settings = load_settings(
        {"quant": "D", "model": None}, reference_settings={"top-k": "3", "quant": "C"}, environment=variables
    )
    assert (settings.threads, settings.context_tokens, settings.sampling.top_k) == (1, 2002, 3)
    assert (settings.quant, settings.model) == ("D", "variable")


def test_toml_values_keep_their_types(tmp_path: Path) -> None:
    lines = ("think = false", "hide_thinking = true", "temperature = 1", 'stop = ["A", "B"]', 'system = "Be brief."')
    write_config(tmp_path, "\n".join(lines))
    settings = load_settings({}, environment=environment(tmp_path))
    assert (settings.think.mode, settings.hide_thinking, settings.sampling.temperature) == ("off", True, 1.0)
    assert (settings.stop, settings.system) == (("A", "B"), "Be brief.")


@pytest.mark.parametrize(("key", "value"), [("no-think", ""), ("no_think", "true"), ("think", "off")])
def test_thinking_is_switched_off_on_the_reference(tmp_path: Path, key: str, value: str) -> None:
    settings = load_settings({}, reference_settings={key: value}, environment=environment(tmp_path))
    assert settings.think.mode == "off"


def test_speculation_may_be_switched_off_in_every_source(tmp_path: Path) -> None:
    plain = environment(tmp_path)
    assert load_settings({}, environment=plain).speculation
    assert not load_settings({}, environment={**plain, "SLM_SPECULATION": "false"}).speculation
    assert not load_settings({}, reference_settings={"speculation": "false"}, environment=plain).speculation
    assert not load_settings({"speculation": False}, environment=plain).speculation
    write_config(tmp_path, "speculation = false")
    assert not load_settings({}, environment=plain).speculation


def test_how_long_to_think_may_stand_in_every_source(tmp_path: Path) -> None:
    write_config(tmp_path, 'think = 256\nbridge = " So:"\nanswer_reserve = 64\nloop_guard = false\nearly_exit = true\n')
    plain = environment(tmp_path)
    read = load_settings({}, environment=plain)
    assert (read.think.max_tokens, read.bridge, read.answer_reserve, read.loop_guard) == (256, " So:", 64, False)
    assert (read.early_exit, Settings().early_exit) == (True, False)
    assert load_settings({}, environment={**plain, "SLM_THINK": "high"}).think.max_tokens == 8192
    assert load_settings({}, environment={**plain, "SLM_THINK_BUDGET": "9"}).think.max_tokens == 9
    assert load_settings({}, reference_settings={"think": "30s"}, environment=plain).think.max_s == 30.0
    assert load_settings({}, reference_settings={"think-budget": "7"}, environment=plain).think.max_tokens == 7
    assert load_settings({"think": "max"}, environment=plain).think == Thinking(word="max")


def test_what_can_not_be_thought_says_all_that_can(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings({"think": "much"}, environment=environment(tmp_path))
    for word in ("off", "on", "auto", "low", "medium", "high", "max", "256", "30s", "5m"):
        assert word in caught.value.message
    assert caught.value.hint == "--think off"


@pytest.mark.parametrize(("word", "field"), [("temp", "temperature"), ("TOP-P", "top_p"), ("Min_P", "min_p")])
def test_a_name_may_be_written_as_fingers_know_it(word: str, field: str) -> None:
    settings = with_setting(Settings(), word, "0.5", REPL)
    assert getattr(settings.sampling, field) == 0.5


def test_default_takes_a_setting_back(tmp_path: Path) -> None:
    variables = environment(tmp_path, SLM_TEMPERATURE="0.5", SLM_THINK="off")
    settings = load_settings({"temperature": "default", "think": "default"}, environment=variables)
    assert settings == Settings()


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert load_settings({}, environment=environment(tmp_path, SLM_MODEL="", SLM_THREADS="")) == Settings()


def test_an_unknown_key_is_named_with_file_line_and_the_nearest(tmp_path: Path) -> None:
    file = write_config(tmp_path, "# mine\nthreads = 2\n\ntemprature = 0.5\n")
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environment=environment(tmp_path))
    assert caught.value.message.startswith(f"{file}, line 4: temprature:")
    assert caught.value.hint == "temperature = 0.6"


def test_a_wrong_value_is_named_with_file_and_line_and_what_may_stand_there(tmp_path: Path) -> None:
    file = write_config(tmp_path, '"threads" = "many"\n')
    with pytest.raises(ConfigError, match="takes a whole number from 1 to 512, not 'many'") as caught:
        load_settings({}, environment=environment(tmp_path))
    assert f"{file}, line 1: threads" in caught.value.message
    assert caught.value.hint == "threads = 4"


def test_a_table_is_named_with_its_line(tmp_path: Path) -> None:
    file = write_config(tmp_path, "\n[sampling]\ntop_p = 0.5\n")
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environment=environment(tmp_path))
    assert caught.value.message.startswith(f"{file}, line 2: sampling:")


@pytest.mark.parametrize(("content", "said"), [(b"a = = 1", "line 1"), (b"\xff\xfe", "UTF-8")])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    write_config(tmp_path, "").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings({}, environment=environment(tmp_path))
    assert "config.toml" in caught.value.message


def test_a_config_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config" / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=re.escape("config.toml can't be read")):
        load_settings({}, environment=environment(tmp_path))


def test_a_variable_with_a_wrong_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the variable SLM_THREADS takes a whole number") as caught:
        load_settings({}, environment=environment(tmp_path, SLM_THREADS="0"))
    assert caught.value.hint == "SLM_THREADS=4"


def test_a_variable_that_looks_misspelt_is_named_and_another_programs_is_passed_over(tmp_path: Path) -> None:
    assert load_settings({}, environment=environment(tmp_path, SLM_LICENSE_SERVER="x")) == Settings()
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environment=environment(tmp_path, SLM_THREAD="3"))
    assert caught.value.hint == "SLM_THREADS=3"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "warm"),
        ("top_p", "1.01"),
        ("top_k", "2.5"),
        ("top_k", 2.5),
        ("top_k", True),
        ("min_p", "-1"),
        ("repeat_penalty", "0"),
        ("seed", str(2**32 - 1)),
        ("seed", "-1"),
        ("ctx", "0"),
        ("ctx", "9" * 400),
        ("max_tokens", "0"),
        ("threads", "513"),
        ("think", "-1"),
        ("think", 2.5),
        ("think", "2147483648"),
        ("answer_reserve", "0"),
        ("loop_guard", "maybe"),
        ("bridge", " "),
        ("backend", "ollama"),
        ("device", "tpu"),
        ("stop", ("", "x")),
        ("stop", 3),
        ("system", "  "),
        ("system", "caf\udce9"),
        ("stop", ("caf\udce9",)),
        ("hide_thinking", "maybe"),
        ("no_think", "maybe"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_one_that_is_not(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UsageError, match="takes") as caught:
        load_settings({key: value}, environment=environment(tmp_path))
    assert caught.value.hint
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("name", KINDS)
def test_every_example_is_a_value_that_can_be(name: str) -> None:
    assert with_setting(Settings(), name, KINDS[name].example, REPL) != with_setting(Settings(), name, "default", REPL)


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_every_sampling_field_is_an_option(name: str) -> None:
    assert sampling_option(f"{name}={KINDS[name].example}") == (name, KINDS[name].example)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("repeat_penlty=1.1", "-o repeat_penalty=1.1"),
        ("ctx=4096", "--ctx 4096"),
        ("temperature", "-o repeat_penalty=1.1"),
        ("top_k=", "-o repeat_penalty=1.1"),
    ],
)
def test_an_option_that_can_not_be_names_one_that_can(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        sampling_option(text)
    assert caught.value.hint == hint


def test_an_option_of_no_known_name_names_those_near_it() -> None:
    with pytest.raises(UsageError, match="near it: presence_penalty"):
        sampling_option("presence=1")


def test_every_variable_that_the_package_reads_is_known() -> None:
    read = {name for file in PACKAGE.rglob("*.py") for name in re.findall(r"\bSLM_[A-Z_]+\b", file.read_text("utf-8"))}
    known = {f"SLM_{name.upper()}" for name in KINDS} | OTHER_VARIABLES
    assert read - {"SLM_"} <= known
