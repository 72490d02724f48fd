"""Pictures go into records so that what they show can be seen, at a sensible size."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, decode
from data_pipelines.prepare.corpora.pictures.files import LONGEST_SIDE, drawn, fitted, header_pixels


def cut_out(colour: tuple[int, int, int], side: int = 40) -> Image:
    """A disc of one colour on transparency."""
    pixels = np.zeros((side, side, 4), np.uint8)
    cv2.circle(pixels, (side // 2, side // 2), side // 3, (*colour[::-1], 255), -1)
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


def test_what_shows_on_white_stays_as_it_is() -> None:
    red = cut_out((200, 0, 0))
    assert fitted(red) is red


def test_a_white_cut_out_gets_a_ground_on_which_it_shows() -> None:
    white = cut_out((255, 255, 255))
    assert np.ptp(decode(white)) == 0
    pixels = decode(fitted(white))
    assert np.ptp(pixels) > 100
    assert pixels[20, 20].tolist() == [255, 255, 255]


def test_white_on_a_whole_picture_is_not_a_cut_out() -> None:
    page = Image(data=cv2.imencode(".png", np.full((9, 9, 4), 255, np.uint8))[1].tobytes())
    assert fitted(page) is page


def test_large_ones_come_down_and_keep_their_shape() -> None:
    wide = Image(data=cv2.imencode(".jpg", np.full((300, 3000, 3), 90, np.uint8))[1].tobytes())
    height, width = decode(fitted(wide)).shape[:2]
    assert width == LONGEST_SIDE
    assert height == round(300 * LONGEST_SIDE / 3000)


def test_a_profile_in_the_wrong_place_goes_and_one_in_the_right_place_stays() -> None:
    whole = cut_out((200, 0, 0)).data
    assert whole is not None
    profile = b"\0\0\0\x01sRGB\0" + zlib.crc32(b"sRGB\0").to_bytes(4, "big")
    head, end = whole.index(b"IHDR") + 21, whole.index(b"IEND") - 4
    right = whole[:head] + profile + whole[head:]
    assert fitted(Image(data=right)).data == right
    assert fitted(Image(data=whole[:end] + profile + whole[end:])).data == whole


def test_nothing_to_see_is_a_bad_picture() -> None:
    clear = Image(data=cv2.imencode(".png", np.zeros((8, 8, 4), np.uint8))[1].tobytes())
    with pytest.raises(BadImage, match="nothing can be seen"):
        fitted(clear)


def test_a_header_that_speaks_of_too_much_is_refused_before_decoding(tmp_path: Path) -> None:
    small = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    bomb = small[:16] + (60_000).to_bytes(4, "big") * 2 + small[24:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert header_pixels(tmp_path / "bomb.png") == 60_000**2
    with pytest.raises(BadImage, match="pixels"):
        fitted(Image(data=bomb))


@pytest.mark.parametrize("size", ['width="100pt" height="300pt"', 'viewBox="0 0 100 300"'])
def test_drawings_are_drawn_within_the_size_asked_for(tmp_path: Path, size: str) -> None:
    path = tmp_path / "a.svg"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><circle cx="50" cy="50" r="30" fill="red"/></svg>',
        encoding="utf-8",
    )
    pixels = decode(drawn(path, 96))
    assert max(pixels.shape[:2]) == 96
    assert pixels.shape[0] > 2 * pixels.shape[1]
    assert (pixels == [255, 0, 0]).all(axis=2).any()


def test_a_broken_drawing_is_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<svg", encoding="utf-8")
    with pytest.raises(BadImage, match="cannot be drawn"):
        drawn(tmp_path / "a.svg")
