"""The child that converts: optimum-intel's exporter on one checkpoint; `python -m slm_local.convert.exporter JSON`.

What it has to say to its parent stands on lines of its own, `MARK` and a JSON object; all else is log and bars.
Nothing is fetched, no code of a repository is run, no pickle is opened.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from slm_local.convert.child import MARK, enter

HIDDEN = ("torchvision", "openvino_telemetry")
"""Packages that the exporter asks for and this must not import: torchvision's default build does not fit a CPU build of
torch and breaks every import of transformers; the other one reports use to its makers."""

NPU_SETTINGS = {"bits": 4, "sym": True, "group_size": -1, "ratio": 1.0}
"""Known to run on NPUs: symmetric, channel-wise. Source: OpenVINO GenAI's guide for NPUs."""

PLAIN_INT4 = {"bits": 4, "sym": False, "group_size": 128, "ratio": 1.0}
"""For models that optimum-intel has no settings of its own for, as its command line does."""

FROM_DATA = ("dataset", "num_samples", "scale_estimation", "gptq", "processor", "tokenizer")
"""Settings that need texts to calibrate on, which would have to be fetched."""

TASK = "text-generation-with-past"

VERSIONS = ("optimum-intel", "openvino", "nncf", "torch", "transformers")


def say(**values: object) -> None:
    """Tell the parent something."""
    print(f"\n{MARK}{json.dumps(values)}", flush=True)


def settings_for(weights: str, names: list[str], *, npu: bool) -> dict[str, Any] | None:
    """Return how the weights are compressed, None for not at all; `names` are the model's, by which it is known."""
    if weights == "fp16":
        return None
    if weights == "int8":
        return {"bits": 8, "sym": False}
    if npu:
        return dict(NPU_SETTINGS)
    from optimum.intel.openvino.configuration import get_default_quantization_config

    known = (get_default_quantization_config(name, weight_format="int4") for name in names)
    settings: dict[str, Any] = dict(next((each for each in known if each), PLAIN_INT4))
    if settings.get("dataset"):
        say(
            warning=f"the settings known for this model calibrate on the texts {settings['dataset']}, which are not "
            "fetched: converted without them, a little less exact"
        )
    settings = {name: value for name, value in settings.items() if name not in FROM_DATA}
    if settings.get("group_size", -1) > 0:
        settings["group_size_fallback"] = "adjust"  # else rows that it does not divide are an error
    return settings


def export(checkpoint: Path, folder: Path, settings: dict[str, Any] | None) -> None:
    """Write a checkpoint as OpenVINO IR, with its tokenizer, into `folder`, by way of `plain` beside it."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVModelForCausalLM

    config = OVConfig(dtype="fp16") if settings is None else OVConfig(quantization_config=settings)
    is_done_at_once = settings is None or "quantization_config1" in settings  # gpt-oss: two passes, by main_export
    plain = folder if is_done_at_once else folder.with_name("plain")
    main_export(
        str(checkpoint),
        output=plain,
        task=TASK,
        library_name="transformers",
        ov_config=config,
        convert_tokenizer=True,
        trust_remote_code=False,
        local_files_only=True,
        model_loading_kwargs={"use_safetensors": True},
    )
    if is_done_at_once:
        return
    say(stage="compressing the weights")
    model = OVModelForCausalLM.from_pretrained(plain, compile=False, quantization_config=settings)
    say(stage="writing the model")
    model.save_pretrained(folder)
    for file in plain.iterdir():
        if not (folder / file.name).exists():
            shutil.move(file, folder / file.name)
    del model
    shutil.rmtree(plain, ignore_errors=True)  # Windows keeps what is mapped; the parent removes it


def main(order: dict[str, Any]) -> int:
    """Convert as ordered (`checkpoint`, `folder`, `names`, `weights`, `npu`); return the exit status."""
    for name in HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
    say(stage="starting the exporter")
    try:
        settings = settings_for(order["weights"], order["names"], npu=order["npu"])
        say(settings=settings, versions={name: importlib.metadata.version(name) for name in VERSIONS})
        say(stage="reading the weights")
        export(Path(order["checkpoint"]), Path(order["folder"]), settings)
    except Exception as error:
        traceback.print_exc()
        say(failed=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    enter()
    sys.exit(main(json.loads(sys.argv[1])))
