import manuals_on_disk as manuals
import pytest

from data_pipelines.prepare.corpora.manuals import gnome
from data_pipelines.prepare.corpora.manuals.mallard import read_pages
from data_pipelines.prepare.corpora.manuals.pages import Passage, Picture
from vlm_jax.errors import UserError

HEAD = '<page xmlns="http://projectmallard.org/1.0/" xmlns:if="http://projectmallard.org/if/1.0/" type="topic">'


def read(tmp_path, body, name="copy"):
    (tmp_path / f"{name}.page").write_text(f"<?xml version='1.0'?>{HEAD}{body}</page>")
    return {page.name: page for page in read_pages(tmp_path, "en")}[f"{tmp_path.name}/{name}"]


def test_a_page_in_reading_order(tmp_path):
    manuals.write_picture(tmp_path / "figures/a.png")
    (tmp_path / "figures/drawing.svg").write_text("<svg/>")
    page = read(
        tmp_path,
        """<info><desc>About.</desc><credit><name>A Person</name></credit></info>
        <title>Copy <gui>Files</gui></title>
        <comment><p>To do.</p></comment>
        <p>Choose <guiseq><gui>Edit</gui><gui>Copy</gui></guiseq> or press
        <keyseq><key>Ctrl</key><key>C</key></keyseq>.</p>
        <section id="more"><title>More</title>
        <steps><item><p>Open the <media src="figures/drawing.svg"><span>settings</span></media> menu.</p>
        <note><p>It is at the top.</p></note></item><item><p>Close it.</p></item></steps>
        <screen>$ cp a b
$ ls</screen>
        <table><tr><td><p>Key</p></td><td><p>Action</p></td></tr></table>
        <figure><title>The window</title><desc>With two files</desc><media src="figures/a.png"/></figure>
        <media src="figures/drawing.svg"/></section>""",
    )
    assert page.title == "Copy Files"
    assert page.blocks == (
        Passage("Copy Files", "heading", 1),
        Passage("Choose Edit → Copy or press Ctrl+C."),
        Passage("More", "heading", 2),
        Passage("Open the settings menu.", "item"),
        Passage("It is at the top."),
        Passage("Close it.", "item"),
        Passage("$ cp a b\n$ ls", "code"),
        Passage("Key | Action", "row"),
        Picture("figures/a.png", "The window With two files", "More"),
        Passage("The window With two files", "caption"),
    )


def test_links_without_a_text_say_the_title_of_their_page(tmp_path):
    read(tmp_path, '<title>Rename</title><section id="many"><title>Many files</title><p>x</p></section>', "rename")
    page = read(tmp_path, '<p>See <link xref="rename"/>, <link xref="rename#many"/> or <link xref="x">this</link>.</p>')
    assert page.blocks == (Passage("See Rename, Many files or this."),)


def test_of_alternatives_the_desktop_is_shown(tmp_path):
    page = read(
        tmp_path,
        """<p><choose><when test="platform:gnome-classic">Classic</when>
        <when test="!platform:gnome-classic">Shell</when><else>Other</else></choose> menu</p>
        <p if:test="target:mobile">Small</p><p if:test="!target:mobile">Large</p>""",
    )
    assert [block.text for block in page.blocks] == ["Shell menu", "Large"]


def test_a_file_that_is_not_xml_is_named(tmp_path):
    with pytest.raises(UserError, match=r"copy\.page: not a page of GNOME's help"):
        read(tmp_path, "<p>open")


def test_pages_of_both_books_and_languages(tmp_path):
    for folder, language in (("C", "en"), ("ru", "ru")):
        for book in ("gnome-help", "system-admin-guide"):
            directory = tmp_path / "gnome-user-docs/usr/share/help" / folder / book
            directory.mkdir(parents=True)
            read(directory, f"<title>{manuals.SENTENCE[language]}</title><p>{manuals.SENTENCE[language] * 3}</p>")
    sets = {each.name: list(each.build(tmp_path)) for each in gnome.SETS}
    assert [record["id"] for _, record in sets["text/gnome_ru"]] == [
        "gnome/gnome-help/copy:ru",
        "gnome/system-admin-guide/copy:ru",
    ]
    assert [split for split, _ in sets["text/gnome_ru"]] == [split for split, _ in sets["text/gnome_en"]]
    assert sets["interleaved/gnome_en"] == []
