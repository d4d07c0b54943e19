"""The forms of calls with one tag for each parameter, as `tagged_call` reads them."""

from __future__ import annotations

import re

from truthgpt_serve.server.text.tools.form import CALLED, Form
from truthgpt_serve.server.text.tools.tagged_call import DSML

TAGGED = (
    (
        re.compile(r"<tool_call>\s*<function="),
        Form(
            "qwen3_coder",
            "<tool_call>",
            "</tool_call>",
            arguments="",
            head="\n<function={name}>\n",
            tail="\n</function>\n",
            style="qwen_xml",
        ),
    ),
    (
        re.compile(rf"<tool_call>\s*{CALLED}\s*<arg_key>"),
        Form(
            "glm45",
            "<tool_call>",
            "</tool_call>",
            arguments="",
            head="{name}\n",
            tail="\n",
            style="glm_xml",
        ),
    ),
    (
        re.compile(r"<seed:tool_call>\s*<function="),
        Form(
            "seed_oss",
            "<seed:tool_call>",
            "</seed:tool_call>",
            arguments="",
            head="\n<function={name}>\n",
            tail="\n</function>\n",
            needs_tokens=True,
            style="qwen_xml",
        ),
    ),
    (
        re.compile(r"<minimax:tool_call>\s*<invoke name="),
        Form(
            "minimax_m2",
            "<minimax:tool_call>",
            "</minimax:tool_call>",
            arguments="",
            head='\n<invoke name="{name}">\n',
            tail="\n</invoke>\n",
            needs_tokens=True,
            style="minimax_xml",
        ),
    ),
    (
        re.compile(rf'<{DSML}tool_calls>\s*<{DSML}invoke name="{CALLED}">'),
        Form(
            "deepseek_v4",
            f"<{DSML}tool_calls>",
            f"</{DSML}tool_calls>",
            arguments="",
            head=f'\n<{DSML}invoke name="{{name}}">\n',
            tail=f"\n</{DSML}invoke>\n",
            style="deepseek_xml",
        ),
    ),
    (
        re.compile(rf'<{DSML}invoke name="{CALLED}">'),
        Form(
            "deepseek_v32",
            f"<{DSML}function_calls>",
            f"</{DSML}function_calls>",
            arguments="",
            head=f'\n<{DSML}invoke name="{{name}}">\n',
            tail=f"\n</{DSML}invoke>\n",
            needs_tokens=True,
            style="deepseek_xml",
        ),
    ),
)
"""What shows them in a rendered call, and the forms."""
