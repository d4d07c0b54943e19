"""The entry of an adapter in a model's YAML: comments stay, and nothing else changes."""

from __future__ import annotations

import pytest
import yaml

from truthgpt_serve.cli._init.serve_file import InsertError
from truthgpt_serve.cli._serving.adapter_entry import add_adapter

ENTRY = {"name": "b", "path": "/runs/b"}
HEAD = "# mine\ntask: text-generation # chat\n"
FORMS = {
    "no serving": HEAD,
    "no line break at the end": HEAD.rstrip(),
    "no adapters": f"{HEAD}serving:\n    # few\n    num_replicas: 1 # one\n\n# the end\n",
    "a list": f"{HEAD}serving:\n  adapters: # all\n    - name: a # first\n      path: x\n  x: []\n",
    "a flat list": f"{HEAD}serving:\n  adapters:\n  - {{name: a, path: x}}\n",
    "in one line": f"{HEAD}serving: {{num_replicas: 1}} # one\n",
    "a list in one line": f"{HEAD}serving:\n  adapters: [{{name: a, path: x}}] # all\n",
    "an empty list": f"{HEAD}serving:\n  adapters: [] # none\n",
    "nothing": f"{HEAD}serving:\n",
    "null": f"{HEAD}serving:\n  adapters:\n  num_replicas: 1\n",
    "Windows": f"{HEAD}serving:\n  num_replicas: 1\n".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_is_added_and_the_rest_stays(form: str) -> None:
    before = FORMS[form]
    after = add_adapter(before, (), ENTRY)
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    assert new["serving"].pop("adapters")[-1] == ENTRY
    kept = {**(old.get("serving") or {})}
    kept.pop("adapters", None)
    assert new["serving"] == kept
    assert new["task"] == old["task"]
    for comment in ("# mine", "# chat", "# few", "# one", "# the end", "# all", "# first"):
        assert (comment in after) == (comment in before)
    assert after.count("\r\n") == (after.count("\n") if "\r\n" in before else 0)


def test_keys_inside_a_serve_file_are_found() -> None:
    args = "  - name: m\n    args:\n      task: text-generation\n  - name: r\n    args: {}\n"
    text = f"applications:\n{args}"
    after = add_adapter(text, ("applications", 0, "args"), ENTRY)
    applications = yaml.safe_load(after)["applications"]
    assert applications[0]["args"]["serving"]["adapters"] == [ENTRY]
    assert applications[1] == {"name": "r", "args": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}serving:\n  adapters: [{{name: b, path: x}}]\n", "has an adapter 'b' already"),
        ("x: [", "is not YAML"),
        ("a: &s {num_replicas: 1}\nserving: *s\n", "cannot be inserted"),
        ("", "has no keys of a model"),
        ("- x\n", "has no keys of a model"),
        ("serving: 3\n", "has no keys of a model"),
    ],
)
def test_what_has_no_place_is_refused(text: str, message: str) -> None:
    with pytest.raises(InsertError, match=message):
        add_adapter(text, (), ENTRY)
