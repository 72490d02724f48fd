"""Sources: one reader a format. A source lists raw records; sampling and order are the loader's business."""

from typing import Any, Protocol

from data_pipelines.sources.easy_vqa import EasyVQA, EasyVQASource
from data_pipelines.sources.text_questions import TextQuestion, TextQuestions, TextQuestionsSource

SourceConfig = EasyVQA | TextQuestions
"""Union of the sources' configs. Each has a `name` and is opened by `open_source`."""


class Source(Protocol):
    """Random access to raw records."""

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


def open_source(config: SourceConfig) -> Source:
    """Opens a source.

    Raises:
        UserError: if its data are missing or cannot be read.
    """
    if isinstance(config, TextQuestions):
        return TextQuestionsSource(config)
    return EasyVQASource(config)


__all__ = ["EasyVQA", "Source", "SourceConfig", "TextQuestion", "TextQuestions", "open_source"]
