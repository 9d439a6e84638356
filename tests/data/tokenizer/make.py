"""What transformers makes of the chat templates here: writes templates.json and snippets.json.

    python make.py

Made with transformers 5.23, Jinja2 3.1.6 and Python 3.11. `strftime_now` stands still at NOW.
"""

import datetime
import json
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
NOW = datetime.datetime(2024, 7, 5, 14, 3, 9, 123456)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def said(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [said("user", "Describe the hotel.")],
    [said("system", " Be brief. "), said("user", "naïve café — 東京 🙂")],
    [said("user", " Was it clean?\n"), said("assistant", "Spotless. "), said("user", "And breakfast?")],
    [said("system", "Be brief."), said("user", "Was it clean?"), said("assistant", "\n\nYes.\n")],
    [said("user", "a"), said("assistant", "<think>\nhm\n</think>\n\nb"), said("user", "c"),
     said("assistant", "<think>\nwell\n</think>\n\nd<|end|>")],
    [said("user", "one"), said("user", "two")],
    [said("assistant", "first")],
    [said("user", "a"), said("system", "late"), said("user", "")],
    [said("user", "<tool>x</tool>"), said("user", "{{ 1 }}{% if %}")],
    [said("user", "x" * 201), said("assistant", "b")],
]

# One conversation for all: user, assistant, user.
MESSAGES = CONVERSATIONS[2]

SNIPPETS = r"""
{{ none }} {{ true }} {{ false }} {{ undefined_name }}|{{ 1.0 }} {{ 3 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 3 }}
{{ ['a', "it's", 1, none, true] }} {{ {'k': [1.5, false]} }} {{ ('a', 'b')[1] }} {{ 'a"b' }} {{ ['a"b', 'c\n\\'] }}
{{ messages }}
{{ messages[0] }}{{ messages[0]['missing'] }}{{ messages[0].missing }}
{{ messages[0].missing.deeper }}
{{ missing.deeper }}
{{ missing + 'a' }}
{{ 'a' + none }}
{{ 'a' + 1 }}
{{ 'a' ~ 1 ~ 2.5 ~ 'b' }}
{{ 'ab' * 3 }}{{ [1] + [2, 3] }}{{ '=' * 0 }}
{{ 'a' if false }}|{{ 'a' if true else 'b' }}
{{ none or 'x' }}{{ '' or 'y' }}{{ 'a' and 'b' }}{{ not '' }}
{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 1 == 1.0 }}{{ 1 == true }}{{ '1' == 1 }}{{ none == missing }}
{{ 'a' in 'cat' }}{{ 'x' not in ['x'] }}{{ 'role' in messages[0] }}{{ 'x' in missing }}
{{ not 'a' == 'b' }}{{ not 'a' in 'b' }}
{{ 'a' + 'b' | upper }}{{ ('a' + 'b') | upper }}{{ 'a' ~ 'b' | upper ~ ('c' + 'd') }}{{ -1 | abs }}
{{ 'a' ~ 'b' + 'c' }}{{ 1 ~ 2 * 3 }}{{ 1 ~ 2 + 3 }}
{{ 2 is divisibleby 2 and 3 is odd }}{{ 'x' is not none }}{{ missing is not defined }}
{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ 'naïve'[2:4] }}{{ 'abc'[-1] }}{{ messages[-1].content }}{{ messages[1:] | length }}{{ messages[::-1][0].content }}{{ [1,2,3,4][1::2] }}
{{ ' \t a b\n '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\x1c\x1fa\x85\xa0'.strip() }}|{{ ' a '|trim }}|{{ 'xax'|trim('x') }}
{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a b c d'.split(' ', 1) }}{{ 'a b  c '.split(none, 1) }}{{ 'abc'.split('x') }}{{ ''.split(',') }}{{ ''.split() }}{{ 'a-b-c'.split('-', maxsplit=1) }}
{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ 'a b c'.rsplit() }}{{ 'a,b'.rsplit(',', 0) }}
{{ 'ab'.split('') }}
{{ 'a\nb\r\nc\x0bd\u2028e\n'.splitlines() }}{{ 'a\nb\r\n'.splitlines(true) }}{{ ''.splitlines() }}
{{ 'a=b=c'.partition('=') | join('|') }} {{ 'a=b=c'.rpartition('=')|join('|') }} {{ 'abc'.partition('x')|join('|') }} {{ 'abc'.rpartition('x')|join('|') }}
{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('bc') }}{{ 'abc'.removeprefix('x') }}
{{ 'naïve café'.find('é') }} {{ 'naïve'.find('x') }} {{ 'éaéa'.rfind('a') }} {{ 'éa'.index('a') }}
{{ 'a'.index('x') }}
{{ 'banana'.count('an') }} {{ 'naïve'.count('') }} {{ ''.count('') }} {{ 'aaa'.count('aa') }}
{{ ''.isdigit() }}{{ '12'.isdigit() }}{{ 'aB'.islower() }}{{ 'a1'.islower() }}{{ '12'.isupper() }}{{ 'A-'.isupper() }}{{ ''.isspace() }}{{ ' \x1c'.isspace() }}{{ 'ab1'.isalnum() }}{{ ''.isalpha() }}
{{ 'aBc'.upper() }}{{ 'ABc'.lower() }}{{ 'hello world'.title() }}{{ 'hELLO'.capitalize() }}{{ 'straße'.upper() }}
{{ 'abab'.replace('a', 'x') }}{{ 'abab'.replace('a', 'x', 1) }}{{ 'ab'.replace('', '-') }}{{ 'abab'|replace('b', '') }}
{{ 'abc'.startswith('ab') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('bc') }}{{ ', '.join(['a', 'b']) }}
{{ '{} and {}'.format('a', 1) }}
{{ 'abc'.unheard() }}
{{ [1, 2].append(3) }}
{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 'c') }}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{{ v }}{% endfor %}
{{ messages[0] | tojson }}{{ 'é<>&\'"\n\x1f🙂' | tojson }}{{ [1, 2.5, none, true, {}] | tojson }}
{{ {'a': [1, {'b': 2}], 'c': {}, 'd': []} | tojson(indent=2) }}
{{ {'b': 1, 'a': 'é🙂'} | tojson(ensure_ascii=true, sort_keys=true) }}{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}
{{ [3, 1, 2] | sort }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ [1, 2] | sum }}{{ ['a', 'b'] | join('-') }}{{ [1, 2, 2] | unique | list }}{{ 'abc' | length }}{{ 'abc' | list }}{{ 'naïve' | count }}
{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | first }}
{{ missing | default('d') }}{{ '' | default('d') }}{{ '' | default('d', true) }}{{ none | default('d') }}
{{ '3' | int + 1 }}{{ 'x' | int }}{{ 'x' | int(7) }}{{ ' 12 ' | int }}{{ none | int }}{{ 'x' | float }}{{ 'x' | float(1.5) }}{{ [] | int }}{{ 2.7 | int }}{{ '2.5' | float }}{{ 2.5 | round }}{{ 3.14159 | round(2) }}{{ 3 | round }}{{ 1 | string + 'a' }}{{ true | string }}{{ none | string }}
{{ 'a' is string }}{{ 1 is number }}{{ [] is iterable }}{{ 'a' is iterable }}{{ {} is mapping }}{{ 'a' is sequence }}{{ {} is sequence }}{{ [] is sequence }}{{ 1 is sequence }}{{ true is boolean }}{{ 1 is integer }}{{ 1.5 is float }}{{ none is none }}{{ true is true }}{{ 1 is sameas 1 }}{{ messages is callable }}
{{ 'a' is in ['a'] }}{{ 3 is eq 3 }}{{ 'A' is upper }}{{ 'a' is lower }}
{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s + m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}
{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set a, b = 'p', 'q' %}{{ a }}{{ b }}{% set c %}block {{ a }}{% endset %}{{ c }}
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('x', 'y') }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}
{% for m in messages %}{% if not loop.last %}{{ loop.nextitem.role }}{% endif %}{% if not loop.first %}{{ loop.previtem.role }}{% endif %}{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content | trim }}{% else %}none{% endfor %}{% for m in [] %}x{% else %}empty{% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}{% for i in range(5, 1, -2) %}{{ i }}{% endfor %}
{% macro f(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ f('x') }}{{ f('x', 'y') }}{{ f(b=1, a=2) }}{{ f('x') + '!' }}{{ f() }}
{% macro tree(n) %}{{ n }}{% if n %}{{ tree(n - 1) }}{% endif %}{% endmacro %}{{ tree(5) }}
{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{% endcall %}{% filter upper %}up{% endfilter %}{% with y = 3 %}{{ y }}{% endwith %}{{ y }}
{% raw %}{{ not }} {% this %}{% endraw %}{# a comment #}{{ '{{' }}
{% generation %}{{ 'kept' }}{% set z = 1 %}{% endgeneration %}{{ z }}{%- generation -%} trimmed {%- endgeneration -%} end
{{ strftime_now('%d %b %Y|%Y-%m-%d|%H:%M:%S|%B %A %a|%j %U %y|%-d %-m %I %p|%e|%f|%Z%z|%%|%D %T %F') }}
{{ raise_exception('no ' + 'way') }}
{{ dict(a=1, b='c') }}{{ dict(a=1).a }}
{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ unk_token is defined }}
{{ 'a\'b' }}{{ "t\tb\\n" }}{{ '\u00e9\x41\101' }}{{ '\d' }}{{ 'a' 'b' }}
{{ "%s-%d" | format('a', 1) }}
{{ 1e3 }} {{ 0.1 + 0.2 }} {{ 1_000 }} {{ 10 ** 20 }} {{ 1e20 }} {{ 1e-7 }} {{ [1e16, 123456789012345680.0, 1e15, 0.0001, 0.00001, -2.5e-10] }} {{ [1e20, 1.5] | tojson }}
{{ [1, 2, 3] | batch(2) | list }}{{ {'a': 1} | length }}{{ 'a b' | title }}{{ 'abc' | reverse }}{{ 'x' | indent }}{{ 'a' | capitalize }}{{ 'ab' | first }}
{{ messages is defined }}{{ loop is defined }}
{{ 'a' | unheard }}
{{ 'a' is unheard }}
{% if messages[0]['role'] == 'user' -%}   a {%- elif true %} b {% else %} c {% endif +%}   d
{%if true%}tight{%endif%}{{-'x'-}}  {{- 'y' -}}  z
{% for m in messages %}{{ m['content'] if m['role'] == 'user' else m.content[:3] }}{{ '' if loop.last else ',' }}{% endfor %}
{{ messages[9] }}{{ messages[9].role is defined }}
{{ messages.0.role }}
{{ ({'a': none}).a is none }}{{ [none] | select | list }}{{ [1, 0] | reject | list }}{{ [1, 2, 3] | select('odd') | list }}{{ [[1, 2], [3]] | map('first') | list }}{{ ['a'] | map('upper') | join }}
{% include 'x' %}
{% unheard %}
{{ unclosed
{% for x in %}
""".strip("\n").split("\n")

# Those that take several lines.
SNIPPETS += [
    "  {% if true %}\n  a\n  {% endif %}\n b {% if true %} \n c{% endif %}\n\n",
    "a\n  {# comment #}\nb {# c #}\nc\n",
    "\n\n{% set x = 1 %}\n\n{{ x }}\n\n",
    "a\r\n{% if true %}\r\nb\r{% endif %}\nc\r\n",
    "  {%+ if true %}\n a\n  {%- endif +%}\n b",
    "{{ 'x' }}\n{{ 'y' -}}\n  z\n",
    "{% generation %}\n  a\n{% endgeneration %}\n b",
    "{% set text = 'a\n  b' %}{{ text }}",
    "a\n\t{% for i in [1, 2] %}\n\t{{ i }}\n\t{% endfor %}\n",
    "x{#- a #}  {# b -#}  y",
]


def outcome(render):
    try:
        return {"text": render()}
    except Exception as error:  # whatever a template raises
        return {"error": str(error) or type(error).__name__}


def write(name, rows):
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    chat_template_utils.datetime = Clock
    tokenizer = AutoTokenizer.from_pretrained(HERE)

    def rendered(template, messages, add):
        return outcome(
            lambda: tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=add, tokenize=False
            )
        )

    rows = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for messages in CONVERSATIONS:
            for add in (False, True):
                row = {"template": path.stem, "messages": messages, "add_generation_prompt": add}
                row |= rendered(template, messages, add)
                if "text" in row:
                    row["ids"] = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
                rows.append(row)
    write("templates.json", rows)
    write("snippets.json", [{"source": s} | rendered(s, MESSAGES, False) for s in SNIPPETS])


if __name__ == "__main__":
    main()
