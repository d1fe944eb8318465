"""What a server does with a limit of thinking, and the text that only some of them send."""

from __future__ import annotations

import pytest

from slm_local.backends.openai.kinds import LLAMA_SERVER
from slm_local.backends.openai.reading import Reader
from slm_local.backends.openai.watching import Watch
from slm_local.generation import Handle, Piece
from tests.fake_engine import Json, delta
from tests.loading import THINK_TAGS

CLOSING = " So:\n</think>\n\n"
HANDLE = Handle(id=1, prompt_tokens=3, cached_tokens=None)


def watched(most: int, *texts: str) -> tuple[list[tuple[str, bool]], bool]:
    """Return what is handed out of these pieces, and whether thinking had to be ended."""
    watch = Watch(most, THINK_TAGS, "open", CLOSING)
    found: list[tuple[str, bool]] = []
    for text in texts:
        pieces, is_over = watch.released(Piece(handle=HANDLE, text=text, ids=(), tokens=1))
        for piece in pieces:
            watch.took(piece)
            found.append((piece.text, piece.injected))
        if is_over:
            return found, True
    return found, False


def test_a_bridge_that_the_server_wrote_is_marked_wherever_it_begins() -> None:
    bridge = [" S", "o:\n", "</think>"]
    assert watched(5, "a", "b", "c", "d", *bridge, "\n\n", "Yes") == (
        [*((each, False) for each in "abcd"), *((each, True) for each in bridge), ("\n\n", False), ("Yes", False)],
        False,
    )


def test_what_only_begins_like_a_bridge_is_the_models_own() -> None:
    texts = ["a", " S", "un", "\n", "b", "</think>", "Yes"]
    assert watched(50, *texts) == ([(each, False) for each in texts], False)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_server_that_goes_on_is_ended_exactly_at_the_limit(most: int) -> None:
    assert watched(most, "a", " S", "un", "d", "e") == ([(each, False) for each in ["a", " S", "un"][:most]], True)


def test_a_tag_alone_at_the_limit_gives_way_to_the_bridge() -> None:
    assert watched(1, "a", "</think>") == ([("a", False)], True)
    assert watched(9, "a", "</think>") == ([("a", False), ("</think>", False)], False)


def test_tokens_that_come_together_are_kept_out_where_not_all_have_room() -> None:
    watch = Watch(3, THINK_TAGS, "open", CLOSING)
    for text, tokens, is_over in (("ab", 2, False), ("cd", 2, True)):
        pieces, found = watch.released(Piece(handle=HANDLE, text=text, ids=(), tokens=tokens))
        assert ([each.text for each in pieces], found) == ([] if is_over else [text], is_over)
        for piece in pieces:
            watch.took(piece)


def test_what_is_held_when_a_reply_ends_is_not_lost() -> None:
    watch = Watch(5, THINK_TAGS, "open", CLOSING)
    assert watch.released(Piece(handle=HANDLE, text=" S", ids=(), tokens=1)) == ([], False)
    pieces, _ = watch.released(Piece(handle=HANDLE, text="", ids=(), tokens=1, end="stop"))
    assert [each.text for each in pieces] == [" S", ""]


def read(state: str, *texts: str) -> str:
    reader = Reader(kind=LLAMA_SERVER, tags=THINK_TAGS, state=state, is_chat=True, end_text="<eos>")  # type: ignore[arg-type]
    events: list[Json] = [delta(content=text) for text in texts]
    return "".join(stretch.text for event in events for stretch in reader.feed(event))


def test_a_tag_that_stands_in_the_prompt_is_not_read_twice_nor_the_last_token_read_as_text() -> None:
    assert read("open", "<think>\nLine", " up", "</think>", "Yes", "<eos>") == "Line up</think>Yes"
    assert read("open", "Line", " <think>") == "Line <think>"
    assert read("unopened", "<think>", "\nLine") == "<think>\nLine"
