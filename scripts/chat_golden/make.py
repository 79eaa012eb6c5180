#!/usr/bin/env python3
"""Renders chat templates with transformers, as reference for crates/lm/src/chat.

    python scripts/chat_golden/make.py        # needs transformers, jinja2 >= 3.1.6 and mlx-lm

Writes crates/lm/src/chat/golden.json: templates, conversations, and what the reference makes of them.
Published templates lie in crates/lm/src/chat/templates. Those in this file are written for the test;
each line of MISC is one behaviour of Python's Jinja2 that published templates rely on.
"""

import datetime
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

CHAT = Path(__file__).resolve().parents[2] / "crates/lm/src/chat"

REASONING = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

INSTRUCT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set loop_messages = messages %}
{% set system = '' %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ ('[INST] ' if loop.index0 else '[INST] ' + system) ~ message['content'].strip() + ' [/INST]' }}
{% else %}
{% generation %}
{{ ' ' + message['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% endfor %}
"""

MACRO = """{% macro block(role, text, end=true) -%}
<start>{{ role }}
{{ text | trim }}{% if end %}<end>{% endif %}
{%- endmacro %}
    {% for message in messages if message.role != 'system' -%}
        {%- set role = 'model' if message.role == 'assistant' else message.role -%}
        {%- if message.content is string -%}
{{ block(role, message.content) }}
        {%- elif message.content is iterable -%}
            {%- for part in message.content -%}
                {%- if part.type == 'text' -%}{{ block(role, part['text'], end=loop.last) }}{%- endif -%}
            {%- endfor -%}
        {%- endif %}

    {% endfor %}
{%- if add_generation_prompt %}
<start>model
{% endif %}
"""

# One behaviour per line; every line is a case of its own.
MISC = """{{ true }} {{ none }} {{ false }} {{ 1.0 }} {{ 3 }} {{ 2 / 4 }} {{ 7 // 2 }} {{ 2 ** 3 }} {{ 7 % 3 }}
{{ [1, 'a', true, none] }} {{ {'a': 1, 'b': [1.5]} }} {{ ('x', 1) }}
{{ "it's" ~ 1 }} {{ ["it's", 'a"b', 'line\\n'] }}
{{ missing }}|{{ missing is defined }}|{{ missing | default('d') }}|{{ none | default('d') }}|{{ '' | default('d', true) }}
{{ messages[0].nothing is defined }} {{ messages[0].get('nothing') }} {{ messages[0].get('nothing', 'x') }}
{{ none.x is defined }}
{{ 'abc' is sequence }} {{ 'abc' is iterable }} {{ 'abc' is mapping }} {{ {} is mapping }} {{ [] is sequence }} {{ {} is sequence }} {{ 3 is iterable }}
{{ none is iterable }} {{ missing is iterable }} {{ none is sequence }} {{ missing is sequence }} {{ none is mapping }} {{ true is iterable }}
{{ none | default([]) is iterable }} {{ messages is iterable and messages is not mapping }} {{ messages[0] is iterable }}
{{ messages | length }} {{ '' | length }} {{ none | string }} {{ [none, true] | string }} {{ {'a': none} | string }}
{{ [1, 2, 3] | map('string') | join('-') }} {{ ['a', 'b'] | join }} {{ [[1, 'x'], [2, 'y']] | map(first) | list if false else 'no' }}
{{ 'Key: v' | replace('Key', 'k') | trim }} {{ ' x ' | trim | upper }} {{ 'a\tb' | tojson }} {{ '"\u2028' | tojson }}
{{ {'z': 1, 'a': [1, {'b': none}]} | tojson(indent=4) }} {{ [] | tojson(indent=2) }} {{ {} | tojson }} {{ 1e-7 | tojson }} {{ 12345678901234567890 | tojson }}
{{ messages | selectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | list }} {{ messages | groupby('role') | length }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('b', 'c')) }} {{ 'a b'.partition(' ') if false else '' }} {{ 'x'.join(['1', '2']) }} {{ 'abc'.count('b') }}
{{ 'Ünï'.lower() }} {{ 'straße'.upper() }} {{ 'a'.isdigit() }} {{ '12'.isdigit() }} {{ 'abc'.rstrip('c').lstrip('a') }} {{ 'a\nb'.splitlines() }}
{% for k, v in {'b': 1, 'a': 2}.items() %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ k }}{{ v }}{{ loop.nextitem is defined }} {% endfor %}
{% for a in [1, 2] %}{% for b in [3, 4] %}{{ loop.depth }}{{ a }}{{ b }}{{ loop.cycle('x', 'y') }} {% endfor %}{% endfor %}
{% macro m(a, b='d') %}{{ a }}{{ b }}{{ varargs | length if false else '' }}{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m(b=3, a=4) }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set ns = namespace(x=[], y='') %}{% set ns.x = ns.x + [1] %}{% set ns.y = ns.y ~ 'z' %}{{ ns.x }}{{ ns.y }}
{{ 7.0 }} {{ 1e10 }} {{ 0.1 + 0.2 }} {{ 10 / 5 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 0.5 }} {{ 1_000 }}
{{ (1, 2) + (3,) if false else (1, 2) }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1} }} {{ 'b' > 'a' }} {{ 1 in [1.0] }} {{ not none }}
{{ messages[5] is defined }} {{ messages[0]['x'] is defined }} {{ messages[0].role is defined }} {{ 'abc'[5:] }} {{ [1, 2, 3, 4][::2] }} {{ [1, 2, 3][-2:] }}
{{ 3 is number }} {{ true is number }} {{ true is boolean }} {{ 3 is integer }} {{ 3.0 is float }} {{ 'a' is string }} {{ none is none }}
{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}
{% for k in messages[0] %}{{ k }},{% endfor %}
{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}
{{ messages | map(attribute='role') | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first }}
{{ 'a,b,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a-b'.replace('-', '+') }}
{{ '  x '.strip() }}|{{ 'xxax'.strip('x') }}|{{ 'abc'[1:] }}|{{ 'abc'[-1] }}|{{ 'abc'[::-1] }}
{{ 'AbC'.lower() }} {{ 'abc'.upper() }} {{ 'hello world'.title() }} {{ 'abc' | upper }} {{ 'abc' | capitalize }}
{{ 'x' in 'xyz' }} {{ 'role' in messages[0] }} {{ 'q' not in ['a'] }} {{ 'abc'.find('c') }}
{{ [3, 1, 2] | sort }} {{ [3, 1] + [2] }} {{ [1, 2, 3][-1] }} {{ range(3) | list }} {{ [1, 2] | length }}
{{ {'b': 1, 'a': {'c': [1, 2], 'd': 'é<>&'}} | tojson }}
{{ {'b': 1, 'a': {'c': [1, 2], 'd': []}} | tojson(indent=2) }}
{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}
{{ [1.0, 1e20, 0.1, true, none] | tojson }}
{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}
{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}
{% if true %}{% set y = 3 %}{% endif %}{{ y }}
{% generation %}{% set z = 4 %}in{% endgeneration %}{{ z is defined }}
{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}
{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }} {% endfor %}
{% for m in [] %}x{% else %}empty{% endfor %}
{{ 'a' if false }}|{{ 'a' if false else 'b' }}|{{ not '' }}|{{ 1 == 1.0 }}|{{ 'a' < 'b' }}
{% set text %}block {{ 1 + 1 }}{% endset %}{{ text }}
{{ dict(a=1, b=2) }} {{ dict(a=1)['a'] }} {{ {'a': 1}.keys() | list }}
{% filter upper %}abc{% endfilter %}
{%- raw %} {{ raw }} {% endraw -%} after
{{ '%s-%d' | format('a', 3) }} {{ 'a{}b'.format(1) }}
{{ "<b>&amp;" | safe }} {{ "<b>" | e }} {{ "<b>" }}
{{ messages[-1]['content'][:4] }} {{ messages[1:] | length }} {{ (messages | last).role }}
{{ 'x' * 3 }} {{ '-' ~ 5 ~ none }}
{{ 'tab\\tnew\\\\n' }} {{ "a" "b" }}
{{ 12 | string + 'x' }} {{ '12' | int + 1 }} {{ '1.5' | float }} {{ -3 | abs }} {{ 2.567 | round(1) }}
{{ ['a', 'b', 'a'] | unique | list }} {{ [[1, 2], [3]] | map('length') | list }} {{ 'abc' | reverse }} {{ [1, 2] | sum }}
{{ 'a\\nb' | indent(2) }} {{ ' a ' | trim }} {{ 'abc' | replace('b', 'x') }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %d, %Y') }} {{ strftime_now('%A, %H:%M:%S %p %I %j %y %%') }}
{{ strftime_now('%a %e %B %Y') if false else strftime_now('%a %-d %B') }} {{ strftime_now is defined }}
{{ {'a': {'b': [1, {'c': 'é'}]}} | tojson(ensure_ascii=False, indent=2) }} {{ 'é' | tojson(ensure_ascii=True) }} {{ {'a': [1]} | tojson(separators=(',', ':')) }}
{{ [1, {}] | tojson(indent=1) }} {{ {'b': 1, 'a': 2} | tojson(indent=3, sort_keys=True) }} {{ 'a/b' | tojson }} {{ '\\x7f\\x01' | tojson }}
{% set ns = namespace(found=false, n=1, names=[]) %}{% for m in messages if not ns.found %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% set ns.names = ns.names + [m.role] %}{% endfor %}{{ ns.names }} {{ ns.missing is defined }}
{% for m in messages recursive %}{{ m.role }}{% if loop.depth < 2 %}({{ loop([m]) }}){% endif %}{% endfor %}
{% for m in messages %}{% if loop.changed(m.role == 'user') %}{{ m.role }},{% endif %}{% endfor %}
{% macro wrap(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro %}{% call wrap('b') %}in {{ messages | length }}{% endcall %}
{% macro stop() %}{{ raise_exception('inside') }}{% endmacro %}{{ 'x' if true else stop() }}
{% macro role_of(m) -%} {%- if m is mapping and m.role in ['user', 'tool'] -%}{{ m['role'] }}{%- else -%}other{%- endif -%} {%- endmacro %}{% for m in messages %}{{ role_of(m) }};{% endfor %}
{{ messages[0] is sameas messages[0] }} {{ true is sameas true }} {{ none is sameas none }} {{ 3 is odd }} {{ 3 is divisibleby 3 }} {{ 'A' is upper }} {{ messages is callable }} {{ false is false }} {{ 1 is true }}
{% set ns = namespace(n=0) %}{% for m in messages if ns.n < 2 -%} {{ m.role }} {%- set ns.n = ns.n + 1 %}{%- if m.role == 'user' %}{% break %}{% endif -%} {% endfor %}!
{% set ns = namespace(skip=true) %}{% for m in messages if m.role != 'system' or not ns.skip %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% else %}none{% endfor %}
{% set ns = namespace(n=0) %}{% macro up() %}{% set ns.n = ns.n + 1 %}{% endmacro %}{% for m in messages if ns.n < 1 %}{{ up() }}{% for c in ['x', 'y'] %}{{ c }}{{ loop.index }}{% endfor %}{% endfor %}{{ ns.n }}
{% set ns = namespace(n=0) %}{% for m in messages if ns.n < 2 %}{% for k in m if k != ns.key %}{{ k }}{% set ns.key = k %}{% set ns.n = ns.n + 1 %}{% endfor %};{% endfor %}
{{ 'a b  c '.rsplit() }} {{ ' a b  c'.rsplit(none, 1) }} {{ 'a,b,c'.rsplit(',') }} {{ 'a,b,c'.rsplit(',', 1)[-1] }} {{ ''.rsplit() }} {{ ''.rsplit(',') }} {{ 'a::b'.rsplit('::', 5) }} {{ 'ab'.rsplit(',', 0) }}
{{ 'aab'.removeprefix('a') }} {{ 'abb'.removesuffix('b') }} {{ 'ab'.removesuffix('') }} {{ 'ab'.removeprefix('c') }}
{{ '' | wordcount }} {{ "it's a_b 3.5, 好的 " | wordcount }} {{ 'naïve—text' | wordcount }}
{% macro f() %}{% endmacro %}{{ f is callable }} {{ raise_exception is callable }} {{ strftime_now is callable }} {{ 'x' is callable }} {{ none is callable }} {{ missing is callable }} {{ {} is callable }} {{ 3 is not callable }}
{{ {'b': 1, 'a': 2} | items | list }} {{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ [3, 1] | min }} {{ 'a b c' | wordcount }} {{ [1, 2] | last }}
{{ {'a': 1}.values() | list }} {{ dict({'a': 1}, b=2) }} {{ {'a': 1}.get('a', 5) + 1 }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }}
{{ 'a--b'.rsplit('-', 1) }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'ab'.index('b') if false else 'ab'.find('z') }} {{ 'a\\r\\nb' | length }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'Abc'.islower() }}
{{ messages | map(attribute='content') | map('length') | list }} {{ messages | map(attribute='nothing', default='-') | join }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ messages | rejectattr('role', 'in', ['system']) | list | length }}
{{ messages[:-1] | map(attribute='role') | join('>') }} {{ messages[::-1][0].role }} {{ (messages | selectattr('role', 'equalto', 'system') | list)[0].content | trim }} {{ messages | sum(start=0, attribute='none') if false else 0 }}
{% set m = messages[0] %}{% if m.content is string and m['content'] | trim | length > 0 and not (m.tool_calls is defined and m.tool_calls) %}text{% endif %}{% if m.content is not none %} some{% endif %}{% if 'role' in m and m.get('role') != 'user' %} other{% endif %}
{% set list = [] %}{% set _ = list.append(1) %}{{ list }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }} {# a comment #}{%- set x -%} kept {%- endset %}[{{ x }}] {{ "%.2f" | format(1.5) }} {{ "%s" % 'x' if false else '' }}
{{ [['a', 1], ['b', 2]] | map('first') | list }} {% for name, n in [['a', 1], ['b', 2]] %}{{ name }}{{ n }}{{ ',' if not loop.last }}{% endfor %} {{ 'a' ~ 1.0 ~ true ~ [1] }} {{ 5 // 2 * 2 - 1 }} {{ (1 if false) is defined }}
{{ raise_exception('stop: ' + messages[0].role) }}
{{ undefined_function() }}
{{ missing.attribute }}
""".rstrip("\n").split("\n")

USER = {"role": "user", "content": "What is a <b>shell</b>?\n"}
SYSTEM = {"role": "system", "content": " Be brief. "}
ANSWER = {"role": "assistant", "content": "<think>\nA shell…\n</think>\n\nIt reads commands, 好."}
REASONED = {"role": "assistant", "content": "Yes.", "reasoning": "because"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "ls", "arguments": {"path": "/", "all": True}}}],
}
RESULT = {"role": "tool", "content": "bin etc"}
PARTS = {"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}
TOOLS = [{"type": "function", "function": {"name": "ls", "description": "Lists <files> & more", "parameters": {}}}]

CHATS = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, ANSWER, USER],
    [USER, REASONED],
    [USER, CALL, RESULT, RESULT],
    [PARTS],
    [USER, USER],
]
QUIET = {"enable_thinking": False}

# What published templates are asked: the shapes in which chat APIs send conversations.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a <city> & its \"surroundings\", größer als 5 °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. 北京"},
                "days": {"type": "integer", "enum": [1, 3, 7]},
                "units": {"type": ["string", "null"], "enum": ["C", "F"], "default": "C"},
                "places": {"type": "array", "items": {"type": "object", "properties": {"lat": {"type": "number"}}}},
            },
            "required": ["city"],
        },
    },
}
TIME = {
    "type": "function",
    "function": {"name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
ASK = {"role": "user", "content": "How is the weather in 北京? \n"}
TWO_CALLS = {
    "role": "assistant",
    "content": "Let me see.",
    "reasoning_content": "I need two tools.\n",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": {"city": "北京", "days": 3, "warm": True, "at": 1.5, "nothing": None, "places": [{"lat": 1.0}]},
            },
        },
        {"id": "call00002", "type": "function", "function": {"name": "get_time", "arguments": {}}},
    ],
}
ONE_CALL = {**TWO_CALLS, "content": "", "tool_calls": TWO_CALLS["tool_calls"][:1]}
RESULTS = [
    {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"temp": 3.5, "sky": "晴"}'},
    {"role": "tool", "name": "get_time", "tool_call_id": "call00002", "content": "12:00"},
]
FINAL = {"role": "assistant", "content": "It is 3.5 °C.", "reasoning_content": "The tool says so."}
TURNS = [SYSTEM, USER, {"role": "assistant", "content": "A program."}, {"role": "user", "content": "Which?"}]


def strings(message):
    """The message with its arguments as text, the way the OpenAI API sends them."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


PUBLISHED = {
    "user": dict(messages=[USER]),
    "system": dict(messages=[SYSTEM, USER]),
    "turns": dict(messages=TURNS),
    "no prompt": dict(messages=TURNS, prompt=False),
    "thinking": dict(messages=TURNS, variables={"enable_thinking": True, "thinking": True}),
    "no thinking": dict(messages=TURNS, variables={"enable_thinking": False, "thinking": False}),
    "reasoned": dict(messages=[USER, FINAL, ASK]),
    "parts": dict(messages=[PARTS]),
    "tools": dict(messages=[SYSTEM, ASK], tools=[WEATHER, TIME]),
    "tools without system": dict(messages=[ASK], tools=[WEATHER]),
    "call": dict(messages=[SYSTEM, ASK, ONE_CALL, RESULTS[0]], tools=[WEATHER, TIME]),
    "calls": dict(messages=[ASK, TWO_CALLS, *RESULTS], tools=[WEATHER, TIME]),
    "calls as text": dict(messages=[ASK, strings(ONE_CALL), RESULTS[0]], tools=[WEATHER]),
    "answered": dict(messages=[ASK, TWO_CALLS, *RESULTS, FINAL, USER], tools=[WEATHER, TIME]),
    "end": dict(messages=[SYSTEM, USER, FINAL], prompt=False),
    "roles": dict(messages=[USER, USER]),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# What only mlx-lm's own renderers read.
SILENT = {"role": "assistant", "content": None, "tool_calls": strings(ONE_CALL)["tool_calls"]}
TEXT_CALLS = [ASK, strings(TWO_CALLS), *RESULTS]
MLX_LM = {
    "user, quiet": dict(messages=[USER], variables=QUIET),
    "user, thinking": dict(messages=[USER], variables={"enable_thinking": True}),
    "turns, quiet": dict(messages=TURNS, variables=QUIET),
    "turns, no prompt": dict(messages=TURNS, prompt=False),
    "reasoned twice": dict(messages=[USER, FINAL, ASK, FINAL], prompt=False),
    "tools, thinking": dict(messages=[SYSTEM, ASK], tools=[WEATHER, TIME]),
    "one call": dict(messages=[SYSTEM, ASK, strings(ONE_CALL), RESULTS[0]], tools=[WEATHER, TIME]),
    "developer": dict(messages=[{"role": "developer", "content": "Be terse."}], tools=[WEATHER]),
    "developer first": dict(messages=[{"role": "developer", "content": "Be terse."}, ASK], tools=[WEATHER]),
    "two developers": dict(messages=[{"role": "developer", "content": "Be terse."}, ASK], variables=QUIET),
    "format": dict(messages=[{"role": "system", "content": "Hi", "response_format": {"größe": 1}}, ASK], tools=[WEATHER]),
    "silent": dict(messages=[ASK, SILENT, RESULTS[0]], tools=[WEATHER]),
    "two calls": dict(messages=TEXT_CALLS, tools=[WEATHER, TIME]),
    "too few results": dict(messages=[*TEXT_CALLS[:2], RESULTS[0], ASK]),
    "too many results": dict(messages=[*TEXT_CALLS, RESULTS[0]]),
    "result alone": dict(messages=[ASK, RESULTS[0]]),
    "calls answered": dict(messages=[*TEXT_CALLS, FINAL, USER], tools=[WEATHER, TIME]),
    "calls without thought": dict(messages=TEXT_CALLS, variables={"enable_thinking": False}),
    "unknown role": dict(messages=[{"role": "critic", "content": "No."}]),
    "bare answer": dict(messages=[USER, {"role": "assistant", "content": "Yes."}]),
}


class Clock(datetime.datetime):
    """The moment at which all templates are rendered."""

    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 9, 14, 5, 6)


def case(template, messages, variables={}, tools=None, prompt=True, render=None, **names):
    result = {}
    try:
        if render is None:
            variables = SPECIAL | variables
            rendered, _ = render_jinja_template(
                [messages], chat_template=template, tools=tools, add_generation_prompt=prompt, **variables
            )
            result["expected"] = rendered[0]
        else:
            # mlx-lm's modules do not copy what they get.
            result["expected"] = render(
                json.loads(json.dumps(messages)), tools=tools, add_generation_prompt=prompt, **variables
            )
    except (jinja2.exceptions.TemplateError, TypeError, AssertionError, NotImplementedError, AttributeError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    if names:
        return dict(**names, **result)
    return dict(template=template, messages=messages, variables=variables, tools=tools, prompt=prompt, **result)


def published():
    for path in sorted(CHAT.glob("templates/*.jinja")):
        # As transformers reads the file.
        template = path.read_text(encoding="utf-8")
        for name, given in PUBLISHED.items():
            yield case(template, **given, file=path.name, chat=name)


def mlx_lm_modules():
    """Renderers that mlx-lm has instead of templates, without importing mlx."""
    folder = Path(importlib.util.find_spec("mlx_lm").submodule_search_locations[0]) / "chat_templates"
    spec = importlib.util.spec_from_file_location("deepseek_v32", folder / "deepseek_v32.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, given in MLX_LM.items():
        yield case(None, **given, render=module.apply_chat_template, builtin="deepseek_v32", chat=name)


def main():
    chat_template_utils.datetime = Clock
    cases = [case(t, chat, QUIET) for t in (REASONING, INSTRUCT, MACRO) for chat in CHATS]
    cases += [
        case(REASONING, [SYSTEM, USER], QUIET, tools=TOOLS),
        case(REASONING, [USER]),
        case(REASONING, [USER], QUIET, prompt=False),
    ]
    cases += [case(line, [SYSTEM, USER, ANSWER], QUIET) for line in MISC]
    cases += [*published(), *mlx_lm_modules()]
    out = CHAT / "golden.json"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "jinja2", "mlx-lm")]
    rows = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    head = json.dumps({"made_by": ", ".join(versions), "chats": PUBLISHED | MLX_LM}, ensure_ascii=False)
    out.write_text(f'{head[:-1]}, "cases": [\n{rows}\n]}}\n', encoding="utf-8")
    print(len(cases), "cases,", sum("error" in c for c in cases), "of them refused:", out)


if __name__ == "__main__":
    main()
