"""Records survive a file, pictures included, and what is no record is refused."""

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.records import decode_record, encode_record

leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary().map(lambda b: Image(data=b))
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@hypothesis.given(st.dictionaries(st.text(), values))
def test_a_record_comes_back_as_it_was(record: dict) -> None:
    assert decode_record(encode_record(record)) == record


def test_a_picture_given_by_its_path_travels_as_bytes(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"picture")
    assert decode_record(encode_record({"image": Image(path=str(path))})) == {"image": Image(data=b"picture")}


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", b"\xd6\x05abcd", b"\x81\x01\x02"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(BadRecord, match="not a record"):
        decode_record(data)


@pytest.mark.parametrize("value", [object(), {1, 2}, Image(path="/nowhere/a.png"), "\ud800", 2**70])
def test_what_cannot_be_written_is_refused_by_id(value: object) -> None:
    with pytest.raises(BadRecord, match="cannot be written") as caught:
        encode_record({"id": "a/1", "value": value})
    assert caught.value.record_id == "a/1"
