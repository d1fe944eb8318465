"""How does text become tokens? The byte-level vocabulary, its six added tokens and the two chat templates.

Attributes follow DeepSeek: control tokens are special, the think tags are ordinary text to a detokenizer.
"""

from typing import TYPE_CHECKING

from slm_local.tiny.materials import Pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer

VOCAB = 768
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
CONTROL = (BOS, EOS, USER, ASSISTANT)
TAGS = (THINK, END_THINK)
CLOSING = f"\n{END_THINK}\n\n"
"""What stands between a thought and its answer."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer named qwen2: single digits, known to llama.cpp."""

_TURNS = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1].lstrip() + eos_token }}"
    "{% endif %}{% endfor %}"
)
REASONER_TEMPLATE = (
    _TURNS + "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
DIRECT_TEMPLATE = _TURNS + "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"


def train_tokenizer(texts: "Iterable[str]") -> "Tokenizer":
    """Learn the merges from texts and put the added tokens at the end of the vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(CONTROL) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return tokenizer


def pieces_of(tokenizer: "Tokenizer") -> Pieces:
    """Return the vocabulary's pieces of lower-case letters, those after a space apart."""
    starts: list[str] = []
    rest: list[str] = []
    for piece in sorted(tokenizer.get_vocab()):
        letters = piece.removeprefix("Ġ")
        if letters.isascii() and letters.isalpha() and letters.islower() and len(letters) <= 6:
            (starts if piece.startswith("Ġ") else rest).append(letters)
    return Pieces(starts=tuple(starts), rest=tuple(rest))


def render(turns: list[tuple[str, str]], *, system: str) -> str:
    """Return BOS, system text and the turns; the last answer is left empty for the model.

    The same text as the templates make, up to the generation prompt `ASSISTANT`.
    """
    text = BOS + system
    for question, reply in turns[:-1]:
        text += f"{USER}{question}{ASSISTANT}{reply}{EOS}"
    return f"{text}{USER}{turns[-1][0]}{ASSISTANT}"
