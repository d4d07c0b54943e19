"""Which split of a data set a file belongs to, by the usual names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from truthgpt_serve.training.data.inventory import Inventory, listed, shown
from truthgpt_serve.training.errors import TrainingError

Split = Literal["train", "validation", "test"]
TRAIN: Split = "train"
VALIDATION: Split = "validation"
TEST: Split = "test"

WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
_WORD = f"({'|'.join(sorted(WORDS, key=len, reverse=True))})"
_FOLDER = re.compile(rf"{_WORD}(?:[-_ .]?(?:\d+|set|split|data|images))*", re.IGNORECASE)
_PREFIX = re.compile(rf"{_WORD}(?:[-_.].*|\d.*)?", re.IGNORECASE)
_SUFFIX = re.compile(rf".*[-_.]{_WORD}(?:[-_.]?(?:v?\d+|of))*", re.IGNORECASE)


def splits_of(file: Path, *, by_name: bool = True) -> set[Split]:
    """Returns the splits that a path inside a data set names; none, one, or contradicting ones.

    Args:
        file: Relative to the data set's folder, without the suffixes of its kind.
        by_name: Whether the file's own name counts, which of an image says what it shows.
    """
    found = [_FOLDER.fullmatch(part) for part in file.parts[:-1]]
    if by_name:
        found += [_PREFIX.fullmatch(file.name), _SUFFIX.fullmatch(file.name)]
    return {WORDS[match[1].lower()] for match in found if match}


def choose_split(
    root: Path, files: Sequence[tuple[Path, set[Split]]], wanted: Split, inventory: Inventory
) -> list[Path]:
    """Returns the files to train on, or to evaluate on.

    To train: those that name no split or `train`. To evaluate: those that name `validation`, else
    `test`, else all if none names a split.

    Args:
        root: The data set's folder.
        files: Each with the splits that its path names.
        wanted: `train` or `validation`.
        inventory: Is told which files are of other splits.

    Raises:
        TrainingError: A file's split cannot be told, or the wanted one has no file.
    """
    _check_ambiguous(root, files)
    groups: dict[Split | None, list[Path]] = {TRAIN: [], VALIDATION: [], TEST: [], None: []}
    for file, splits in files:
        groups[next(iter(splits), None)].append(file)
    chosen = _chosen(root, groups, wanted)
    for split in chosen:
        groups.pop(split)
    for split, others in groups.items():
        for file in others:
            reason = f"split {split}" if split else "of no split"
            if wanted == TRAIN and split == VALIDATION:
                reason += ", which data.eval_dataset can name"
            inventory.leave_out(str(file.relative_to(root)), reason)
    return sorted(file for file, splits in files if next(iter(splits), None) in chosen)


def _chosen(
    root: Path, groups: dict[Split | None, list[Path]], wanted: Split
) -> list[Split | None]:
    if wanted == TRAIN:
        if groups[TRAIN] or groups[None] or not any(groups.values()):
            return [TRAIN, None]
        held_out = sorted(file for group in groups.values() for file in group)
        names = listed([str(file.relative_to(root)) for file in held_out])
        fix = "to train on one, name the file itself"
        raise TrainingError(f"{shown(root)}: holds only data to evaluate on: {names} ({fix})")
    for split in (VALIDATION, TEST):
        if groups[split]:
            return [split]
    if not groups[TRAIN]:
        return [None]
    fix = "name other data, or set data.eval_share instead"
    raise TrainingError(f"{shown(root)}: holds no split to evaluate on ({fix})")


def _check_ambiguous(root: Path, files: Sequence[tuple[Path, set[Split]]]) -> None:
    several = [str(file.relative_to(root)) for file, splits in files if len(splits) > 1]
    if several:
        fix = "rename it, or name the files to read themselves"
        raise TrainingError(f"{shown(root)}: {listed(several)} names several splits ({fix})")
    named = set().union(*(splits for _, splits in files)) if files else set()
    none = [str(file.relative_to(root)) for file, splits in files if not splits]
    if none and TRAIN in named and len(named) > 1:
        fix = "put train, validation or test into its name, or move it away"
        message = f"cannot tell the split of {listed(none)} beside files that name theirs"
        raise TrainingError(f"{shown(root)}: {message} ({fix})")
