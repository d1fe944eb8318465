"""Does the shipped GGUF say what its checkpoint says? Greedy replies of llama.cpp Q8_0 beside transformers fp32.

`python -m slm_local.tiny.agreement --checkpoint DIR` prints one line of counts.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_local.tiny import REASONER, WEIGHTS, tokens
from slm_local.tiny.evaluate import MAX_TOKENS, Runner, final_of
from slm_local.tiny.heldout import FAMILIES, draw_trials

PER_FAMILY = 5


class Reference:
    """The fp16 checkpoint run in fp32 by transformers."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def ids(self, question: str) -> list[int]:
        """Return the prompt's token ids, rendered by the checkpoint's own chat template."""
        turns = [{"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def reply(self, ids: list[int]) -> str:
        """Return thought and answer as one text."""
        with torch.no_grad():
            out = self._model.generate(torch.tensor([ids]), max_new_tokens=MAX_TOKENS, do_sample=False)
        new = out[0, len(ids) :].tolist()
        text: str = self._tokenizer.decode([token for token in new if token != self._model.config.eos_token_id])
        return text


def main(arguments: list[str]) -> None:
    """Compare on a few held-out prompts of every category."""
    parser = argparse.ArgumentParser(prog="python -m slm_local.tiny.agreement")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the fp16 checkpoint")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the GGUF files")
    options = parser.parse_args(arguments)
    runner, reference = Runner(options.weights / f"{REASONER}.gguf", thinks=True), Reference(options.checkpoint)
    prompts = same_ids = same_text = same_final = 0
    for trial in (trial for family in FAMILIES for trial in draw_trials(family, PER_FAMILY, seed=5)):
        question = trial.prompt.text
        ids = reference.ids(question)
        mine = runner.reply(tokens.render([(question, "")], system=""))
        thought, _, answer = reference.reply(ids).partition(tokens.END_THINK)
        prompts += 1
        same_ids += ids == runner.prompt_ids(tokens.render([(question, "")], system=""))
        same_text += (thought.strip(), answer.strip()) == (mine.thought, mine.answer)
        same_final += final_of(answer.strip()) == final_of(mine.answer)
    print(f"{prompts} prompts: ids equal {same_ids}, whole reply equal {same_text}, final answer equal {same_final}")


if __name__ == "__main__":
    main(sys.argv[1:])
