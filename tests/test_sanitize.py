"""What a terminal may be shown: no control gets through, nothing is lost, and chunks make no difference."""

from __future__ import annotations

import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_local.sanitize import Visible, one_line, shell_word, visible

ALLOWED_CONTROLS = {"\n", "\t"}
ALLOWED_FORMATS = {"\u200c", "\u200d", "\u00ad"}
"""Joiners, without which scripts and emoji break, and the soft hyphen, which is shown or is not and moves nothing."""

SIGNS = {chr(code) for code in (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)}
"""Format characters that are seen: signs before numbers."""

HIEROGLYPHS = range(0x13430, 0x13460)
"""Format characters that stack Egyptian signs."""

TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("\r\n\x1b\x9b\x07\u202e\u200d\u2028\ufeff\ud800\U000e0041😀"),
        st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF),
    )
)


def chunks_of(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, ünïcödé, 漢字\n\ttabbed", "plain text, ünïcödé, 漢字\n\ttabbed"),
        ("\x1b]52;c;cm0gLXJm\x07", "␛]52;c;cm0gLXJm␇"),
        ("\x1b[2J\x1b[6n", "␛[2J␛[6n"),
        ("\x00\x08\x0b\x7f", "␀␈␋␡"),
        ("\x9b31m\x85", "⟨U+009B⟩31m⟨U+0085⟩"),
        ("one\r\ntwo\rthree", "one\ntwo␍three"),
        ("\r\r\n", "␍\n"),
        ("gpj.\u202eexe", "gpj.⟨U+202E⟩exe"),
        ("a\u200bb\u2060c\ufeffd\u200ee\u061cf", "a⟨U+200B⟩b⟨U+2060⟩c⟨U+FEFF⟩d⟨U+200E⟩e⟨U+061C⟩f"),
        ("a\u2028b\u2029c", "a⟨U+2028⟩b⟨U+2029⟩c"),
        ("hi\U000e0041\U000e007f", "hi⟨U+E0041⟩⟨U+E007F⟩"),
        ("half \ud83d of a character", "half ⟨U+D83D⟩ of a character"),
        ("👩\u200d💻 ❤\ufe0f", "👩\u200d💻 ❤\ufe0f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_untrusted_text_is_shown_harmless(raw: str, shown: str) -> None:
    assert visible(raw) == shown


@pytest.mark.parametrize("raw", ["\x1b", "\x9b", "\u202e", "\ud800"])
def test_what_is_shown_can_be_shown_again_unchanged(raw: str) -> None:
    assert visible(visible(raw)) == visible(raw) != raw


def test_no_control_character_of_unicode_gets_through() -> None:
    shown = set(visible("".join(map(chr, range(0x110000)))))
    controls = {each for each in shown if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")}
    formats = {each for each in shown if unicodedata.category(each) == "Cf" and ord(each) not in HIEROGLYPHS}
    assert controls == ALLOWED_CONTROLS
    assert formats - SIGNS == ALLOWED_FORMATS


@given(TEXTS)
def test_whatever_comes_can_be_written_to_a_terminal(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert all(unicodedata.category(each) != "Cc" or each in "\n\t" for each in shown)


@given(TEXTS, st.lists(st.integers(min_value=0)))
def test_chunks_make_no_difference(text: str, cuts: list[int]) -> None:
    stream = Visible()
    shown = "".join(stream.feed(chunk) for chunk in chunks_of(text, cuts))
    assert shown + stream.flush() == visible(text)


@given(TEXTS)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert visible(visible(text)) == visible(text)


def test_a_return_at_the_end_of_a_chunk_waits_for_what_follows() -> None:
    stream = Visible()
    assert [stream.feed("a\r"), stream.feed("\nb\r"), stream.flush(), stream.flush()] == ["a", "\nb", "␍", ""]


def test_a_stream_may_be_used_again_after_its_end() -> None:
    stream = Visible()
    stream.feed("a\r")
    stream.flush()
    assert stream.feed("\nb") == "\nb"


def test_a_name_becomes_one_line_within_its_limit() -> None:
    assert one_line("a\nb\tc\r\nd\x1b[0m") == "a␊b␉c␊d␛[0m"
    assert one_line("x" * 10, limit=10) == "x" * 10
    assert one_line("x" * 11, limit=10) == "x" * 9 + "…"


@given(TEXTS, st.integers(min_value=1, max_value=30))
def test_one_line_never_exceeds_its_limit(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert "\n" not in line


@pytest.mark.parametrize(
    ("word", "posix", "windows"),
    [
        ("/a/b-c.gguf", "/a/b-c.gguf", "/a/b-c.gguf"),
        ("hf:own/x-GGUF", "hf:own/x-GGUF", "hf:own/x-GGUF"),
        ("/a b.gguf", "'/a b.gguf'", '"/a b.gguf"'),
        ("/$(touch x)`y`.gguf", "'/$(touch x)`y`.gguf'", '"/`$(touch x)``y``.gguf"'),
        ("/it's.gguf", "'/it'\"'\"'s.gguf'", '"/it\'s.gguf"'),
        ("a\u201d; calc", "'a\u201d; calc'", '"a`\u201d; calc"'),
        ("C:\\a(1)\\x.gguf", "'C:\\a(1)\\x.gguf'", '"C:\\a(1)\\x.gguf"'),
        ("", "''", '""'),
    ],
)
def test_a_word_is_quoted_where_a_shell_would_read_more_into_it(word: str, posix: str, windows: str) -> None:
    assert shell_word(word, "linux") == posix
    assert shell_word(word, "win32") == windows


@pytest.mark.skipif(sys.platform == "win32", reason="asks the POSIX shell")
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_a_shell_reads_a_word_as_it_was(text: str) -> None:
    import shlex

    assert shlex.split(shell_word(text, "linux")) == [text]
