"""Hostile chat templates: bombs, escapes and mistakes end with exit 5 and a hint, never with a fallback."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm_local.errors import ModelBroken, UsageError
from slm_local.generation import Message
from slm_local.template import ChatTemplate, chat, limits

DOUBLED_60_TIMES = "{{% set n = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ n.x }}}}"

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop whose condition never holds": "{% for a in range(99999) if a < 0 %}{% endfor %}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
    "comparison in every round": "{% set a = range(9999)|list %}{% for i in range(99999) %}{{ i in a }}{% endfor %}",
    "test in every round": "{% set a = range(9999)|list %}{% for i in range(99999) if i is in a %}{% endfor %}",
    "filter over a filter": "{{ range(99999)|select('in', range(99999)|list)|list|length }}",
}

BOMBS = {
    "repeated text": "{{ 'a' * 10 ** 10 }}",
    "repeated text, number first": "{{ 10000000000 * 'a' }}",
    "repeated list": "{{ [1] * 10 ** 9 }}",
    "repeated list of long texts": "{{ ['a' * 1000000] * 1000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "repeated squaring": DOUBLED_60_TIMES.format(start="10", step="{% set n.x = n.x * n.x %}"),
    "doubling with ~": DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x = n.x ~ n.x %}"),
    "doubling with +": DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x = n.x + n.x %}"),
    "doubling a list": DOUBLED_60_TIMES.format(start="[1]", step="{% set n.x = n.x + n.x %}"),
    "doubling in a block": DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "doubling in a macro": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}"
    + DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x = d(n.x) %}"),
    "doubling by joining": DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x = [n.x, n.x]|join %}"),
    "doubling by formatting": DOUBLED_60_TIMES.format(start="'a'", step="{% set n.x = '{0}{0}'.format(n.x) %}"),
    "lists that hold each other": DOUBLED_60_TIMES.format(start="[1]", step="{% set n.x = [n.x, n.x] %}"),
    "tuples that hold each other": DOUBLED_60_TIMES.format(start="(1,)", step="{% set n.x = (n.x, n.x) %}"),
    "mappings that hold each other": DOUBLED_60_TIMES.format(start="{}", step="{% set n.x = {1: n.x, 2: n.x} %}"),
    "deep nesting": "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}",
    "huge range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "printf width": "{{ '%99999999d' % 1 }}",
    "printf precision": "{{ '%.99999999f' % 1 }}",
    "printf width from a value": "{{ '%*d' % (99999999, 1) }}",
    "printf of a mapping": "{{ '%(a)99999999s' % {'a': 1} }}",
    "printf of one value many times": "{{ ('%(a)s' * 9000) % {'a': 'x' * 900000} }}",
    "format filter": "{{ '%99999999d'|format(1) }}",
    "format width": "{{ '{:>9999999999}'.format('x') }}",
    "format width from a value": "{{ '{:{w}}'.format('x', w='>99999999') }}",
    "format of one value many times": "{{ ('{0}' * 9000).format('x' * 900000) }}",
    "format of a mapping": "{{ '{a:>99999999}'.format_map({'a': 'x'}) }}",
    "format behind attr": "{{ ('{:>99999999}'|attr('format'))('x') }}",
    "format of markup": "{{ ('{:>99999999}'|safe).format('x') }}",
    "str.center": "{{ 'a'.center(10 ** 9) }}",
    "str.ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "str.rjust": "{{ 'a'.rjust(10 ** 9) }}",
    "str.zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "str.replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "str.replace of nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "str.join": "{{ ('x' * 10000).join(range(9999)|map('string')) }}",
    "str.split": "{{ ('a ' * 8000000).split() }}",
    "str.expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "str.translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "int.to_bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace filter by keywords": "{{ ('a' * 100000)|replace(new='b' * 100000, old='a') }}",
    "indent filter": "{{ 'a'|indent(10 ** 9) }}",
    "indent filter by text": "{{ ('a\n' * 1000000)|indent('x' * 100000) }}",
    "center filter": "{{ 'a'|center(10 ** 9) }}",
    "center filter of constants": "{{ 'a'|center(1000000000) }}",
    "many constants": "{{ 'a'|center(199999) }}" * 300,
    "join filter": "{{ range(9999)|join('x' * 10000) }}",
    "join filter of long texts": "{{ range(9999)|map('center', 100000)|join }}",
    "slice filter": "{{ 'a'|slice(10 ** 12)|list }}",
    "batch filter": "{{ [1]|batch(10 ** 10, 'x')|list }}",
    "list filter": "{{ ('a' * 16000000)|list }}",
    "title filter": "{{ ('a ' * 8000000)|title }}",
    "sum of lists": "{{ range(9999)|map('list')|sum(start=[]) }}",
    "tojson indentation": "{{ [[1]]|tojson(indent=10 ** 9) }}",
    "tojson separators": "{{ range(9999)|list|tojson(separators=('x' * 10000, ':')) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block of itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "output": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "chain that keeps long texts": "{% set n = namespace(x=1) %}{% for i in range(9999) %}"
    "{% set n.x = namespace(a=n.x, b='a' * 9000000) %}{% endfor %}",
    "chain that keeps slices": "{% set b = 'ab' * 4000000 %}{% set n = namespace(x=1) %}{% for i in range(9999) %}"
    "{% set n.x = namespace(a=n.x, b=b[1:]) %}{% endfor %}",
    "long list written again and again": "{% set l = ['a' * 9000000] %}"
    "{% set x %}{% for i in range(9999) %}{{ l }}{% endfor %}{% endset %}",
    "lorem ipsum": "{{ lipsum(n=10 ** 9) }}",
    "date width": "{{ strftime_now('%999999999Y') }}",
    "long date": "{{ strftime_now('%Y' * 999) }}",
}

ESCAPES = {
    "class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class behind attr": "{{ (''|attr('__class__')).__mro__ }}",
    "class behind a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class behind a key": "{{ ''['__class__'] }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "globals of joiner": "{{ joiner.__init__.__globals__.os.system('touch MARKER') }}",
    "globals of namespace": "{{ namespace.__init__.__globals__.os.system('touch MARKER') }}",
    "globals of our own function": "{{ raise_exception.__globals__.os.system('touch MARKER') }}",
    "globals of lipsum": "{{ lipsum.__globals__.os.system('touch MARKER') }}",
    "context": "{{ self._TemplateReference__context }}",
    "change of a message": "{% set x = messages.append(1) %}{% set x = messages[0].update(role='system') %}",
    "another file": "{% include 'MARKER' %}",
    "a module": "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
}

MISTAKES = {
    "unclosed block": "{% if 1 %}",
    "unknown filter": "{{ 1|nothing }}",
    "undefined value": "{{ a.b.c }}",
    "wrong type": "{{ 1 + 'a' }}",
    "division by zero": "{{ 1 // 0 }}",
    "too many nested loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "too many brackets": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "too long": "{{ 1 }}" * 20_000,
}


def render(source: str, variables: Mapping[str, object] | None = None) -> str:
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", control_texts=(), tags=None)
    runs = template.render([Message(role="user", content="hi")], adds_bos=False, variables=variables)
    return "".join(run.text for run in runs)


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_stopped(source: str) -> None:
    with pytest.raises(ModelBroken) as caught:
        render(source)
    assert "--template FILE" in (caught.value.hint or "")
    assert not isinstance(caught.value.__cause__, MemoryError)  # stopped by the meter, not by the machine


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_that_does_not_end_is_stopped_when_its_time_is_up(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(step=0.01)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(ModelBroken, match="takes longer than 5 s") as caught:
        render(source)
    assert "--template FILE" in (caught.value.hint or "")


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_template_cannot_leave_the_sandbox(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelBroken) as caught:
        render(source)
    assert "--template FILE" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_template_that_does_not_work_is_named_as_broken(source: str) -> None:
    with pytest.raises(ModelBroken) as caught:
        render(source)
    assert "--template FILE" in (caught.value.hint or "")
    assert "\n" not in caught.value.message


def test_a_template_may_refuse_the_conversation_in_its_own_words() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(ModelBroken, match="line 3"):
        render("a\n\n{{ 1 + }}")


def test_a_stopped_template_can_be_rendered_again() -> None:
    template = ChatTemplate(
        "{% if big %}{{ 'a' * 10 ** 10 }}{% endif %}ok", bos_text="", eos_text="", control_texts=(), tags=None
    )
    with pytest.raises(ModelBroken):
        template.render([], adds_bos=False, variables={"big": True})
    assert [run.text for run in template.render([], adds_bos=False)] == ["ok"]


def test_namespaces_that_hold_each_other_are_written_in_bounded_space() -> None:
    nested = DOUBLED_60_TIMES.format(start="1", step="{% set n.x = namespace(a=n.x, b=n.x) %}")
    assert render(nested) == "<Namespace>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ [1, 'ä', none]|tojson }}", '[1, "ä", null]'),
        ("{{ {'b': '<', 'a': 1}|tojson(indent=2) }}", '{\n  "b": "<",\n  "a": 1\n}'),
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ messages[0]['role'] ~ ':' ~ messages[0].content ~ add_generation_prompt ~ tools }}", "user:hiTrueNone"),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ '%s-%05.1f' % ('a', 2) }} {{ '{}{:>3}{x}'.format(1, 2, x=3) }}", "a-002.0 1  23"),
        ("{{ 'a,b'.split(',')|join('-') }}{{ 'ab'[::-1] }}{{ [1, 2][1:] }}{{ (1, 2) }}", "a-bba[2](1, 2)"),
        (
            "{% set n = namespace(x=[]) %}{% for i in range(3) %}{% set n.x = n.x + [i] %}{% endfor %}{{ n.x }}",
            "[0, 1, 2]",
        ),
        ("{% for k, v in {'a': 1}.items() if v == 1 %}{{ k ~ v }}{{ loop.last }}{% else %}-{% endfor %}", "a1True"),
        ("{{ 'x' in 'xy' and not 3 < 2 < 1 }}{{ undefined_thing }}{{ 1 is in [1] }}", "TrueTrue"),
        ("{{ [3, 1]|sort|map('string')|join('+') }}{{ [1, 2]|sum }}{{ 'a\nb'|indent(2) }}", "1+33a\n  b"),
        ("{{ x|default('d') }}{{ 5|default(1000000) }}{{ 'aa'|replace('a', 'b') }}", "d5bb"),
        ("{% macro m(a, b=[1]) %}{{ a }}{{ b }}{% endmacro %}{{ m(0) }}", "0[1]"),
    ],
)
def test_what_templates_use_works_as_in_transformers(source: str, text: str) -> None:
    assert render(source) == text


def test_the_date_is_todays() -> None:
    before = date.today().isoformat()
    assert render("{{ strftime_now('%Y-%m-%d') }}") in (before, date.today().isoformat())


def test_a_source_of_the_longest_length_is_still_read() -> None:
    comment = "{#" + "x" * (chat.LONGEST_SOURCE - 4) + "#}"
    assert render(comment) == ""
