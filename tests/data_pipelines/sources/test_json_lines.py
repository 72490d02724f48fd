"""JSON lines and lists: every record by its number, and what is no record by its reason."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import JSONLines, json_index, open_source, source_for
from data_pipelines.sources.limits import RECORD_LIMIT
from vlm_jax.errors import UserError

TEXTS = ["Утка плывёт.", "a\u200db \u200eשלום\u200f", "line\nbreak", "𓆏", ""]


def source(path, name="birds", **options):
    return open_source(JSONLines(str(path), name=name, **options))


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
def test_lines_are_records_whatever_ends_them(tmp_path, ending):
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    opened = source(write(tmp_path / "birds.jsonl", "\n" + ending.join(lines)))
    assert [opened[number]["text"] for number in range(len(opened))] == TEXTS
    assert opened[2]["id"] == "birds/2"
    with pytest.raises(IndexError):
        opened[len(TEXTS)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.text(), values, max_size=3), min_size=1, max_size=6), st.booleans(), st.data())
def test_a_list_is_indexed_whatever_the_window(tmp_path_factory, records, ascii, data):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(records, ensure_ascii=ascii, indent=data.draw(st.sampled_from([None, 1]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_index, "_WINDOW", data.draw(st.integers(8, 40)))
        spans = json_index.index_json(str(path), "set")
    raw = path.read_bytes()
    cut = [raw[start : start + size] for start, size in map(spans.span, range(len(spans)))]
    assert [json.loads(piece) for piece in cut] == records


def test_llava_files_are_lists_beside_their_pictures(tmp_path):
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "a.png", b"a")
    turns = [{"from": "human", "value": "<image>\nЧто это?"}, {"from": "gpt", "value": "Утка."}]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": "1", "image": "train/a.png", "conversations": turns}] * 3))
    config = source_for(str(path))
    assert config == JSONLines(str(path), layout="llava")
    made = open_source(config)[2]
    assert made["messages"][0]["content"][0]["image"].path == str(tmp_path / "train" / "a.png")
    with pytest.raises(BadRecord, match="No such file"):
        source(path, layout="llava", images=str(tmp_path / "train"))[0]


def test_several_files_are_one_source_and_threads_may_share_it(tmp_path):
    for number in range(3):
        lines = [json.dumps({"id": f"{number}-{k}", "text": "a" * k}) for k in range(40)]
        write(tmp_path / f"part-{number}.jsonl", "\n".join(lines))
    opened = source(tmp_path, name="parts")
    expected = [f"{number}-{k}" for number in range(3) for k in range(40)]
    asked = random.Random(0).choices(range(120), k=2000)
    with ThreadPoolExecutor(4) as pool:
        assert [made["id"] for made in pool.map(opened.__getitem__, asked)] == [expected[n] for n in asked]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{'text': 1}", r"bad\.jsonl, record 2: not JSON \(Expecting property name.* at character 2\)"),
        (b'{"text": "a"', "not JSON"),
        (b'["a"]', "a list instead of an object"),
        (b'{"text": "\xd3\xf2\xea\xe0"}', r"not UTF-8 \(invalid continuation byte at byte"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON that can be read"),
        (b"\0" * 10, "not JSON"),
    ],
)
def test_a_bad_line_is_a_bad_record_and_no_more(tmp_path, line, reason):
    opened = source(write(tmp_path / "bad.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n'))
    with pytest.raises(BadRecord, match=reason) as caught:
        opened[1]
    assert caught.value.record_id == "birds/1"
    assert [opened[0]["text"], opened[2]["text"]] == ["a", "b"]


def test_a_record_of_100_mb_is_a_bad_record(tmp_path):
    path = write(tmp_path / "big.jsonl", b'{"text": "a"}\n')
    with path.open("ab") as file:
        file.truncate(100_000_000)
    opened = source(path)
    assert len(opened) == 2
    with pytest.raises(BadRecord, match=f"99,999,986 bytes; the limit is {RECORD_LIMIT:,}"):
        opened[1]


def test_a_byte_order_mark_is_skipped(tmp_path):
    assert source(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}'))[0]["text"] == "a"
    assert source(write(tmp_path / "a.json", b'\xef\xbb\xbf[{"text": "a"}]'))[0]["text"] == "a"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b"", "holds no record"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.json", b"[]", "holds no record"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16; make it UTF-8: iconv"),
        ("a.jsonl", b"\x1f\x8b\x08", r"is compressed.*unpack it \(gunzip\)"),
        ("a.json", b'{"text": "a"}\n', r"no JSON list; if it holds an object a line, call it \.jsonl"),
        ("a.json", b'[{"text": "a"}', "not JSON at byte 14"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "not JSON at byte 15"),
        ("a.json", b'[{"text": "\xd3"}]', "not UTF-8 at byte 11"),
        ("a.json", '[{"т": 1}, {"text: "a"}]'.encode(), "not JSON at byte 21"),
    ],
)
def test_a_file_that_is_none_is_the_users_error(tmp_path, name, data, reason):
    with pytest.raises(UserError, match=reason):
        source(write(tmp_path / name, data))


def test_a_file_that_was_cut_after_it_was_opened(tmp_path):
    opened = source(write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "b"}\n'))
    write(tmp_path / "a.jsonl", b'{"text": "a"}')
    with pytest.raises(BadRecord, match="cannot be read"):
        opened[1]
