"""Decoding tells good pictures from bad ones; resizing and augmentation keep what a picture shows."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import images
from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from data_pipelines.images import Augmentation, BadImage, ImagePreprocessing, augment, decode, resize
from vlm_jax.errors import UserError

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
LOSSY = ("JPEG", "WEBP")


def quarters(height=40, width=60):
    """Red, blue; green, yellow."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 0, 255)
    pixels[height // 2 :, : width // 2] = (0, 255, 0)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return pixels


def encoded(pixels, form, **options):
    picture = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", LOSSLESS)
def test_colours_come_back_in_the_order_red_green_blue(form):
    np.testing.assert_array_equal(decode(Image(data=encoded(quarters(), form))), quarters())


@pytest.mark.parametrize("form", LOSSY)
def test_lossy_colours_come_back_nearly(form):
    pixels = decode(Image(data=encoded(quarters(), form, quality=95)))
    assert np.abs(pixels[5:15, 5:25].astype(int) - [255, 0, 0]).max() < 8


def test_a_file_and_its_bytes_are_the_same_picture(tmp_path):
    data = encoded(noise(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(decode(Image(path=str(tmp_path / "a.png"))), noise())


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16"])
def test_grey_and_palette_become_rgb(mode):
    if mode == "I;16":
        data = encoded(PIL.Image.fromarray(np.full((8, 9), 128 * 257, np.uint16)), "PNG")
        expected = np.full((8, 9, 3), 128, np.uint8)
    else:
        picture = PIL.Image.fromarray(quarters()).convert(mode)
        data, expected = encoded(picture, "PNG"), np.asarray(picture.convert("RGB"))
    np.testing.assert_allclose(decode(Image(data=data)), expected, atol=1)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(form):
    picture = PIL.Image.fromarray(quarters())
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 128
    picture.putalpha(PIL.Image.fromarray(alpha))
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode(Image(data=encoded(picture, form, **options)))
    assert pixels.shape == (40, 60, 3)
    np.testing.assert_array_equal(pixels[:, :30], 255)
    np.testing.assert_allclose(pixels[5, 50], (127, 127, 255), atol=1)


def test_a_transparent_palette_entry_is_white():
    data = encoded(PIL.Image.fromarray(quarters()), "PNG", transparency=(255, 0, 0))
    assert decode(Image(data=data))[5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(form):
    exif = PIL.Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    options = {"quality": 95} if form != "PNG" else {}
    pixels = decode(Image(data=encoded(quarters(), form, exif=exif, **options))).astype(int)
    upright = np.rot90(quarters(), -1).astype(int)
    assert pixels.shape == (60, 40, 3)
    for y, x in ((10, 10), (10, 30), (50, 10), (50, 30)):
        np.testing.assert_allclose(pixels[y, x], upright[y, x], atol=8)


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_picture_is_refused(form, share):
    data = encoded(noise(), form)
    with pytest.raises(BadImage):
        decode(Image(data=data[: int(len(data) * share)]))


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_refused():
    thumbnail = encoded(noise(16, 16), "JPEG")
    data = encoded(noise(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + comment + data[2:]
    assert decode(Image(data=whole)).shape == (64, 64, 3)
    with pytest.raises(BadImage, match="truncated"):
        decode(Image(data=whole[:-200]))


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_flipped_byte_of_a_png_never_passes_unseen(at, value):
    data = bytearray(encoded(noise(8, 8), "PNG"))
    data[at % len(data)] ^= value
    with pytest.raises(BadImage):
        decode(Image(data=bytes(data)))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(BadImage):
        decode(Image(data=data))


def test_a_picture_of_absurd_size_is_refused_before_it_takes_memory():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(BadImage):
        decode(Image(data=data))


def test_the_error_names_the_file(tmp_path):
    path = tmp_path / "нет.png"
    with pytest.raises(BadImage, match=r"нет\.png.*cannot be read"):
        decode(Image(path=str(path)))
    path.write_text("<html>not found</html>")
    with pytest.raises(BadImage, match=r"нет\.png.*not a picture"):
        decode(Image(path=str(path)))
    path.write_bytes(b"")
    with pytest.raises(BadImage, match=r"нет\.png.*empty"):
        decode(Image(path=str(path)))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_the_size_is_known_before_a_picture_is_decoded(form):
    for options in [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}, {}] if form == "WEBP" else [{}]:
        assert size_in_header(encoded(noise(37, 91), form, **options)) == (91, 37)


def test_a_thumbnail_does_not_hide_the_size_of_a_jpeg():
    thumbnail, data = encoded(noise(16, 16), "JPEG"), encoded(noise(40, 72), "JPEG")
    hidden = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert size_in_header(hidden) == (72, 40)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(form, monkeypatch):
    data = encoded(noise(50, 60), form)
    monkeypatch.setattr(images, "PIXEL_LIMIT", 3000)
    assert decode(Image(data=data)).shape == (50, 60, 3)
    monkeypatch.setattr(images, "PIXEL_LIMIT", 2999)
    monkeypatch.setattr(images.cv2, "imdecode", None)
    with pytest.raises(BadImage, match=r"60 x 50 pixels are more than the 2999"):
        decode(Image(data=data))


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 70),
    w=st.integers(1, 70),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    how=st.sampled_from(["squash", "crop", "pad", "shortest"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "area", "pillow_bilinear", "pillow_bicubic"]),
)
def test_resizing_gives_the_size_asked_for(h, w, size, how, interpolation):
    pixels = np.full((h, w, 3), 200, np.uint8)
    resized = resize(pixels, size, ImagePreprocessing(how, interpolation))
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.uint8
    if how in ("squash", "crop"):
        np.testing.assert_array_equal(resized, 200)


def test_the_ways_to_resize_differ_in_what_they_keep():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, :20] = (255, 0, 0)
    wide[:, 60:] = (0, 0, 255)
    size = (40, 40)
    squashed = resize(wide, size, ImagePreprocessing("squash"))
    assert squashed[20, 2].tolist() == [255, 0, 0]
    assert squashed[20, -3].tolist() == [0, 0, 255]
    cropped = resize(wide, size, ImagePreprocessing("crop"))
    np.testing.assert_array_equal(cropped, 0)
    padded = resize(wide, size, ImagePreprocessing("pad"))
    assert padded[2, 20].tolist() == padded[-3, 20].tolist() == [128, 128, 128]
    assert padded[20, 2].tolist() == [255, 0, 0]


def test_the_shortest_side_is_scaled_and_the_centre_taken():
    pixels = np.zeros((40, 92, 3), np.uint8)
    pixels[:, 31:61] = 200
    half = resize(pixels, (16, 16), ImagePreprocessing("shortest", "pillow_bilinear", 20))
    np.testing.assert_array_equal(half[:, :1], half[:, -1:])  # cut off evenly
    assert half[8, 8].tolist() == [200, 200, 200]
    whole = resize(pixels, (19, 45), ImagePreprocessing("shortest", "pillow_bilinear", 20))
    np.testing.assert_array_equal(whole[2:18, 15:31], half)  # of an odd rest, less is cut above and at the left
    framed = resize(pixels + 50, (30, 60), ImagePreprocessing("shortest", "pillow_bilinear", 20))
    assert framed.min(axis=2)[5:25, 7:53].min() > 0
    assert framed.sum() == framed[5:25, 7:53].sum()


def test_a_shortest_edge_belongs_to_one_way_of_resizing():
    with pytest.raises(UserError, match="for 'shortest' only"):
        ImagePreprocessing("crop", shortest_edge=256)
    with pytest.raises(UserError, match="-1"):
        ImagePreprocessing("shortest", shortest_edge=-1)


def test_a_picture_of_the_right_size_is_untouched():
    assert np.shares_memory(resize(pixels := noise(), (64, 64), ImagePreprocessing()), pixels)


def test_augmentation_is_a_function_of_the_generator():
    everything = Augmentation(flip=True, turn=True, shift=5, noise=8.0)
    once, again, other = (augment(noise(), everything, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_no_augmentation_changes_nothing():
    np.testing.assert_array_equal(augment(noise(), Augmentation(), np.random.default_rng(0)), noise())


@pytest.mark.parametrize(
    ("augmentation", "views"),
    [(Augmentation(flip=True), 2), (Augmentation(turn=True), 4), (Augmentation(True, True), 8)],
)
def test_flips_and_turns_show_every_view_and_keep_every_pixel(augmentation, views):
    pixels = noise(6, 6)
    seen = {augment(pixels, augmentation, np.random.default_rng(seed)).tobytes() for seed in range(200)}
    assert len(seen) == views
    for view in seen:
        np.testing.assert_array_equal(np.sort(np.frombuffer(view, np.uint8)), np.sort(pixels.ravel()))


def test_an_oblong_picture_keeps_its_size():
    for seed in range(20):
        assert augment(noise(6, 10), Augmentation(turn=True), np.random.default_rng(seed)).shape == (6, 10, 3)


def test_shift_moves_and_repeats_the_edge():
    pixels = np.full((20, 20, 3), 9, np.uint8)
    pixels[8:12, 8:12] = 250
    for seed in range(30):
        shifted = augment(pixels, Augmentation(shift=4), np.random.default_rng(seed))
        assert (shifted == 250).sum() == 4 * 4 * 3
        assert set(np.unique(shifted)) == {9, 250}


def test_noise_is_as_strong_as_it_says_and_never_wraps():
    grey = augment(np.full((64, 64, 3), 128, np.uint8), Augmentation(noise=10.0), np.random.default_rng(0))
    assert grey.std() == pytest.approx(10, rel=0.05)
    assert grey.mean() == pytest.approx(128, abs=0.5)
    white = augment(np.full((64, 64, 3), 255, np.uint8), Augmentation(noise=10.0), np.random.default_rng(0))
    assert white.min() > 150


def test_negative_strengths_are_the_users_error():
    with pytest.raises(UserError, match="negative"):
        Augmentation(shift=-1)
