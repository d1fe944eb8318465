"""Text to tokens and back for one llama.cpp vocabulary: a piece table and an incremental UTF-8 decoder."""

from __future__ import annotations

import codecs
import ctypes
from typing import Any

FIRST_PIECE_BYTES = 64
"""Buffer for one token's text; a longer text says how long it is and is asked for again, so none is lost."""


class Vocabulary:
    """One model's vocabulary; every token's text is looked up once."""

    def __init__(self, library: Any, model: Any) -> None:
        self._lib = library
        self._vocab = library.llama_model_get_vocab(model)
        self.size: int = library.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.size
        self._eog: dict[int, bool] = {}

    def tokenize(self, text: str, *, parse_control: bool) -> list[int]:
        """Return the token ids of `text`, without BOS; control tokens' texts count only with `parse_control`."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            buffer = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, False, parse_control)
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """Return a token's text as bytes, control tokens included; a single character may span several tokens."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._look_up(token)
        return known

    def is_end(self, token: int) -> bool:
        """Return whether the token ends generation."""
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = bool(self._lib.llama_vocab_is_eog(self._vocab, token))
        return known

    def control_texts(self) -> tuple[str, ...]:
        """Return the texts of all tokens that llama.cpp finds in a text whole: control, user-defined and unknown."""
        lib = self._lib
        wanted = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return tuple(text for token in self._tokens_with(wanted) if (text := self.text_of(token)))

    def control_tokens(self) -> list[int]:
        """Return the control tokens, which are no text."""
        return self._tokens_with(self._lib.LLAMA_TOKEN_ATTR_CONTROL)

    def end_tokens(self) -> list[int]:
        """Return every token that ends generation."""
        return [token for token in range(self.size) if self.is_end(token)]

    def _tokens_with(self, attributes: int) -> list[int]:
        attributes_of, vocab = self._lib.llama_vocab_get_attr, self._vocab
        return [token for token in range(self.size) if attributes_of(vocab, token) & attributes]

    def text_of(self, token: int) -> str:
        """Return a single token's text; empty for no token (-1)."""
        return self.piece(token).decode("utf-8", "replace") if 0 <= token < self.size else ""

    @property
    def bos(self) -> int:
        """Return the BOS token's id, or -1."""
        return int(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """Return the EOS token's id, or -1."""
        return int(self._lib.llama_vocab_eos(self._vocab))

    @property
    def pad(self) -> int:
        """Return the padding token's id, or -1."""
        return int(self._lib.llama_vocab_pad(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Return whether the vocabulary asks for a BOS before every prompt."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def _look_up(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(FIRST_PIECE_BYTES)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, FIRST_PIECE_BYTES, 0, True)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, -count, 0, True)
        return buffer.raw[:count]


class TokenText:
    """Turns a stream of token bytes into text: an unfinished character waits for its rest."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Return the characters that `data` completes; bytes that are no UTF-8 become U+FFFD."""
        return self._decoder.decode(data)

    def copy(self) -> TokenText:
        """Return another one that goes on from the same unfinished character."""
        twin = TokenText()
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def flush(self) -> str:
        """Return U+FFFD for a character left unfinished, else nothing; start anew."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest
