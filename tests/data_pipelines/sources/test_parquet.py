"""Tables of records: every row by its number, with few row groups in memory, and what is no table by its reason."""

import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import Parquet, open_source, source_for
from data_pipelines.sources.limits import RECORD_LIMIT
from data_pipelines.sources.row_groups import RowGroups
from vlm_jax.errors import UserError

TEXTS = [f"Утка {number}\u200d שלום" for number in range(25)]
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, texts, rows=4, **columns):
    """Pictures as Hugging Face's image feature writes them."""
    pictures = [{"bytes": text.encode(), "path": None} for text in texts]
    table = {"image": pa.array(pictures, PICTURE), "text": texts, "unused": [b"x" * 1000] * len(texts)}
    pq.write_table(pa.table({**table, **columns}), path, row_group_size=rows)
    return path


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "a.parquet", TEXTS[:9])
    write(tmp_path / "b.parquet", [], rows=4)
    write(tmp_path / "c.parquet", TEXTS[9:], rows=100)
    return tmp_path


def source(path, **options):
    return open_source(Parquet(str(path), **{"layout": "pairs", "name": "birds", **options}))


@pytest.mark.parametrize("options", [{}, {"memory": 0}, {"unpacked": "here"}])
def test_rows_of_several_files_are_records_in_any_order_and_from_threads(files, options, tmp_path):
    if "unpacked" in options:
        options = {"unpacked": str(tmp_path / "arrow")}
    opened = source(files, **options)
    assert len(opened) == 25
    asked = random.Random(0).choices(range(25), k=500)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(opened.__getitem__, asked))
    assert [record["captions"][0]["text"] for record in made] == [TEXTS[n] for n in asked]
    assert [record["image"] for record in made] == [Image(data=TEXTS[n].encode()) for n in asked]
    assert [record["id"] for record in made] == [f"birds/{n}" for n in asked]
    with pytest.raises(IndexError):
        opened[25]


def test_row_groups_are_kept_up_to_the_limit_and_decoded_once(files, monkeypatch):
    path = str(files / "a.parquet")
    size = RowGroups([path], ["text"], 0).table(0, 0).nbytes
    groups = RowGroups([path], ["text"], int(2.5 * size))
    decoded = []
    decode = groups._decoded
    monkeypatch.setattr(groups, "_decoded", lambda *key: decoded.append(key) or decode(*key))
    for group in (0, 1, 0, 1, 2, 2, 1, 0):
        assert groups.table(0, group).num_rows == (4, 4, 1)[group]
    assert decoded == [(0, 0), (0, 1), (0, 2)]
    small = RowGroups([path], None, 0)
    first = small.table(0, 0)
    assert small.table(0, 0) is first
    small.table(0, 1)
    assert small.table(0, 0) is not first


def test_unpacked_row_groups_are_files_that_the_next_run_finds(files, tmp_path, monkeypatch):
    place = tmp_path / "arrow"
    first = source(files / "c.parquet", unpacked=str(place))[3]
    (unpacked,) = place.iterdir()
    assert unpacked.suffix == ".arrow"
    monkeypatch.setattr(RowGroups, "_decoded", None)
    assert source(files / "c.parquet", unpacked=str(place))[3] == first


def test_only_what_the_layout_reads_is_read(files):
    assert source(files)._columns == ["image", "text"]
    renamed = source(files, layout="plain", fields=(("text", "unused"),))
    assert renamed._columns == ["unused", "image"] or renamed._columns == ["image", "unused"]
    assert set(source(files, layout="plain")[0]) == {"id", "image", "text", "unused"}


def test_nested_columns_have_names_with_dots(tmp_path):
    path = write(tmp_path / "a.parquet", ["a"], info=[{"caption": "Гусь", "other": 1}])
    opened = source(path, fields=(("text", "info.caption"),), language="ru")
    assert opened[0]["captions"] == [{"text": "Гусь", "language": "ru"}]


def test_records_of_messages_come_back_without_the_nulls_of_tables(tmp_path):
    messages = [[{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}]]
    path = write(tmp_path / "a.parquet", ["a"], messages=messages, images=[[{"bytes": b"p", "path": "p.png"}]])
    assert source_for(str(path)).layout == "messages"
    made = source(path, layout="messages", fields=(("image", "none"),))[0]
    assert made["messages"][0]["content"] == [{"image": Image(data=b"p")}, {"text": "What?"}]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fields": (("text", "caption"),)}, "has no column 'caption', only image, text, unused; set `layout`, or"),
        ({"layout": "llava"}, "has no column 'conversations'"),
        ({"layout": "plain", "fields": (("text", "info.caption"),)}, "has no column 'info.caption'"),
    ],
)
def test_a_missing_column_is_the_users_error(files, options, reason):
    with pytest.raises(UserError, match=reason):
        source(files, **options)


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_what_is_no_table_is_the_users_error(files, cut):
    path = files / "a.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file, or damaged"):
        source(path)


def test_no_rows_are_the_users_error(files):
    with pytest.raises(UserError, match="has no rows"):
        source(files / "b.parquet")


def test_damaged_rows_are_bad_records_and_the_others_are_read(tmp_path):
    pq.write_table(
        pa.table({"text": TEXTS}),
        tmp_path / "a.parquet",
        row_group_size=5,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = data.index("Утка 7".encode())
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.parquet").write_bytes(data)
    opened = source(tmp_path / "a.parquet", layout="plain")
    assert [opened[number]["text"] for number in (0, 4, 10, 24)] == [TEXTS[number] for number in (0, 4, 10, 24)]
    with pytest.raises(BadRecord, match=r"a\.parquet, row group 1, row 2: cannot be read") as caught:
        opened[7]
    assert caught.value.record_id == "birds/7"


def test_a_record_of_100_mb_is_a_bad_record(tmp_path):
    path = tmp_path / "big.parquet"
    pq.write_table(pa.table({"text": ["a", "b" * 100_000_000]}), path, use_dictionary=False, write_statistics=False)
    opened = source(path, layout="plain")
    assert opened[0]["text"] == "a"
    with pytest.raises(BadRecord, match=f"100,000,.* bytes; the limit is {RECORD_LIMIT:,}"):
        opened[1]


def test_wrong_types_are_bad_records(tmp_path):
    path = write(tmp_path / "a.parquet", ["a"], number=[7])
    with pytest.raises(BadRecord, match="a text is of type int"):
        source(path, fields=(("text", "number"),))[0]
    with pytest.raises(BadRecord, match="a picture is of type int"):
        source(path, fields=(("image", "number"),))[0]
    (tmp_path / "pictures").mkdir()
    write(tmp_path / "b.parquet", ["a"], name=["../a.parquet"])
    with pytest.raises(BadRecord, match="leads out of"):
        source(tmp_path / "b.parquet", fields=(("image", "name"),), images=str(tmp_path / "pictures"))[0]
