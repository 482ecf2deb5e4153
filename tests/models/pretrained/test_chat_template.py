"""Chat templates of real models render as in Jinja; those that take too much time or memory are refused."""

import json
import tracemalloc

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.pretrained.chat_template import STEPS, render

# In the manner of those of Llama 3, Mistral, Qwen 2.5 and Zephyr.
TEMPLATES = {
    "loop over messages": (
        "{{- bos_token }}{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|h|>' + message['role'] + '<|/h|>\n\n' + message['content'] | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token ~ content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>' }}{% endif %}"
    ),
    "namespace, reversed, macro": (
        "{% set ns = namespace(last=-1, seen=false) %}"
        "{% macro turn(role, text='') %}[{{ role }}]{{ text }}{% endmacro %}"
        "{% for message in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}"
        "{% if ns.last < 0 and message.role == 'user' and not message.content.startswith('<tool>') %}"
        "{% set ns.last = index %}{% endif %}{% endfor %}"
        "{% for message in messages %}{{ turn(message.role, text=message.content.strip()) }}"
        "{% if loop.last and add_generation_prompt %}{{ turn('assistant') }}{% endif %}{% endfor %}{{ ns.last }}"
    ),
    "tools and documents": (
        "{% if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}"
        "{% if documents %}{{ documents }}{% endif %}"
        "{% for message in messages if message['role'] != 'system' %}{% if message['role'] == 'user' %}"
        "{{ '[INST] %s' | replace('%s', message.content.split('</think>')[-1].lstrip('\n')) }} [/INST]"
        "{% elif message.tool_calls is defined %}{% break %}{% else %}{{ raise_exception('roles') }}{% endif %}"
        "{% else %}none{% endfor %}{{ eos_token }}"
    ),
    "filters": (
        "{% with users = messages | selectattr('role', 'equalto', 'user') | list %}{{ users | length }}{% endwith %}"
        "{{ messages | map(attribute='content') | join('\n') | upper }}{{ {'a': [1, 2 * 3]}.items() | list }}"
        "{% set text %}{{ 7 % 4 }}{{ 2 ** 5 }}{% endset %}{{ text | indent(2) }}"
        "{% for i in range(3) %}{{ i }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("message", ["the", "  two\n lines ", "", "<é> & 'x'" * 3000])
def test_template_gives_the_text_that_jinja_gives(name, message):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    expected = environment.from_string(TEMPLATES[name]).render(
        messages=[{"role": "user", "content": message}],
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
        tools=None,
        documents=None,
    )
    assert render(TEMPLATES[name], message, "<s>", "</s>") == expected


def test_json_is_written_as_hugging_face_does():
    content = json.dumps("<é> & 'x'", ensure_ascii=False)
    assert render("{{ messages[0].content | tojson }}", "<é> & 'x'", "", "") == content


TOO_LONG = "more than [0-9]+ (characters|steps)"
EXPENSIVE = {
    "nested loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", TOO_LONG),
    "nested loops in a macro": (
        "{% macro f() %}{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}{% endmacro %}"
        "{{ f() }}{{ f() }}",
        TOO_LONG,
    ),
    "recursive macro": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        TOO_LONG,
    ),
    "calls of a large macro": (
        "{% macro f() %}"
        + "{% if 0 %}{% endif %}" * 500
        + "{% endmacro %}{% for i in range(999) %}{{ f() }}{% endfor %}",
        TOO_LONG,
    ),
    "recursive loop": ("{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "recursive loop"),
    "repeated text": ("{{ 'a' * 2000000000 }}", TOO_LONG),
    "repeated list": ("{% set x = 2000000000 * [0] %}", TOO_LONG),
    "power": ("{{ 10 ** (10 ** 9) }}", "more than 4096 bits"),
    "square": ("{% set x = 10 ** 900 %}{{ x * x }}", "more than 4096 bits"),
    "doubling": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        None,
    ),
    "sum": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        TOO_LONG,
    ),
    "block": ("{% set x = 'a' * 90000 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40, TOO_LONG),
    "output": ("{% set x = 'a' * 90000 %}{% for i in range(9999) %}{{ x }}{% endfor %}", TOO_LONG),
    "output of a macro": (
        "{% macro f() %}{% set x = 'a' * 90000 %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endmacro %}"
        "{% if f() %}{% endif %}",
        TOO_LONG,
    ),
    "nested lists": ("{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}", TOO_LONG),
    "nested lists as arguments": (
        "{% macro f(x, n) %}{{ f([x, x], n - 1) if n else x }}{% endmacro %}{{ f([1], 60) }}",
        TOO_LONG,
    ),
    "nested namespaces": (
        "{% set a = namespace(x=1) %}"
        + "{% set b = namespace() %}{% set b.x = a %}{% set b.y = a %}{% set a = b %}" * 40
        + "{{ a }}",
        "a namespace cannot be",
    ),
    "format": ("{{ '%2000000000d' % 3 }}", "formats with %"),
    "format filter": ("{{ '%2000000000d' | format(3) }}", "No filter named 'format'"),
    "format method": ("{{ '{:2000000000}'.format(3) }}", "unsafe"),
    "center": ("{{ 'a'.center(2000000000) }}", "the method center of str, which is unsafe"),
    "center filter": ("{{ 'a' | center(2000000000) }}", "No filter named 'center'"),
    "bytes": ("{{ (1).to_bytes(2000000000, 'big') }}", "the method to_bytes of int, which is unsafe"),
    "replace": ("{{ ('a' * 90000).replace('a', 'a' * 90000) }}", TOO_LONG),
    "replace nothing": ("{{ ('a' * 90000).replace('', 'a' * 90000) }}", TOO_LONG),
    "replace filter": ("{{ ('a' * 90000) | replace('a', 'a' * 90000) }}", TOO_LONG),
    "replace by map": ("{{ ['a' * 90000] | map('replace', 'a', 'a' * 90000) | list }}", TOO_LONG),
    "join": ("{{ ('a' * 90000).join(range(90000) | map('string')) }}", TOO_LONG),
    "join filter": ("{{ range(90000) | join('a' * 90000) }}", TOO_LONG),
    "indent": ("{{ 'a\n' | indent(2000000000, true) }}", "indents, separates or rounds by more than 100"),
    "indented JSON": ("{{ [1] | tojson(indent=2000000000) }}", "indents, separates or rounds by more than 100"),
    "separated JSON": ("{{ [1] | tojson(separators=[',' * 90000, ':']) }}", "separates or rounds by more than 100"),
    "JSON of nested lists": (
        "{% set ns = namespace(x=range(9999) | list) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}"
        "{{ ns.x | tojson(indent=100) }}",
        TOO_LONG,
    ),
    "rounding": ("{{ 5 | round(-2000000000) }}", "rounds by more than 100"),
    "replace by name": ("{{ 'a' | replace(new='a' * 90000, old='a') }}", "replace arguments by name"),
    "nested views": ("{% set x = [1] %}" + "{% set x = {1: x, 2: x}.items() %}" * 60 + "{{ x }}", TOO_LONG),
    "search": ("{{ range(90000) | select('in', range(90000) | list) | list }}", TOO_LONG),
    "repeated search": (
        "{% set x = range(90000) | list %}{% for i in range(999) %}{% if -1 in x %}{% endif %}{% endfor %}",
        TOO_LONG,
    ),
    "internal filter": ("{{ [[1]] | map('(loop)', -1000000) | list }}", "internal filter"),
    "lipsum": ("{{ lipsum(n=2000000000) }}", "'lipsum' is undefined"),
    "file": ("{% include '/etc/passwd' %}", "no loader"),
}


SLOW = (
    "arguments",
    "lists",
    "loops",
    "macro",
    "search",
    "views",
)  # in whose names; tracing memory would make them slower still


@pytest.mark.parametrize("name", [name for name in EXPENSIVE if name.endswith(SLOW)])
def test_template_that_takes_too_many_steps_is_refused(name):
    template, reason = EXPENSIVE[name]
    with pytest.raises(Exception, match=reason):
        render(template, "the", "", "")


@pytest.mark.parametrize("name", [name for name in EXPENSIVE if not name.endswith(SLOW)])
def test_template_that_makes_too_large_a_value_is_refused_within_a_bounded_memory(name):
    template, reason = EXPENSIVE[name]
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=reason):
            render(template, "the", "", "")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_constants_are_not_computed_when_the_template_is_compiled():
    assert render("{% if false %}{{ 'a' * 2000000000 }}{{ 10 ** (10 ** 9) }}{% endif %}done", "the", "", "") == "done"


def test_number_of_steps_is_the_bound():
    inner = "{% for j in range(100) %}{% endfor %}"
    loop = f"{{% for i in range({STEPS // 4000}) %}}{inner}{{% endfor %}}done"
    assert render(loop, "the", "", "") == "done"
    with pytest.raises(Exception, match=f"more than {STEPS} steps"):
        render(f"{{% for k in range(20) %}}{loop}{{% endfor %}}", "the", "", "")
