"""Our template as Hugging Face's tokenizers have it: Jinja, from a list of messages to a text."""

from __future__ import annotations

import json

from minigpt.data.template import Template

# An answer follows all that was said since the one before it, as in data/records.py. A question
# that has no answer yet ends in what comes before one, whether a prompt for it is asked for or not.
_CHAT = r"""
{%- set ns = namespace(asked='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- before + ns.asked + between + message['content'] + after -}}
        {%- set ns.asked = '' -%}
    {%- elif message['content'].strip() -%}
        {%- set ns.asked = ns.asked + ('\n\n' if ns.asked else '') + message['content'] -%}
    {%- endif -%}
{%- endfor -%}
{%- if messages[-1]['role'] != 'assistant' -%}
    {{- before + ns.asked + between -}}
{%- endif -%}
"""


def chat_template(template: Template) -> str:
    """The Jinja source that gives the text whose tokens `template.render` makes."""
    end = " + eos_token" if template.eos and not template.whole else ""
    before, between, after = (
        json.dumps(text, ensure_ascii=False)
        for text in (template.before, template.between, template.after)
    )
    return (
        f"{{%- set before = {before} -%}}\n{{%- set between = {between} -%}}\n"
        f"{{%- set after = {after}{end} -%}}{_CHAT}"
    )
