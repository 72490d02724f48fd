"""A small web site in two languages, as a folder and as a WARC file, with one thing of every kind that rules drop."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam")

Site = dict[str, bytes]
"""Path -> contents."""


def picture(seed: int, size: tuple[int, int] = (96, 128), suffix: str = ".png") -> bytes:
    """A picture of coloured clouds; another seed gives another one, far from it."""
    dots = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(dots, size[::-1], interpolation=cv2.INTER_CUBIC))[1].tobytes()


_ENGLISH = (
    "the crop tool removes areas from the edge of an image so that viewers focus on what matters",
    "to draw a straight line click once and hold the shift key while moving the pointer elsewhere",
    "layers lie above each other like sheets of glass and may be moved without touching their neighbours",
    "a gradient blends two colours along a path which you choose by dragging over the canvas",
    "masks hide parts of a layer and can be painted with black white and every shade of grey",
    "saving in the native format keeps layers paths channels and the undo history of your work",
    "histograms count how many pixels have each brightness and show whether a photograph is too dark",
    "select the sky by colour then feather the border before you change its tone in the dialog",
)
_RUSSIAN = (
    "инструмент кадрирования обрезает края изображения чтобы взгляд зрителя остановился на главном",
    "для прямой линии щёлкните один раз и удерживайте клавишу пока ведёте указатель к другой точке",
    "слои лежат друг над другом как листы стекла и каждый можно сдвинуть не трогая остальных",
    "градиент плавно смешивает два цвета вдоль пути который задаётся движением мыши по холсту",
    "маска скрывает части слоя её рисуют чёрным белым и всеми оттенками серого цвета",
    "собственный формат сохраняет слои контуры каналы и всю историю отмены вашей работы",
    "гистограмма считает сколько точек имеют данную яркость и показывает не слишком ли темён снимок",
    "выделите небо по цвету затем растушуйте границу прежде чем менять его тон в диалоге",
)


def article(seed: int, language: str = "en", sentences: int = 5) -> list[str]:
    """Passages of which no two seeds share much: sentences with words that stand nowhere else."""
    rng = np.random.default_rng(1000 + seed)
    texts = _ENGLISH if language == "en" else _RUSSIAN
    ending = ("variant", "case", "figure") if language == "en" else ("вариант", "случай", "рисунок")
    chosen = rng.choice(len(texts), sentences, replace=False)
    passages = []
    for index in chosen:
        words = texts[index].split()
        rng.shuffle(words)
        passages.append(" ".join(words).capitalize() + f", {rng.choice(ending)} {seed}.")
    return passages


def page(passages: list[str], pictures: list[str], language: str = "", more: str = "") -> bytes:
    """HTML with a menu, a picture after each of the first passages, and a footer."""
    body = [f"<p>{text}</p>" for text in passages]
    for index, name in enumerate(pictures):
        body.insert(2 * index + 1, f'<img src="{name}" alt="">')
    head = f'<html lang="{language}">' if language else "<html>"
    return (
        f"<!DOCTYPE html>{head}<head><title>Help</title></head><body><nav><a href=x>Home</a></nav>"
        f"{''.join(body)}{more}<footer>All rights reserved</footer></body></html>"
    ).encode()


@pytest.fixture(scope="session")
def site() -> Site:
    """25 good pages with two pictures each, and some that must go."""
    files: Site = {}
    for i in range(25):
        language = "ru" if i % 2 else "en"
        files |= {f"pic/{2 * i}.png": picture(2 * i), f"pic/{2 * i + 1}.jpg": picture(2 * i + 1, suffix=".jpg")}
        passages = [*article(i, language), "Read our terms of service and the licence before use."]
        files[f"good{i:02}.html"] = page(passages, [f"pic/{2 * i}.png", f"pic/{2 * i + 1}.jpg", "pic/header.png"])
    files["pic/header.png"] = picture(900)
    files["zz/copy.html"] = files["good00.html"].replace(b"pic/", b"../pic/")
    close = [*article(2), "Read our terms of service and the licence before use.", "One word more"]
    files["near.html"] = page(close, ["pic/4.png"])
    files["short.html"] = page(["Too short"], ["pic/6.png"])
    files["german.html"] = page(
        [
            "Das Werkzeug zum Zuschneiden entfernt Bereiche vom Rand eines Bildes, damit man nur das Wichtige sieht.",
            "Ebenen liegen übereinander wie Glasscheiben und können verschoben werden, ohne die Nachbarn zu berühren.",
        ],
        ["pic/8.png"],
    )
    files["mixed.html"] = page(
        [*article(50, "ru"), "This passage was never translated by anybody into the language of the page."],
        ["pic/50.png"],
    )
    files["pic/50.png"] = picture(50)
    files["bad.html"] = page(
        article(51),
        [
            "pic/51.png",
            "pic/tiny.png",
            "pic/long.png",
            "pic/cut.png",
            "pic/site-logo.png",
            "pic/none.png",
            "pic/51b.png",
        ],
        more='<img src="pic/t.gif" width=1 height=1><img src="../../outside.png">',
    )
    files["pic/51.png"] = picture(51)
    files["pic/51b.png"] = picture(51, (192, 256))
    files["pic/tiny.png"] = picture(52, (32, 32))
    files["pic/long.png"] = picture(53, (70, 400))
    files["pic/cut.png"] = picture(54)[:-200]
    files["pic/site-logo.png"] = picture(55)
    files["pic/t.gif"] = b"GIF89a"
    return files


@pytest.fixture(scope="session")
def write_site() -> Callable[[Site, Path], Path]:
    """Writes a site's files into a folder."""

    def write(files: Site, folder: Path) -> Path:
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    return write


@pytest.fixture(scope="session")
def write_warc() -> Callable[..., Path]:
    """Writes a site as responses of one WARC file."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    types = {".html": "text/html; charset=utf-8", ".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}

    def write(files: Site, path: Path, host: str = "https://example.org/", status: str = "200 OK") -> Path:
        with path.open("wb") as file:
            writer = WARCWriter(file, gzip=path.suffix == ".gz")
            for name, data in files.items():
                headers = [("Content-Type", types.get(Path(name).suffix, "application/octet-stream"))]
                http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
                record = writer.create_warc_record(host + name, "response", payload=io.BytesIO(data), http_headers=http)
                writer.write_record(record)
        return path

    return write


@pytest.fixture(scope="session")
def folder(site: Site, write_site: Callable[[Site, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as a folder called 'site'; a picture beside it is none of its own."""
    root = tmp_path_factory.mktemp("web")
    (root / "outside.png").write_bytes(picture(777))
    return write_site(site, root / "site")
