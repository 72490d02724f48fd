"""Small manuals laid out like the packages', so that tests say themselves what stands in them."""

import cv2
import numpy as np

from data_pipelines.prepare.corpora.fetch import STAMP

SENTENCE = {
    "en": "The tool cuts away the borders of a picture and leaves the part that was chosen before it was called. ",
    "ru": "Инструмент отрезает края изображения и оставляет ту его часть, которую выбрали до вызова этого окна. ",
}
CAPTIONS = {"en": ("Figure 1.2. The crop window", "Before"), "ru": ("Рисунок 1.2. Окно обрезки", "Исходный вид")}


def write_picture(path, colour=0, size=(80, 120)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), colour, np.uint8))


def write_gimp(raw, language, pages=("crop",), colour=0):
    """A manual of DocBook pages: each has a figure of its own with a title and a caption under it."""
    root = raw / f"gimp-help-{language}" / "usr/share/gimp/2.0/help" / language
    title, caption = CAPTIONS[language]
    for number, page in enumerate(pages):
        own = f"{page}: " if len(pages) > 1 else ""  # no page says word for word what another does
        write_picture(root / f"images/{page}.png", colour + number)
        write_picture(root / "images/icon.png", 7, (22, 22))
        (root / f"{page}.html").write_text(
            f"""<html><head><title>4.{number}. {page}</title></head><body>
            <div class="navheader"><table><tr><th>{SENTENCE[language]}</th></tr></table></div>
            <div class="sect1"><h2 class="title">4.{number}. {page} {SENTENCE[language][:5]}</h2>
            <p>{own}{SENTENCE[language] * 3}</p>
            <div class="note"><table><tr><td><img src="images/note.png" /></td><th>Note</th></tr>
            <tr><td><p>{own}{SENTENCE[language]}</p></td></tr></table></div>
            <div class="figure"><p class="title"><strong>{title}</strong></p><div class="figure-contents">
            <div class="mediaobject"><img src="images/{page}.png" /><div class="caption"><p>{caption}</p></div></div>
            </div></div>
            <ul><li><p>Tools <span><img src="images/icon.png" /></span> {SENTENCE[language]}</p></li></ul>
            </div></body></html>"""
        )
    write_stamp(raw, f"gimp-help-{language}")
    return root


def write_stamp(raw, name, version="1.0"):
    (raw / name).mkdir(parents=True, exist_ok=True)
    (raw / name / STAMP).write_text(f'{{"name": "{name}", "version": "{version}", "sha256": "{"0" * 64}"}}')
