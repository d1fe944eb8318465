"""How likely tokens were to the model: natural logarithms of probabilities, from rows of llama.cpp's logits.

The logits are raw: before penalties, temperature, truncations and a schema, as llama-server's `n_probs` has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from slm_local.generation import TokenScore


def logits_row(library: Any, context: Any, row: int, size: int) -> Any:
    """Return a row of the last decode as an array of `size` float32, in llama.cpp's own memory."""
    import numpy as np

    return np.ctypeslib.as_array(library.llama_get_logits_ith(context, row), shape=(size,))


def scored(logits: Any, token: int, most: int, text_of: Callable[[int], bytes]) -> TokenScore:
    """Return a token's score, with those of the `most` likeliest, from a row of logits; equal ones by id."""
    import numpy as np

    shifted = logits - logits.max()
    total = math.log(np.exp(shifted).sum(dtype=np.float64))
    count = min(most, len(shifted))
    likeliest = np.argpartition(shifted, -count)[-count:].tolist() if count else []

    def score(each: int, top: tuple[TokenScore, ...] = ()) -> TokenScore:
        return TokenScore(id=each, data=tuple(text_of(each)), logprob=float(shifted[each]) - total, top=top)

    return score(token, tuple(score(each) for each in sorted(likeliest, key=lambda each: (-shifted[each], each))))
