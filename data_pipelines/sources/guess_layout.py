"""Configs of sources for files whose layout nobody said: the fields of the first record tell."""

import os
from collections.abc import Mapping
from typing import Any

from data_pipelines.layouts import LayoutName, guess_layout
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources.json_index import first_json
from data_pipelines.sources.json_lines import SUFFIXES, JSONLines
from data_pipelines.sources.parquet import Parquet, column_names
from data_pipelines.sources.paths import list_files, local_copy
from data_pipelines.sources.webdataset import WebDataset, first_fields


def json_lines_for(path: str) -> JSONLines:
    """JSONLines with the layout of the first object.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    name = os.path.basename(path)
    return JSONLines(path, layout=_layout(first_json(local_copy(list_files(path, SUFFIXES, name)[0]), name)))


def parquet_for(path: str) -> Parquet:
    """Parquet with the layout that the columns of the first file speak for.

    Raises:
        UserError: if there is no such file, or it is none.
    """
    name = os.path.basename(path)
    names = column_names(local_copy(list_files(path, (".parquet",), name)[0]), name)
    return Parquet(path, layout=_layout(dict.fromkeys(names)))


def webdataset_for(path: str) -> WebDataset:
    """WebDataset with the layout of the first record of the first tar.

    Raises:
        UserError: if there is no such file, or it is no tar.
    """
    config = WebDataset(path)
    try:
        return WebDataset(path, layout=_layout(first_fields(config)))
    except BadRecord:
        return config


def _layout(fields: Mapping[str, Any] | None) -> LayoutName:
    return guess_layout(fields) if fields else "plain"
