#!/usr/bin/env python3
"""Renders chat templates with transformers, as reference for crates/lm/src/chat.rs.

    python scripts/chat_golden/make.py        # needs transformers and jinja2 >= 3.1.6

Writes crates/lm/src/chat_golden.json: templates, conversations, and what transformers makes of them.
The templates are written for this test in the manner of published ones; each line of MISC is one
behaviour of Python's Jinja2 that published templates rely on.
"""

import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

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
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}


def case(template, messages, variables=VARIABLES, tools=None, prompt=True):
    result = {}
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, tools=tools, add_generation_prompt=prompt, **variables
        )
        result["expected"] = rendered[0]
    except (jinja2.exceptions.TemplateError, TypeError) as error:
        result["error"] = str(error)
    return dict(
        template=template, messages=messages, variables=variables, tools=tools, prompt=prompt, **result
    )


def main():
    cases = [case(t, chat) for t in (REASONING, INSTRUCT, MACRO) for chat in CHATS]
    cases += [case(REASONING, [SYSTEM, USER], tools=TOOLS), case(REASONING, [USER], {}), case(REASONING, [USER], prompt=False)]
    cases += [case(line, [SYSTEM, USER, ANSWER]) for line in MISC]
    out = Path(__file__).resolve().parents[2] / "crates/lm/src/chat_golden.json"
    made_by = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    rows = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    out.write_text(f'{{"made_by": "{made_by}", "cases": [\n{rows}\n]}}\n')
    print(len(cases), "cases,", sum("error" in c for c in cases), "of them refused:", out)


if __name__ == "__main__":
    main()
