"""The prompt that two answers have in common, where it has no column of its own."""

from __future__ import annotations

from typing import Any, TypeVar

Answer = TypeVar("Answer", str, list[Any])


def extract_prompt(chosen: Answer, rejected: Answer) -> tuple[Answer, dict[str, Any]]:
    """Returns the common beginning of two answers, and what is left of each.

    The same as `trl.extract_prompt`: of chats whole messages; of texts characters, where a space
    before the first different one stays with the answers.
    """
    index = 0
    for index in range(min(len(chosen), len(rejected))):  # it is read after the loop
        if chosen[index] != rejected[index]:
            if index and chosen[index - 1] == " ":
                index -= 1
            break
    return chosen[:index], {"chosen": chosen[index:], "rejected": rejected[index:]}
