"""Does one task: reads its pages, takes out their main content, and tells where the pictures of a WARC file are."""

import os
from collections.abc import Iterator
from typing import Any

import msgpack
from etils import epath

from data_pipelines.prepare.web.config import WebConfig
from data_pipelines.prepare.web.documents import Document, blocks_of, document_of, tidy, without_blocks
from data_pipelines.prepare.web.funnel import CUT_INPUT, READ, page_event, passage_event
from data_pipelines.prepare.web.html import extract_page
from data_pipelines.prepare.web.inputs import Task, page_address, task_key
from data_pipelines.prepare.web.quality import bad_passages
from data_pipelines.prepare.web.warc import CutWarc, warc_responses

Item = tuple[str, Any]
"""("page", document), ("picture", [address, location]) or ("event", event)."""


def read_task(task: Task, config: WebConfig, kept: str) -> Iterator[Item]:
    """What a task holds.

    Args:
        task: See `inputs.find_tasks`.
        config: Rules.
        kept: A directory for finished tasks: one that an interrupted run has done is not done again.
    """
    path = epath.Path(kept) / f"{task_key(task)}.msgpack"
    if not path.exists():
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with scratch.open("wb") as file:
            for item in _read_warc(task["warc"], config) if "warc" in task else _read_folder(task, config):
                file.write(msgpack.packb(item, unicode_errors="surrogatepass"))
        scratch.replace(path)
    # Read back in either case, so that a resumed run sees the very same values.
    with path.open("rb") as file:
        yield from msgpack.Unpacker(file, unicode_errors="surrogatepass", strict_map_key=False)


def _read_folder(task: Task, config: WebConfig) -> Iterator[Item]:
    most = config.pages.most_bytes
    for file in task["files"]:
        path = epath.Path(task["folder"]) / file
        address = page_address(task["name"], file)
        try:
            with path.open("rb") as opened:
                data = opened.read(most + 1)
        except OSError:
            yield from _unread("unreadable_page", address)
            continue
        yield from _page(data, address, [os.fspath(path), -1], "", config)


def _read_warc(path: str, config: WebConfig) -> Iterator[Item]:
    most = max(config.pages.most_bytes, config.pictures.most_bytes)
    try:
        for response in warc_responses(path, most):
            location = [path, response.offset]
            if response.is_page:
                yield from _page(response.body, response.url, location, response.charset, config)
            elif response.is_picture:
                yield "picture", [tidy(response.url), location]
    except CutWarc as error:
        yield "event", [CUT_INPUT, [0, 0, 0, 0], {"id": path, "text": str(error)}]


def _page(data: bytes, address: str, location: list[Any], charset: str, config: WebConfig) -> Iterator[Item]:
    address = tidy(address)
    if len(data) > config.pages.most_bytes:
        yield from _unread("too_many_bytes_of_html", address)
        return
    try:
        document = document_of(extract_page(data, address, charset), location)
    except Exception as error:  # no page, however strange, may stop a crawl; the report shows what was strange
        yield from _unread("unreadable_page", address, f"{type(error).__name__}: {error}")
        return
    yield "event", page_event(READ, document)
    blocks = blocks_of(document)
    bad = dict(bad_passages(document, config.passages))
    for block, rule in bad.items():
        yield "event", passage_event(rule, document, blocks[block])
    yield "page", without_blocks(document, bad)


def _unread(rule: str, address: str, why: str = "") -> Iterator[Item]:
    document: Document = {"id": address, "segments": []}
    yield "event", page_event(READ, document)
    yield "event", page_event(rule, document, detail=why)
