"""Kinds of files in a folder of data, by their names."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

ROW_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Files of rows that are read."""
_SAME = {".ndjson": ".jsonl"}
"""Other suffixes of the same formats."""
COMPRESSIONS = (".gz", ".zst")
"""Behind the suffix of a file of rows, but for Parquet, which compresses itself."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
METADATA = "metadata.jsonl, .csv or .parquet"
"""Captions of the images beside it."""

_OTHER_ROWS = re.compile(
    r".*\.(psv|jsonlines?|jl|json5|arrow|feather|ipc|orc|avro|xlsx?|ods|"
    r"sqlite3?|db|duckdb|msgpack|pkl|pickle|npy|npz|h5|hdf5|mat|tfrecords?|lance|xml|text|conllu|"
    r"dta|sav|pt|mds|mdb|bson|pq)",
    re.IGNORECASE,
)
_PACKED = re.compile(
    r".*\.(gz|bz2|xz|zstd?|lz4|lzma|br|z|snappy|zip|tar|tgz|tbz2?|txz|7z|rar)", re.IGNORECASE
)
_OTHER_IMAGES = re.compile(
    r".*\.(gif|tiff?|heic|heif|avif|jfif|jpe|jp2|jxl|ico|psd|tga|ppm|pgm|svg|exr|dng|cr2|nef)",
    re.IGNORECASE,
)
_ABOUT_DATA = re.compile(r"(dataset_infos?|dataset_dict|state|croissant)\.json", re.IGNORECASE)
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|changelog|changes|authors|contributors|"
    r"requirements|constraints|citation|todo|install|cmakelists)([-_. ].*)?",
    re.IGNORECASE,
)


class Kind(Enum):
    """What a file is to a data set."""

    ROWS = "rows"
    """Is read."""
    OTHER_ROWS = "other rows"
    """Is data of a format that is not read."""
    IMAGE = "image"
    OTHER_IMAGE = "other image"
    """Is an image of a format that is not read."""
    DOCUMENT = "document"
    """Is a text by its suffix, and about the project by its name."""
    NO_DATA = "no data"


def kind_of(file: Path) -> Kind:
    """Returns the kind of a file; upper and lower case are the same."""
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Kind.IMAGE
    if _OTHER_IMAGES.fullmatch(file.name):
        return Kind.OTHER_IMAGE
    if _ABOUT_DATA.fullmatch(file.name):
        return Kind.NO_DATA
    if format_of(file):
        is_document = suffix == ".txt" and _DOCUMENT.fullmatch(file.stem)
        return Kind.DOCUMENT if is_document else Kind.ROWS
    if _OTHER_ROWS.fullmatch(file.name) or _PACKED.fullmatch(file.name):
        return Kind.OTHER_ROWS
    return Kind.NO_DATA


def format_of(file: Path) -> str:
    """Returns which of `ROW_SUFFIXES` a file of rows has, before that of its compression.

    It is empty where the file is none that is read.
    """
    is_packed = file.suffix.lower() in COMPRESSIONS
    suffix = (file.with_suffix("") if is_packed else file).suffix.lower()
    found = _SAME.get(suffix, suffix)
    return "" if found not in ROW_SUFFIXES or (is_packed and found == ".parquet") else found


def is_metadata(file: Path) -> bool:
    """Returns whether a file holds the captions of the images beside it."""
    return file.name.lower() in METADATA_NAMES


def stem_of(file: Path) -> Path:
    """Returns a path without the suffixes of its kind, such as `train` of `train.jsonl.gz`."""
    stem = file.with_suffix("") if kind_of(file) is not Kind.NO_DATA else file
    return stem.with_suffix("") if _PACKED.fullmatch(file.name) and stem.suffix else stem
