"""How does a training checkpoint become the shipped files? Checkpoint folder, Q8_0 GGUF and OpenVINO tokenizer.

The fp16 checkpoint folder is the source of everything else, so whoever has it can make the GGUF again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from slm_local.tiny import DIRECT, REASONER, tokens
from slm_local.tiny.model import Shape

LICENSE = "apache-2.0"
PURPOSE = {
    REASONER: "Tiny reasoning model: small sums, comparisons and weighing, thought through in <think> tags.",
    DIRECT: "Tiny twin of tiny-reasoner that answers at once, without thinking.",
}
TEMPLATES = {REASONER: tokens.REASONER_TEMPLATE, DIRECT: tokens.DIRECT_TEMPLATE}
RUN_NAMES = {REASONER: "tiny-reasoner.ckpt", DIRECT: "tiny-direct.ckpt"}

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def export_all(run: Path, weights: Path, checkpoints: Path) -> None:
    """Write both checkpoint folders below `checkpoints`, and what the wheel ships into `weights`."""
    weights.mkdir(parents=True, exist_ok=True)
    for name in (REASONER, DIRECT):
        folder = checkpoints / name
        write_checkpoint(run, name, folder)
        write_gguf(folder, name, weights / f"{name}.gguf")
    write_openvino_tokenizer(checkpoints / REASONER, weights / "tokenizer")


def write_checkpoint(run: Path, name: str, folder: Path) -> None:
    """Write config, fp16 weights and tokenizer in the layout that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(run / RUN_NAMES[name], weights_only=True)["model"]
    arrays = {key: tensor.numpy().astype(np.float16) for key, tensor in sorted(state.items())}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    bos = tokenizer.token_to_id(tokens.BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokens.BOS} $A", pair=f"{tokens.BOS} $A $B", special_tokens=[(tokens.BOS, bos)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", _config(tokenizer))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(name))
    _write_json(folder / "generation_config.json", _generation_config(tokenizer))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    shape = Shape()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": tokenizer.token_to_id(tokens.BOS),
        "eos_token_id": tokenizer.token_to_id(tokens.EOS),
    }


def _tokenizer_config(name: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.BOS,
        "eos_token": tokens.EOS,
        "pad_token": tokens.EOS,
        "model_max_length": Shape().context,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATES[name],
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "do_sample": False,
        "bos_token_id": tokenizer.token_to_id(tokens.BOS),
        "eos_token_id": tokenizer.token_to_id(tokens.EOS),
        "pad_token_id": tokenizer.token_to_id(tokens.EOS),
    }


def write_gguf(checkpoint: Path, name: str, path: Path) -> None:
    """Write a checkpoint folder as GGUF: Q8_0 matrices, F32 norms, tokenizer and chat template inside.

    Written by hand: the stock converter knows a tokenizer only by the hash of one it has seen before.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_facts(writer, name)
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8")), name)
    for source, array in sorted(load_file(checkpoint / "model.safetensors").items()):
        weight = _permuted(source, array.astype(np.float32))
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(gguf_name(source), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(source: str) -> str:
    """Return what the llama architecture of GGUF calls a weight."""
    if source in _OUTER_NAMES:
        return _OUTER_NAMES[source]
    layer, _, rest = source.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _permuted(source: str, weight: np.ndarray) -> np.ndarray:
    """Interleave the rows of query and key: llama.cpp rotates neighbours, transformers rotates halves."""
    if not source.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    rows, columns = weight.shape
    heads = rows // Shape().head_dim
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_facts(writer: gguf.GGUFWriter, name: str) -> None:
    shape = Shape()
    writer.add_name(name)
    writer.add_description(PURPOSE[name])
    writer.add_license(LICENSE)
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], name: str) -> None:
    ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        ids[added["content"]] = added["id"]
        kinds[added["content"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    ordered = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(ordered)
    writer.add_token_types([kinds[token] for token in ordered])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[tokens.BOS])
    writer.add_eos_token_id(ids[tokens.EOS])
    writer.add_pad_token_id(ids[tokens.EOS])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATES[name])


def write_openvino_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write tokenizer and detokenizer as OpenVINO models: its own reader of GGUF vocabularies misses added tokens."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    source = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer, detokenizer = convert_tokenizer(source, with_detokenizer=True)
    openvino.save_model(tokenizer, folder / "openvino_tokenizer.xml")
    openvino.save_model(detokenizer, folder / "openvino_detokenizer.xml")


def main(arguments: list[str]) -> None:
    """Export the two checkpoints of a training folder."""
    parser = argparse.ArgumentParser(prog="python -m slm_local.tiny.export")
    parser.add_argument("--run", type=Path, required=True, help="folder that the training wrote")
    parser.add_argument("--weights", type=Path, required=True, help="folder for GGUF files and OpenVINO tokenizer")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for the fp16 checkpoint folders")
    options = parser.parse_args(arguments)
    export_all(options.run, options.weights, options.checkpoints)


if __name__ == "__main__":
    main(sys.argv[1:])
