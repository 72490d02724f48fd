"""Quarantine files are read, grouped by reason, and their records found again."""

import pytest

from data_pipelines.look.quarantine_listing import FILE, SetAside, find_records, grouped, read_quarantine
from data_pipelines.look.record_parts import Unreadable
from data_pipelines.quarantine import BadRecord, Quarantine
from vlm_jax.errors import UserError


def put(path, *records):
    quarantine = Quarantine(path, limit=1)
    for source, name, reason in records:
        quarantine.add(source, name, reason)


def test_what_was_put_there_is_read_from_file_directory_and_above(tmp_path):
    put(tmp_path / "a" / FILE, ("a", "a/1", "no question"))
    put(tmp_path / "b" / FILE, ("b", "b/ключ", "пусто"))
    first, second = SetAside("a", "a/1", "no question"), SetAside("b", "b/ключ", "пусто")
    assert read_quarantine(tmp_path / "a" / FILE) == [first]
    assert read_quarantine(tmp_path / "a") == [first]
    assert read_quarantine(tmp_path) == [first, second]
    assert read_quarantine(tmp_path / "a" / "..") == [first, second]


def test_nothing_set_aside_is_no_error(tmp_path):
    assert read_quarantine(tmp_path) == []
    (tmp_path / FILE).write_text("")
    assert read_quarantine(tmp_path) == []


def test_half_a_last_line_is_passed_over_but_not_another(tmp_path):
    put(tmp_path / FILE, ("a", "a/1", "bad"))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"source": "a", "id')
    assert [record.id for record in read_quarantine(tmp_path)] == ["a/1"]
    with (tmp_path / FILE).open("a") as file:
        file.write("\n[]\n")
    with pytest.raises(UserError, match="line 2 is no record"):
        read_quarantine(tmp_path)


def test_a_place_that_is_none_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no such file or directory"):
        read_quarantine(tmp_path / "missing")
    (tmp_path / "picture.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_quarantine(tmp_path / "picture.jsonl")


def test_reasons_that_differ_in_names_and_numbers_only_are_one():
    groups = grouped(
        [
            SetAside("b", "1", "too long"),
            SetAside("a", "1", "'x.png': 1,024 bytes"),
            SetAside("a", "2", "empty"),
            SetAside("a", "3", "'y.png': 7 bytes"),
        ]
    )
    assert [(g.source, g.reason, [r.id for r in g.records]) for g in groups] == [
        ("a", "…: … bytes", ["1", "3"]),
        ("a", "empty", ["2"]),
        ("b", "too long", ["1"]),
    ]


class Birds:
    name = "birds"

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index == 5:
            raise BadRecord("damaged", "birds/5")
        if index == 6:
            raise BadRecord("damaged")
        return {"id": f"birds/{index}"}


def test_records_are_found_by_id_place_and_piece():
    found = find_records(Birds(), ["birds/3", "birds/5", "birds[6]", "birds/7#2", "gone"], most=50)
    assert found == {
        "birds/3": (3, {"id": "birds/3"}),
        "birds/5": (5, Unreadable("birds/5", "damaged")),
        "birds[6]": (6, Unreadable("birds[6]", "damaged")),
        "birds/7#2": (7, {"id": "birds/7"}),
    }


def test_only_so_many_records_are_looked_through_but_named_places_are():
    assert find_records(Birds(), ["birds/30"], most=10) == {}
    assert find_records(Birds(), ["birds[30]"], most=10)["birds[30]"] == (30, {"id": "birds/30"})
