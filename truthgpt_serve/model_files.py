"""Looks at the files of a model without a library that loads them: headers, indices, shards.

What is found here would else be found when the model loads, minutes later and on another machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgpt_serve.errors import TruthGPTError

Problem = tuple[str, str]
"""What is wrong with a file, and what to do."""

MAX_HEADER_BYTES = 100 << 20
"""safetensors' own limit."""
MAX_JSON_BYTES = 256 << 20
INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".npz")
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "tokenization_*.py",
)
"""Each alone is a tokenizer, or its vocabulary."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_FETCH = "fetch it again; with Git LFS: git lfs pull"


class ModelFileError(TruthGPTError):
    """A file that is not what its name says; the message names it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file.

    Attributes:
        dtype: In safetensors' words, such as `BF16`.
        shape: Its edges.
    """

    dtype: str
    shape: tuple[int, ...]


def read_json(file: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ModelFileError: It cannot be read, or is no JSON.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{file}: is longer than {MAX_JSON_BYTES >> 20} MiB")
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file}: is not JSON: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Raises:
        ModelFileError: It cannot be read, or is no JSON object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise ModelFileError(f"{file}: is not a JSON object")
    return value


def read_header(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name, from its header alone.

    Raises:
        ModelFileError: It cannot be read, is damaged, or was cut off.
    """
    header, start = _read_header(file)
    try:
        return _tensors(file, header, start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{file}: is a damaged safetensors file: {error}") from error


def read_metadata(file: Path) -> dict[str, str]:
    """Returns what the header of a safetensors file says beside its tensors.

    Raises:
        ModelFileError: It cannot be read, or is damaged.
    """
    found = _read_header(file)[0].get("__metadata__", {})
    return {str(key): str(value) for key, value in found.items()} if found else {}


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Returns the header of a safetensors file, and where the tensors begin."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
            if start == _POINTER:
                raise ModelFileError(f"{file}: is a Git LFS pointer, not the weights")
            if len(start) < 8:
                raise ModelFileError(f"{file}: is too short for a safetensors file")
            (length,) = struct.unpack("<Q", start[:8])
            if length > MAX_HEADER_BYTES:
                raise ModelFileError(f"{file}: is not a safetensors file")
            stream.seek(8)
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise TypeError("its header is no JSON object")
        return header, 8 + length
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{file}: is a damaged safetensors file: {error}") from error


def _tensors(file: Path, header: Mapping[str, Any], start: int) -> dict[str, Tensor]:
    end = start
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        found[name] = Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"])))
        end = max(end, start + int(entry["data_offsets"][1]))
    size = file.stat().st_size
    if size < end:
        raise ModelFileError(f"{file}: was cut off: it has {size:,} of {end:,} bytes")
    return found


def find_problems(folder: Path) -> Iterator[Problem]:
    """Yields what is wrong with the weights of a folder, and of the folders in it.

    Looks at indices of shards, at headers of safetensors files and for pointers of Git LFS.
    """
    try:
        inner = sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError as error:
        yield f"{folder}: cannot be read: {error.strerror}", "make it readable"
        return
    for place in (folder, *inner):
        if place == folder or not place.name.startswith("."):
            yield from _find_here(place)
    if (config := folder / "config.json").is_file():
        try:
            read_object(config)
        except ModelFileError as error:
            yield error.message, _FETCH


def _find_here(folder: Path) -> Iterator[Problem]:
    named: set[Path] = set()
    for index in sorted(folder.glob(f"*{INDEX_SUFFIX}")):
        try:
            shards = read_shards(index)
        except ModelFileError as error:
            yield error.message, _FETCH
            continue
        named.update(shards)
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            names = ", ".join(missing[:3])
            message = f"{index}: names {names}{more}, which are not there"
            yield message, "fetch the missing files, or correct the index"
    for file in sorted({*folder.glob("*.safetensors"), *(f for f in named if f.is_file())}):
        if file.suffix == ".safetensors":
            try:
                read_header(file)
            except ModelFileError as error:
                yield error.message, _FETCH


def read_shards(index: Path) -> list[Path]:
    """Returns the files that an index names.

    Raises:
        ModelFileError: It is no such index.
    """
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
        raise ModelFileError(f"{index}: has no weight_map of file names")
    return [index.parent / name for name in sorted(set(names.values()))]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of the safetensors files of a folder.

    Raises:
        ModelFileError: One is damaged.
    """
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(read_header(file))
    return found


def has_weights(folder: Path) -> bool:
    """Returns whether a folder, or one in it, has a file of weights."""
    files = (*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*"))
    return any(file.suffix.lower() in WEIGHT_SUFFIXES for file in files)


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has a tokenizer of any kind."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files in a folder, at any depth."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
