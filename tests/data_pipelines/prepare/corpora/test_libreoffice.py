import manuals_on_disk as manuals
import pytest

from data_pipelines.prepare.corpora.manuals import libreoffice
from data_pipelines.prepare.corpora.manuals.libreoffice import read_page
from data_pipelines.prepare.corpora.manuals.pages import Passage
from vlm_jax.errors import UserError

FOLDERS = {"en": "libreoffice-help-en-us/usr/share/libreoffice/help/en-US/text"}
FOLDERS["ru"] = "libreoffice-help-ru/usr/share/libreoffice/help/ru/text"


def write(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f"<header>Menu</header><div id='DisplayArea'>{body}</div>"
    path.write_text(f"<html><head><title>Cells</title></head><body>{body}</body></html>")


def test_a_page_in_reading_order(tmp_path):
    write(
        tmp_path / "cells.html",
        """<h1>Cells</h1><p class="paragraph">Press <span class="switchinline"><span id="MAC_1" class="MAC">Cmd</span>
        <span id="default_1">Ctrl</span></span>+C.</p>
        <p><span class="switch"><span class="CALC">Sheet</span><span class="WRITER">Page</span></span></p>
        <div class="howtoget"><p class="howtogetheader">To access this command</p><div><p>Choose Edit.</p></div></div>
        <div class="bascode"><pre><code>Sub A
  B
End Sub</code></pre></div>
        <table><tr><th><p>Icon</p></th><th><p>Meaning</p></th></tr>
        <tr><td><p>1</p></td><td><p>a</p><p>b</p></td></tr></table>
        <ul><li><p>First</p><p>More of it</p></li><li>Second</li></ul>
        <div class="note"><div class="noteicon"><img src="note.svg"></div>
        <div class="notetext"><p>Be<br>ware.</p></div></div>
        <div class="relatedtopics"><p>Related Topics</p><p>Rows</p></div>""",
    )
    page = read_page(tmp_path / "cells.html", "guide/cells", "en", tmp_path)
    assert (page.name, page.title) == ("guide/cells", "Cells")
    assert page.blocks == (
        Passage("Cells", "heading", 1),
        Passage("Press Ctrl+C."),
        Passage("Sheet"),
        Passage("Choose Edit."),
        Passage("Sub A\n  B\nEnd Sub", "code"),
        Passage("Icon | Meaning", "row"),
        Passage("1 | a b", "row"),
        Passage("First", "item"),
        Passage("More of it"),
        Passage("Second", "item"),
        Passage("Be ware."),
    )


def test_a_page_without_the_content_part_is_empty(tmp_path):
    (tmp_path / "x.html").write_text("<html><body><p>Moved.</p></body></html>")
    assert read_page(tmp_path / "x.html", "x", "en", tmp_path).blocks == ()


def test_pages_that_nobody_translated_and_fragments_are_left_out(tmp_path):
    for language, folder in FOLDERS.items():
        write(tmp_path / folder / "scalc/a.html", f"<p>{manuals.SENTENCE[language] * 3}</p>")
        write(tmp_path / folder / "scalc/b.html", f"<p>{manuals.SENTENCE['en'] * 3}</p>")
        write(tmp_path / folder / "scalc/00/c.html", f"<p>{manuals.SENTENCE[language] * 3}</p>")
    ids = {each.name: [record["id"] for _, record in each.build(tmp_path)] for each in libreoffice.SETS}
    assert ids == {
        "text/libreoffice_en": ["libreoffice/scalc/a:en", "libreoffice/scalc/b:en"],
        "text/libreoffice_ru": ["libreoffice/scalc/a:ru"],
    }


def test_a_missing_package_is_one_line(tmp_path):
    with pytest.raises(UserError, match="libreoffice-help-en-us was not unpacked here"):
        list(libreoffice.SETS[0].build(tmp_path))
