"""`slm convert`: what a checkpoint must be, what is checked first, the exporter's child, and the models that come out.

What needs optimum-intel is skipped where the extra `convert` is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slm_local.convert import convert, export, read_checkpoint, spec_of
from slm_local.convert.child import LOG_LIMIT_BYTES, MARK, Ended, one_at_a_time, run_child
from slm_local.convert.export import NEEDED_PACKAGES, check_room, place_for
from slm_local.convert.exporter import NPU_SETTINGS, PLAIN_INT4, settings_for
from slm_local.errors import DoesNotFit, EngineMissing, Interrupted, ModelBroken, UsageError
from slm_local.generation import Control, LoadSettings, Piece, Prompt, PromptRun, Sampling
from slm_local.installed import add_line
from slm_local.paths import paths
from slm_local.registry import find_local, load_registry, scan
from slm_local.registry.local import MADE
from tests.command import Result, child_environment, slm
from tests.hub.fixtures import hub
from tests.hub.pulling import wait_until
from tests.hub.server import HubServer

__all__ = ["hub", "slm"]

Slm = Callable[..., Result]

CHECKPOINT = Path(__file__).parent / "data" / "tiny-reasoner"

IS_INSTALLED = all(importlib.util.find_spec(name) for name in NEEDED_PACKAGES)

needs_exporter = pytest.mark.skipif(not IS_INSTALLED, reason="optimum-intel is not installed (extra: convert)")

PROBLEMS = 100
AGREEING = 95
MOST_TOKENS = 400


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "owner" / "tiny-reasoner"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every package count as installed: for what is decided before the exporter runs."""
    monkeypatch.setattr(export, "find_spec", lambda name: object())


# ---- what a checkpoint must be


def test_a_checkpoint_is_read_without_its_weights() -> None:
    found = read_checkpoint(CHECKPOINT)
    assert found.name == "tiny-reasoner"
    assert found.weights_bytes == (CHECKPOINT / "model.safetensors").stat().st_size == found.plain_bytes


def test_weights_stored_quantized_are_counted_unpacked(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    found = read_checkpoint(checkpoint)
    assert found.plain_bytes == 4 * found.weights_bytes


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt"])
def test_pickled_weights_are_refused_unopened(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(ModelBroken, match="pickles"):
        read_checkpoint(checkpoint)


def test_a_checkpoint_without_weights_or_tokenizer_is_named_so(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelBroken, match="no tokenizer"):
        read_checkpoint(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelBroken, match=r"no \.safetensors"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_configuration_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"config\.json"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights_never_reach_the_exporter(checkpoint: Path, keep: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelBroken, match=r"model\.safetensors"):
        read_checkpoint(checkpoint)


def test_a_missing_part_of_the_weights_is_named(checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelBroken, match="00002"):
        read_checkpoint(checkpoint)


def test_a_checkpoint_is_known_by_its_name_and_shape(checkpoint: Path) -> None:
    models = load_registry().models
    known = spec_of(read_checkpoint(checkpoint), models)
    assert known is not None
    assert known.id == "tiny-reasoner"
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert spec_of(read_checkpoint(checkpoint), models) is None
    renamed = checkpoint.rename(checkpoint.with_name("another"))
    assert spec_of(read_checkpoint(renamed), models) is None


def test_a_fetched_checkpoint_is_known_by_its_place(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "deepseek-ai" / "DeepSeek-R1-Distill-Llama-8B"))
    known = spec_of(read_checkpoint(folder), load_registry().models)
    assert known is not None
    assert known.id == "deepseek-r1-distill-llama-8b"


# ---- what is refused before anything is written


def test_without_the_exporter_the_hint_adds_it(slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    refused = slm("convert", str(CHECKPOINT))
    assert refused.code == EngineMissing.exit_code
    assert add_line("convert") in refused.err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny-reasoner",), "no original weights"),
        ((str(CHECKPOINT), "--weights", "int3"), "int4, int8, fp16"),
        ((str(CHECKPOINT), "--weights", "int8", "--npu"), "for the NPU"),
        (("hf:owner/repo",), "is no checkpoint"),
        ((str(CHECKPOINT), "--out", str(CHECKPOINT)), "stays as it is"),
    ],
)
def test_what_cannot_be_converted_is_refused(slm: Slm, arguments: tuple[str, ...], message: str) -> None:
    refused = slm("convert", *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert refused.out == ""


@pytest.mark.usefixtures("installed")
def test_too_little_memory_is_seen_first_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())._replace(free=10 * 10**9)
    monkeypatch.setattr(export, "available_memory_bytes", lambda: 8 * 10**9)
    with pytest.raises(DoesNotFit, match=r"25\.0 GB of memory \(16\.0 GB of weights\), and 8\.0 GB are free"):
        check_room("m", 16 * 10**9, "int4", place_for("m", "int4"))
    with pytest.raises(DoesNotFit) as error:
        check_room("m", 5 * 10**9, "int4", place_for("m", "int4"))
    assert error.value.hint == "--weights int8"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_room("m", 5 * 10**9, "int8", place_for("m", "int8"))


@pytest.mark.usefixtures("installed")
def test_a_full_disk_is_seen_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFit, match="has 1 kB free"):
        convert(read_checkpoint(checkpoint), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("installed")
def test_a_model_is_fetched_only_when_it_can_be_converted(
    hub: HubServer, slm: Slm, slm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("maker/original", {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()})
    (slm_home / "config").mkdir()
    entry = '[models.mine]\nname = "Mine"\noriginal_repo = "maker/original"\n'
    variants = 'variants = [{ quant = "Q8_0", repo = "maker/m-GGUF", file = "m.gguf" }]\n'
    (slm_home / "config" / "models.toml").write_text(f"schema = 1\n{entry}{variants}", encoding="utf-8")
    monkeypatch.setattr(export, "available_memory_bytes", lambda: 1000)
    refused = slm("convert", "mine")
    assert refused.code == DoesNotFit.exit_code
    assert "4 MB of weights" in refused.err
    assert not [seen for seen in hub.requests if seen.route == "cdn"]


def test_one_conversion_runs_at_a_time() -> None:
    with one_at_a_time(), pytest.raises(UsageError, match="another slm"), one_at_a_time():
        pass
    with one_at_a_time():
        pass


# ---- the settings


def test_settings_for_an_npu_are_those_known_to_run_there() -> None:
    assert (
        settings_for("int4", [], npu=True) == NPU_SETTINGS == {"bits": 4, "sym": True, "group_size": -1, "ratio": 1.0}
    )
    assert settings_for("fp16", [], npu=False) is None


def test_settings_follow_the_model_and_leave_out_what_needs_texts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {
        "light": {"bits": 4, "sym": False, "group_size": 64, "ratio": 0.8, "quant_method": "awq"},
        "heavy": {"bits": 4, "group_size": -1, "dataset": "wikitext2", "scale_estimation": True},
    }
    fake = ModuleType("optimum.intel.openvino.configuration")
    fake.get_default_quantization_config = lambda name, weight_format: known.get(name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    for name in ("optimum", "optimum.intel", "optimum.intel.openvino"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    fallback = {"group_size_fallback": "adjust"}
    assert settings_for("int4", ["other", "light"], npu=False) == {**known["light"], **fallback}
    assert settings_for("int4", ["other"], npu=False) == {**PLAIN_INT4, **fallback}
    assert "wikitext2" not in capsys.readouterr().out
    assert settings_for("int4", ["heavy"], npu=False) == {"bits": 4, "group_size": -1}
    assert "wikitext2" in capsys.readouterr().out


# ---- the child


def ended(order: dict[str, Any], lines: list[str] | None = None, control: Control | None = None) -> Ended:
    said = lines if lines is not None else []
    return run_child("tests.talker", order, what="talk", control=control or Control(), on_line=said.append)


def test_every_state_of_a_progress_bar_is_a_line_without_escapes() -> None:
    lines: list[str] = []
    done = ended({"text": "\x1b[?25lbar 10%\rbar \x1b[35m20%\x1b[0m\r\nlast, without an end"}, lines)
    assert lines == ["bar 10%", "bar 20%", "last, without an end"]
    assert done.status == 0
    assert done.log_path.read_text() == "".join(f"{line}\n" for line in lines)


def test_a_failed_child_is_told_by_its_last_line() -> None:
    assert ended({"text": "why\n\n", "status": 3}).reason == "why"
    assert ended({"status": 3}).reason == "exited with status 3"


def test_a_log_stays_within_its_bound() -> None:
    done = ended({"text": "x" * 999 + "\n", "repeat": 1500})
    assert done.log_path.stat().st_size <= LOG_LIMIT_BYTES
    assert done.log_path.read_text().startswith("[log emptied")


def test_a_child_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    lines: list[str] = []
    ended({"variable": "HF_TOKEN"}, lines)
    assert lines[0] == "None"


def test_a_cancel_kills_the_child() -> None:
    control = Control()
    pids: list[int] = []

    def see(line: str) -> None:
        if line:
            pids.append(int(line))
            control.cancel()

    with pytest.raises(Interrupted):
        run_child("tests.talker", {"pid": True, "stays": True}, what="talk", control=control, on_line=see)
    assert not is_alive(pids[0])


def test_a_child_ends_with_its_parent() -> None:
    code = (
        "from slm_local.convert.child import run_child\nfrom slm_local.generation import Control\n"
        "run_child('tests.talker', {'pid': True, 'stays': True}, what='talk', control=Control(),"
        " on_line=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or ") Z " not in status.read_text()
    return False


# ---- where the result is found


def len_of(file: Path) -> int:
    return file.stat().st_size


def put_converted(folder: Path, record: bytes) -> Path:
    folder.mkdir(parents=True)
    for part in ("model", "tokenizer", "detokenizer"):
        for suffix in (".xml", ".bin"):
            (folder / f"openvino_{part}{suffix}").write_bytes(b"x")
    (folder / MADE).write_bytes(record)
    return folder


def test_a_converted_folder_is_a_variant_of_its_model_and_of_no_other(tmp_path: Path) -> None:
    registry = load_registry()
    record = {"model": "deepseek-r1-distill-llama-8b", "quant": "int4-cw", "device": "npu"}
    folder = put_converted(tmp_path / "local" / "any-name", json.dumps(record).encode())
    found = [(spec.id, each) for spec in registry.models for each in find_local(spec, tmp_path) if not spec.embedded]
    assert [name for name, _ in found] == [record["model"]]
    variant = found[0][1]
    assert (variant.kind, variant.quant, variant.device) == ("openvino", "int4-cw", "npu")
    assert (variant.path, variant.size_bytes) == (str(folder), sum(map(len_of, folder.iterdir())))


@pytest.mark.parametrize("record", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"model": 7}'])
def test_a_damaged_record_of_a_conversion_names_no_model(tmp_path: Path, record: bytes) -> None:
    folder = put_converted(tmp_path / "local" / "x", record)
    assert scan(tmp_path) == {"x": [folder]}
    for spec in load_registry().models:
        assert all(each.path != str(folder) for each in find_local(spec, tmp_path))


# ---- end to end


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Convert the committed checkpoint in all three forms, each by a command of its own with a home of its own."""
    homes = {weights: tmp_path_factory.mktemp(f"home-{weights}") for weights in ("fp16", "int8", "int4")}
    running = {
        weights: subprocess.Popen(
            [sys.executable, "-m", "slm_local", "convert", str(CHECKPOINT), "--weights", weights, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment({"SLM_HOME": str(home), "OMP_NUM_THREADS": "1"}),
        )
        for weights, home in homes.items()
    }
    made = {}
    for weights, process in running.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        made[weights] = {**json.loads(out), "home": homes[weights], "err": err}
    return made


@pytest.fixture(scope="session")
def trials() -> list[Any]:
    from slm_local.tiny.heldout import FAMILIES, draw_trials

    return [trial for family in FAMILIES for trial in draw_trials(family, 10, seed=7)][:PROBLEMS]


@pytest.fixture(scope="session")
def expected(trials: list[Any]) -> list[str]:
    """Return the final answers of the shipped GGUF file, through llama.cpp."""
    from slm_local.tiny import REASONER, WEIGHTS
    from slm_local.tiny.evaluate import Runner, final_of

    runner = Runner(WEIGHTS / f"{REASONER}.gguf", thinks=True)
    return [final_of(runner.reply(trial.text).answer) for trial in trials]


def final_answers(folder: str, texts: list[str], cache: Path) -> list[str]:
    """Answer rendered prompts greedily with an OpenVINO folder, as many at once as it takes."""
    from slm_local.backends.openvino.backend import OpenVinoBackend
    from slm_local.tiny import tokens
    from slm_local.tiny.evaluate import final_of

    backend = OpenVinoBackend()
    settings = LoadSettings(backend="openvino", model_path=folder, context_tokens=4096, threads=1, cache_dir=str(cache))
    backend.load(settings, Control(), lambda fraction: None)
    waiting = list(enumerate(texts))[::-1]
    said = ["" for _ in texts]
    live: dict[int, list[Any]] = {}
    control = Control()
    while waiting or live:
        while waiting and len(live) < backend.max_sequences:
            number, text = waiting.pop()
            run = PromptRun(text=f"{text}{tokens.THINK}\n", allows_control=True)
            handle = backend.add(Prompt(runs=(run,)), Sampling())
            live[handle.id] = [number, 0]
        for update in backend.step(control):
            if not isinstance(update, Piece):
                continue
            place = live[update.handle.id]
            said[place[0]] += update.text
            place[1] += len(update.ids)
            if update.end is None and place[1] >= MOST_TOKENS:
                backend.remove(update.handle)
            if update.end is not None or place[1] >= MOST_TOKENS:
                del live[update.handle.id]
    backend.close()
    return [final_of(each.partition(tokens.END_THINK)[2].strip()) for each in said]


@needs_exporter
@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_the_converted_model_answers_as_the_gguf_does(
    weights: str, converted: dict[str, dict[str, Any]], trials: list[Any], expected: list[str], tmp_path: Path
) -> None:
    answers = final_answers(converted[weights]["path"], [trial.text for trial in trials], tmp_path)
    assert len(answers) == PROBLEMS
    differing = [
        (trial.text, ours, theirs)
        for trial, ours, theirs in zip(trials, answers, expected, strict=True)
        if ours != theirs
    ]
    assert PROBLEMS - len(differing) >= AGREEING, differing


@needs_exporter
def test_the_model_in_four_bits_answers(
    converted: dict[str, dict[str, Any]], trials: list[Any], tmp_path: Path
) -> None:
    from slm_local.tiny.evaluate import final_of

    answers = final_answers(converted["int4"]["path"], [trial.text for trial in trials[:20]], tmp_path)
    right = sum(ours == final_of(trial.answer) for ours, trial in zip(answers, trials, strict=False))
    assert right >= 10
    sizes = [converted[weights]["after_bytes"] for weights in ("int4", "int8", "fp16")]
    assert sizes == sorted(sizes)


@needs_exporter
def test_the_result_is_a_variant_of_the_model_and_nothing_else_is_left(
    converted: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = converted["int4"]
    monkeypatch.setenv("SLM_HOME", str(made["home"]))
    spec = load_registry().get("tiny-reasoner")
    assert spec is not None
    found = [each for each in find_local(spec, paths().models_dir) if each.kind == "openvino"]
    assert [(each.quant, each.path) for each in found] == [("int4", made["path"])]
    assert made["model"] == "tiny-reasoner"
    kept = {path.name for path in paths().models_dir.rglob("*")} - {path.name for path in Path(made["path"]).iterdir()}
    assert kept == {"local", Path(made["path"]).name}
    assert "it loads" in made["err"]
    assert str(CHECKPOINT.parent) not in (Path(made["path"]) / MADE).read_text()


@needs_exporter
def test_a_stop_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    control = Control()
    out = tmp_path / "made" / "here"
    with pytest.raises(Interrupted):
        convert(read_checkpoint(checkpoint), "fp16", out=out, on_progress=lambda _: control.cancel(), control=control)
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("failed", "told"),
    [
        ("ValueError: unheard-of is not\nsupported", "unheard-of is not supported"),
        ("ValueError: pass trust_remote_code=True", "needs code from its repository, and that is never run"),
    ],
)
def test_a_failed_conversion_ends_with_the_reason_and_the_log(
    checkpoint: Path, slm: Slm, monkeypatch: pytest.MonkeyPatch, failed: str, told: str
) -> None:
    said = f"Traceback ...\n\n{MARK}{json.dumps({'failed': failed})}\n"

    def fail(module: str, order: dict[str, Any], **more: Any) -> Ended:
        return run_child("tests.talker", {"text": said, "status": 1}, **more)

    monkeypatch.setattr(export, "run_child", fail)
    refused = slm("convert", str(checkpoint), "--out", str(checkpoint.with_name("out")))
    assert refused.code == ModelBroken.exit_code
    assert told in refused.err
    assert "its log: " in refused.err
    assert "Traceback" not in refused.err
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C can't be sent to one process there")
@needs_exporter
def test_ctrl_c_ends_the_command_and_its_child(tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    with subprocess.Popen(
        [sys.executable, "-m", "slm_local", "convert", str(CHECKPOINT), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as command:
        assert command.stderr is not None
        assert "starting the exporter" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        command.stderr.read()
    assert command.returncode == 130
    assert list((tmp_path / "made").iterdir()) == []
