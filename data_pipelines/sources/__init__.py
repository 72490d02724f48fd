"""Sources: one reader a format. A source lists raw records; sampling and order are the loader's business."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from data_pipelines.sources.array_records import ArrayRecords, ArrayRecordsSource
from data_pipelines.sources.easy_vqa import EasyVQA, EasyVQASource
from data_pipelines.sources.guess import source_for
from data_pipelines.sources.json_lines import JSONLines, JSONLinesSource
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.parquet import Parquet, ParquetSource
from data_pipelines.sources.python_topics import PythonTopics, PythonTopicsSource
from data_pipelines.sources.shape_texts import ShapeTexts, ShapeTextsSource
from data_pipelines.sources.text_questions import TextQuestion, TextQuestions, TextQuestionsSource
from data_pipelines.sources.tfds import TFDS, TFDSSource
from data_pipelines.sources.webdataset import WebDataset, WebDatasetSource

SourceConfig = (
    EasyVQA | TextQuestions | ShapeTexts | PythonTopics | ArrayRecords | TFDS | Parquet | WebDataset | JSONLines
)
"""Union of the sources' configs. Each is opened by `open_source`, and `source_name` says what it is called."""


class Source(Protocol):
    """Random access to raw records.

    A source may have `contents`, a digest of all its records: a run is not resumed on others of the same number.
    """

    @property
    def name(self) -> str:
        """Names the source in metrics and in quarantine."""

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record: {'id': str, …}; which other fields there are, the source's docstring says.

        Raises:
            BadRecord: if the record cannot be read; its `record_id` names it.
        """


_OPENERS: Mapping[type, Callable[[Any], Source]] = {
    EasyVQA: EasyVQASource,
    TextQuestions: TextQuestionsSource,
    ShapeTexts: ShapeTextsSource,
    PythonTopics: PythonTopicsSource,
    ArrayRecords: ArrayRecordsSource,
    Parquet: ParquetSource,
    WebDataset: WebDatasetSource,
    JSONLines: JSONLinesSource,
    TFDS: TFDSSource,
}


def open_source(config: SourceConfig) -> Source:
    """Opens a source.

    Raises:
        UserError: if its data are missing or cannot be read.
    """
    return _OPENERS[type(config)](config)


__all__ = [
    "TFDS",
    "ArrayRecords",
    "EasyVQA",
    "JSONLines",
    "Parquet",
    "PythonTopics",
    "ShapeTexts",
    "Source",
    "SourceConfig",
    "TextQuestion",
    "TextQuestions",
    "WebDataset",
    "open_source",
    "source_for",
    "source_name",
]
