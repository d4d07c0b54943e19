"""The entry that `truthgpt init` adds to a Serve file."""

from __future__ import annotations

import pytest

from truthgpt_serve.cli._init.serve_file import InsertError, add_model

SERVE = """\
# The service.
http_options: {port: 8000}
applications: # all of them
  - name: a # the first
    route_prefix: /models/a
    import_path: truthgpt_serve.app:model
    args: {config: models/a.yaml}

  # The router comes last.
  - name: router
    route_prefix: /
    import_path: truthgpt_serve.app:router
    args: {}
# The end.
"""


ENTRY = """\
  - name: b
    route_prefix: /models/b
    import_path: truthgpt_serve.app:model
    args:
      config: models/b.yaml
"""


def test_an_entry_goes_before_the_router_and_comments_stay() -> None:
    found = add_model(SERVE, "b", "models/b.yaml")
    assert found == SERVE.replace("  # The router comes", f"{ENTRY}  # The router comes")
    without = SERVE[: SERVE.index("\n  # The router")]
    assert add_model(without, "b", "models/b.yaml") == without + ENTRY
    assert add_model(without.rstrip("\n"), "b", "models/b.yaml") == without + ENTRY
    flat = SERVE.replace("\n  ", "\n")
    assert "\n- name: b\n  route_prefix" in add_model(flat, "b", "models/b.yaml")
    folded = f"{without}    runtime_env:\n      x: |\n        - name: text\n\nother: 1\n"
    assert add_model(folded, "b", "models/b.yaml").endswith(f"{ENTRY}\nother: 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SERVE.replace("name: a", "name: b"), "has an application 'b' already"),
        ("applications: [{name: a}]", "not listed one below the other"),
        ("applications: []", "not listed one below the other"),
        ("applications:\n- a\n", "not listed one below the other"),
        ("x: 1", "no list `applications`"),
        ("", "no list `applications`"),
        ("a: [", "is not YAML"),
        ("a: &x 1\n---\nb: 2\n", "is not YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(InsertError, match=message):
        add_model(text, "b", "models/b.yaml")
