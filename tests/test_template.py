"""Rendering a conversation: users' text kept apart from control tokens, thinking switched in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.errors import PromptTooLong, UsageError
from slm_local.generation import Message, Prompt, PromptRun, ReasoningTags, Role, ThinkControl, ThinkMode
from slm_local.template import ChatTemplate, chat, prompt_for

THINK = ReasoningTags(open="<think>", close="</think>")
CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool_call>", "  ", "À", "▁▁")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def chat_template(
    source: str = CHATML, control_texts: Sequence[str] = CONTROL, tags: ReasoningTags | None = THINK
) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", control_texts=control_texts, tags=tags)


def user(*contents: str) -> list[Message]:
    return [Message(role="user", content=content) for content in contents]


def render(content: str, source: str = CHATML, control_texts: Sequence[str] = CONTROL) -> tuple[PromptRun, ...]:
    return chat_template(source, control_texts).render(user(content), adds_bos=False)


def texts(runs: Sequence[PromptRun]) -> list[str]:
    return [run.text for run in runs]


def plain(runs: Sequence[PromptRun]) -> list[str]:
    return [run.text for run in runs if not run.allows_control]


@pytest.mark.parametrize(
    "content",
    [
        "Hi",
        "a < b > c | d",
        "<|im_end",
        "im_end|>",
        "<",
        "|",
        "> quoted\n\n  code  À",
        "\x00\x1b[1m",
        "{{ 1 }}{% raw %}",
        "\ue000\U000f0000",
    ],
)
def test_text_without_a_control_tokens_text_is_one_run(content: str) -> None:
    assert render(content) == (PromptRun(text=HEAD + content + TAIL, allows_control=True),)


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("a<|im_end|>b", ["<", "|im_end|>"]),
        ("<|im_start|><|im_end|>", ["<", "|im_start|>", "<", "|im_end|>"]),
        ("<think>x</think>", ["<", "think>", "<", "/think>"]),
        ("<tool_call>", ["<", "tool_call>"]),
        ("<|im_<|im_end|>end|>", ["<", "|im_end|>"]),
        ("<<s>>", ["<", "s>"]),
    ],
)
def test_a_control_tokens_text_becomes_plain_text_in_two_pieces(content: str, pieces: list[str]) -> None:
    runs = render(content)
    assert plain(runs) == pieces
    assert "".join(texts(runs)) == HEAD + content + TAIL
    assert all(run.text for run in runs)


def test_no_piece_is_a_control_tokens_text_itself() -> None:
    runs = render("<a><b><c>", control_texts=("<a><b><c>", "a><b", "<b>", "><", "c>"))
    assert "".join(plain(runs)) == "<a><b><c>"
    assert not any(text in piece for piece in plain(runs) for text in ("a><b", "<b>", "><", "c>"))


def test_the_template_sees_real_text_around_a_stand_in() -> None:
    source = "{{ messages[0].content.strip() }}|{{ messages[0].content.split('</think>')|length }}"
    assert "".join(texts(render(" \n</think> a \n", source))) == "</think> a|1"


def test_a_template_that_turns_on_a_tag_does_not_turn_on_a_users() -> None:
    source = "{{ 'cut' if '</think>' in messages[0].content else messages[0].content }}"
    assert "".join(texts(render("a</think>b", source))) == "a</think>b"


def test_a_private_use_character_of_the_user_is_no_stand_in() -> None:
    runs = render("\ue000<s>\ue001</s>")
    assert plain(runs) == ["<", "s>", "<", "/s>"]
    assert "".join(texts(runs)) == HEAD + "\ue000<s>\ue001</s>" + TAIL


def test_a_control_token_of_private_use_characters_is_kept_apart_too() -> None:
    runs = render("a\ue000\ue001b", control_texts=("\ue000\ue001",))
    assert plain(runs) == ["\ue000", "\ue001"]


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("{{ messages[0].content }}|im_end|>", "a<"),
        ("<{{ messages[0].content }}", "|im_end|> a"),
        ("<|{{ messages[0].content }}|>", "im_end"),
        ("<|{{ messages[0].content }}d|>", "im_en"),
        ("{{ messages[0].content.replace('/no_think', '') }}", "<|im_/no_thinkend|>"),
        ("{{ messages[0].content|replace('\n', '') }}", "<thi\nnk>"),
        ("{{ messages[0].content[1:] }}{{ messages[0].content[0] }}", "><s"),
        ("{{ messages[0].content }}{{ messages[1].content }}", "<think"),
    ],
)
def test_a_control_token_that_neighbours_would_form_is_kept_apart(source: str, content: str) -> None:
    runs = chat_template(source).render(user(content, ">"), adds_bos=False)
    whole = chat_template(source, control_texts=(), tags=None).render(user(content, ">"), adds_bos=False)
    assert "".join(texts(runs)) == "".join(texts(whole))
    assert any(text in "".join(texts(whole)) for text in (*CONTROL, "<think>"))
    assert not any(text in run.text for run in runs for text in ("<|im_end|>", "<think>", "<s>"))


@given(
    contents=st.lists(
        st.lists(
            st.sampled_from(
                ("<", ">", "|", "<|", "|>", "im_", "end", "<|im_end|>", "<s>", "</", "think>", "a", " ", "\n")
            ),
            max_size=10,
        ).map("".join),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=150, deadline=None)
def test_no_users_text_adds_or_takes_a_control_token(contents: list[str]) -> None:
    messages = user(*contents)
    runs = chat_template().render(messages, adds_bos=False)
    scaffold = [run.text for run in runs if run.allows_control]  # each is tokenized by itself
    assert sum(text.count("<|im_start|>") for text in scaffold) == len(messages) + 1
    assert sum(text.count("<|im_end|>") for text in scaffold) == len(messages)
    assert not any(text in run.text for run in runs for text in ("<s>", "</s>", "<think>", "</think>"))
    assert not any(text in piece for piece in plain(runs) for text in CONTROL[:5])
    expected = "".join(f"<|im_start|>{m.role}\n{m.content.strip()}<|im_end|>\n" for m in messages)
    assert "".join(texts(runs)) == expected + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "adds_bos", "start"),
    [
        ("{{ messages[0].content }}", True, ["<s>Hi"]),
        ("{{ messages[0].content }}", False, ["Hi"]),
        ("{{ bos_token }}{{ messages[0].content }}", True, ["<s>Hi"]),
        ("{{ bos_token }}{{ messages[0].content }}", False, ["<s>Hi"]),
    ],
)
def test_a_bos_is_added_when_asked_for_and_not_there(source: str, adds_bos: bool, start: list[str]) -> None:
    assert texts(chat_template(source).render(user("Hi"), adds_bos=adds_bos)) == start


def test_a_bos_that_the_user_wrote_is_not_the_prompts() -> None:
    runs = chat_template("{{ messages[0].content }}").render(user("<s>Hi"), adds_bos=True)
    assert [(run.text, run.allows_control) for run in runs] == [
        ("<s>", True),
        ("<", False),
        ("s>", False),
        ("Hi", True),
    ]


def test_a_vocabulary_without_bos_adds_none() -> None:
    template = ChatTemplate("{{ messages[0].content }}", bos_text="", eos_text="", control_texts=(), tags=None)
    assert texts(template.render(user("Hi"), adds_bos=True)) == ["Hi"]


@pytest.mark.parametrize(
    ("content", "shown"),
    [("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "😀"), ("\udcff<s>", "\ufffd<s>"), ("a\x00b", "a\x00b")],
)
def test_text_that_utf_8_cannot_hold_is_mended(content: str, shown: str) -> None:
    text = "".join(texts(render(content)))
    assert text == HEAD + shown + TAIL
    assert text.encode()


def test_a_lone_surrogate_of_the_template_is_mended() -> None:
    assert texts(render("", r"{{ '\ud800' }}")) == ["\ufffd"]


def test_an_empty_rendering_has_no_runs() -> None:
    assert render("", "{{ messages[0].content }}") == ()


def test_megabytes_of_conversation_are_refused_with_both_counts() -> None:
    with pytest.raises(PromptTooLong, match=r"8,388,609 .* 8,388,608"):
        render("a" * (chat.LONGEST_CONVERSATION + 1))


SWITCH = ThinkControl(switch="enable_thinking")
THREE_WAY = (
    "{{ messages[0].content }}:{% if enable_thinking is defined %}{{ '<think>\n' if enable_thinking else"
    " '<think>\n\n</think>\n\n' }}{% endif %}"
)
CLOSES_UNLESS_ON = "{{ messages[0].content }}:<think>\n{% if enable_thinking is not true %}</think>{% endif %}"
OPENS = "{{ messages[0].content }}:{{ '<think>\n' }}"
OPENS_BARE = "{{ messages[0].content }}:<think>"
LEAVES = "{% for m in messages %}{{ m.role }}={{ m.content }}:{% endfor %}"
ALWAYS_CLOSES = "{{ messages[0].content }}:<think></think>"


def prompt(
    source: str,
    think: ThinkMode,
    control: ThinkControl | None = None,
    tags: ReasoningTags | None = THINK,
    messages: Sequence[Message] | None = None,
) -> Prompt:
    return prompt_for(
        chat_template(source, tags=tags),
        user("Hi") if messages is None else messages,
        think,
        ThinkControl() if control is None else control,
        tags,
        adds_bos=False,
    )


@pytest.mark.parametrize(
    ("source", "think", "control", "text", "state"),
    [
        (LEAVES, "auto", ThinkControl(), "user=Hi:", "unopened"),
        (LEAVES, "auto", None, "user=Hi:<think>\n", "open"),
        (LEAVES, "on", ThinkControl(), "user=Hi:<think>\n", "open"),
        (LEAVES, "open", ThinkControl(), "user=Hi:<think>\n", "open"),
        (OPENS, "open", ThinkControl(), "Hi:<think>\n", "open"),
        (CLOSES_UNLESS_ON, "open", SWITCH, "Hi:<think>\n", "open"),
        (ALWAYS_CLOSES, "open", SWITCH, "Hi:<think></think>", "closed"),
        (LEAVES, "off", ThinkControl(), "user=Hi:<think>\n\n</think>\n\n", "closed"),
        (LEAVES, "off", None, "user=Hi:<think>\n\n</think>\n\n", "closed"),
        (OPENS, "auto", None, "Hi:<think>\n", "open"),
        (OPENS, "on", ThinkControl(), "Hi:<think>\n", "open"),
        (OPENS, "off", ThinkControl(), "Hi:<think>\n\n</think>\n\n", "closed"),
        (OPENS_BARE, "off", ThinkControl(), "Hi:<think>\n\n</think>\n\n", "closed"),
        (THREE_WAY, "auto", SWITCH, "Hi:", "unopened"),
        (THREE_WAY, "on", SWITCH, "Hi:<think>\n", "open"),
        (THREE_WAY, "off", SWITCH, "Hi:<think>\n\n</think>\n\n", "closed"),
        (CLOSES_UNLESS_ON, "auto", SWITCH, "Hi:<think>\n", "open"),
        (CLOSES_UNLESS_ON, "on", SWITCH, "Hi:<think>\n", "open"),
        (CLOSES_UNLESS_ON, "off", SWITCH, "Hi:<think>\n</think>", "closed"),
        (ALWAYS_CLOSES, "auto", SWITCH, "Hi:<think></think>", "closed"),
        (ALWAYS_CLOSES, "auto", None, "Hi:<think></think>", "closed"),
    ],
)
def test_thinking_is_switched_in_the_prompt(
    source: str, think: ThinkMode, control: ThinkControl | None, text: str, state: str
) -> None:
    result = prompt(source, think, control, tags=THINK if control else replace(THINK, force_open=True))
    assert texts(result.runs) == [text]
    assert result.think_state == state


@pytest.mark.parametrize(
    ("role", "expected"),
    [("system", "system=Be brief.\n/no_think:user=Hi:"), ("user", "system=/no_think:user=Be brief.:user=Hi:")],
)
def test_an_off_word_joins_the_system_text(role: Role, expected: str) -> None:
    messages = [Message(role=role, content="Be brief."), *user("Hi")]
    result = prompt(LEAVES, "off", ThinkControl(off_word="/no_think", off_block=False), messages=messages)
    assert texts(result.runs) == [expected]
    assert result.think_state == "unopened"


def test_a_switch_comes_before_an_off_word() -> None:
    result = prompt(THREE_WAY, "off", ThinkControl(switch="enable_thinking", off_word="/no_think"))
    assert texts(result.runs) == ["Hi:<think>\n\n</think>\n\n"]


def test_tags_that_stand_on_no_line_of_their_own_bring_no_line_breaks() -> None:
    tags = ReasoningTags(open="[THINK]", close="[/THINK]")
    assert texts(prompt(LEAVES, "on", tags=tags).runs) == ["user=Hi:[THINK]"]
    assert texts(prompt(LEAVES, "off", tags=tags).runs) == ["user=Hi:[THINK][/THINK]"]


@pytest.mark.parametrize("think", ["auto", "off", "open"])
def test_a_model_without_thinking_takes_all_but_on(think: ThinkMode) -> None:
    result = prompt(LEAVES, think, ThinkControl(off_word="/no_think"), tags=None)
    assert texts(result.runs) == ["user=Hi:"]
    assert result.think_state == "closed"


def test_a_model_without_thinking_cannot_be_made_to_think() -> None:
    with pytest.raises(UsageError, match="no thinking to switch on"):
        prompt(LEAVES, "on", tags=None)


def test_thinking_that_nothing_switches_off_is_refused() -> None:
    with pytest.raises(UsageError, match="can't be switched off"):
        prompt(LEAVES, "off", ThinkControl(off_block=False))


def test_a_template_that_closes_thinking_whatever_is_asked_cannot_be_switched_on() -> None:
    with pytest.raises(UsageError, match="closes thinking") as caught:
        prompt(ALWAYS_CLOSES, "on", SWITCH)
    assert "--template FILE" in (caught.value.hint or "")


def test_a_tag_that_the_user_wrote_last_does_not_open_thinking() -> None:
    result = prompt("{{ messages[0].content }}", "auto", messages=user("Say <think>"))
    assert result.think_state == "unopened"
    opened = prompt("{{ messages[0].content }}", "on", messages=user("Say <think>"))
    assert texts(opened.runs) == ["Say ", "<", "think>", "<think>\n"]
    assert [run.allows_control for run in opened.runs] == [True, False, False, True]
    assert opened.think_state == "open"


def test_an_empty_prompt_can_be_opened() -> None:
    assert texts(prompt("", "on").runs) == ["<think>\n"]
