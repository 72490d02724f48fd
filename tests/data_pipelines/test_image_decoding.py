"""Pictures as they really come: odd sizes, colours, depths and layouts are read rightly or refused with a reason."""

import io
import os
import struct
import time
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import image_decoding, image_files
from data_pipelines.examples import Image
from data_pipelines.images import FILE_LIMIT, BadImage, ImagePreprocessing, decode, prepare, resize, size_as_seen

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour=RED, height=20, width=30):
    return PIL.Image.fromarray(np.full((height, width, 3), colour, np.uint8))


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def photograph(height=600, width=800):
    """Smooth colours, as a JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / 61 + k) * np.cos(y / 47 - k) for k in range(3)]
    return PIL.Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def png(header, *chunks):
    """A PNG of the given IHDR fields and chunks, with right checksums."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body) for kind, body in [(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks, (b"IEND", b"")]
    )


def test_opacity_is_laid_over_white_exactly():
    """Every colour with every opacity, against the formula in floating point."""
    values = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 4), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = values[:, None], 255 - values[:, None], 7
    pixels[..., 3] = values
    share = values[None, :, None] / 255
    expected = np.rint(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    data = encoded(PIL.Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(Image(data=data)), expected)


def test_sixteen_bits_with_opacity():
    pixels = np.zeros((4, 4, 4), np.uint16)
    pixels[..., 2], pixels[..., 3] = 65535, [0, 32768, 65535, 257]
    data = cv2.imencode(".png", pixels)[1].tobytes()
    assert decode(Image(data=data))[0].tolist() == [[255, 255, 255], [255, 127, 127], [255, 0, 0], [255, 254, 254]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_level_that_is_named_transparent_is_white(bits):
    levels = [0, 2**bits - 1]
    row = b"\0" + (struct.pack(">HH", *levels) if bits == 16 else bytes([255]) * 2 if bits == 8 else b"\xff\xff")
    if bits == 8:
        row = b"\0" + bytes(levels)
    elif bits < 8:
        row = b"\0" + bytes([levels[1] << (8 - 2 * bits)])
    body = (b"IDAT", zlib.compress(row))
    header = (2, 1, bits, 0, 0, 0, 0)
    assert decode(Image(data=png(header, body)))[0, :, 0].tolist() == [0, 255]
    for transparent, expected in ((0, [255, 255]), (levels[1], [0, 255])):
        data = png(header, (b"tRNS", struct.pack(">H", transparent)), body)
        assert decode(Image(data=data))[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form):
    options = {"quality": 95} if form == "JPEG" else {}
    pixels = decode(Image(data=encoded(plain().convert("CMYK"), form, **options)))
    assert np.abs(pixels.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(form):
    options = {"lossless": True} if form == "WEBP" else {}
    if form != "TIFF":
        options["duration"] = 100
    data = encoded(plain(), form, save_all=True, append_images=[plain(BLUE), plain((0, 9, 0))], **options)
    assert (decode(Image(data=data)) == RED).all()


@pytest.mark.parametrize(("form", "options"), [("PNG", {"transparency": 0}), ("GIF", {"transparency": 0})])
def test_palettes_with_and_without_transparency(form, options):
    picture = PIL.Image.new("P", (6, 2))
    picture.putpalette([*RED, *BLUE, 0, 99, 0])
    picture.putdata([0, 0, 1, 1, 2, 2] * 2)
    opaque, transparent = (decode(Image(data=encoded(picture, form, **o))) for o in ({}, options))
    assert opaque[1, ::2].tolist() == [list(RED), list(BLUE), [0, 99, 0]]
    assert transparent[1, ::2].tolist() == [[255] * 3, list(BLUE), [0, 99, 0]]


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("WEBP", "RGB"), ("JPEG", "RGB"), ("TIFF", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGBA")],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(form, mode, orientation):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:], pixels[12:, :20] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    picture = PIL.Image.fromarray(pixels)
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    if mode == "RGBA":
        picture.putalpha(255)
        picture.putpixel((20, 12), (0, 0, 0, 254))
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    image = Image(data=encoded(picture, form, exif=exif, **options))
    got = decode(image)
    assert got.shape == upright.shape
    assert size_as_seen(image) == upright.shape[:2]
    corners = np.ix_([3, -4], [3, -4])
    np.testing.assert_allclose(got[corners].astype(int), upright[corners].astype(int), atol=9)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_size_as_seen_is_that_of_the_pixels_or_refused_as_they_are(form):
    data = encoded(plain(height=21, width=30), form)
    assert size_as_seen(Image(data=data)) == (21, 30)
    for bad in (b"", b"no picture", data[:6]):
        with pytest.raises(BadImage) as looked_at:
            size_as_seen(Image(data=bad))
        with pytest.raises(BadImage) as decoded:
            decode(Image(data=bad))
        assert str(looked_at.value) == str(decoded.value)


@pytest.mark.parametrize(("dtype", "form"), [(np.float32, "TIFF"), (np.int32, "TIFF")])
def test_pixels_of_other_types_are_refused(dtype, form):
    data = encoded(PIL.Image.fromarray(np.ones((9, 9), dtype)), form)
    with pytest.raises(BadImage, match=r"pixels of type (float32|int32)"):
        decode(Image(data=data))


@pytest.mark.parametrize("how", ["squash", "crop", "pad", "shortest"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_the_smallest_and_narrowest_pictures(how, size):
    picture = Image(data=encoded(plain(RED, *size), "PNG"))
    for interpolation in ("pillow_bicubic", "area"):
        pixels = prepare(picture, (16, 24), ImagePreprocessing(how, interpolation))
        assert pixels.shape == (16, 24, 3)
        assert (pixels == RED).all(2).any()


def test_a_narrow_picture_is_not_scaled_to_gigabytes():
    picture = np.zeros((1, 50_000, 3), np.uint8)
    for how in ("crop", "shortest"):
        with pytest.raises(BadImage, match="50000 x 1 pixels are too narrow"):
            resize(picture, (224, 224), ImagePreprocessing(how))
    assert resize(picture, (224, 224), ImagePreprocessing("pad")).shape == (224, 224, 3)


def immense(form):
    """A small file whose header speaks of 50,000 x 50,000 pixels or, where it cannot, of as many as it can."""
    if form == "PNG":
        return png((50_000, 50_000, 1, 0, 0, 0, 0), (b"IDAT", zlib.compress(bytes(6251 * 50_000), 1)))
    small = plain(height=16, width=16)
    data = bytearray(encoded(small, form, **({"lossless": True} if form == "WEBP" else {})))
    if form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", 50_000, 50_000)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", 50_000, 50_000)
    elif form == "WEBP":
        data[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    elif form == "TIFF":
        for tag in (256, 257):
            at = data.index(struct.pack("<H", tag))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 50_000)
    return bytes(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_immense_pictures_are_refused_by_their_header(form, monkeypatch):
    data = immense(form)
    assert len(data) < 1 << 21
    monkeypatch.setattr(image_decoding.cv2, "imdecode", None)
    with pytest.raises(BadImage, match=r"pixels are more than the 89478485 that are decoded"):
        decode(Image(data=data))


def test_bombs_behind_an_honest_header_take_no_time():
    """More compressed data than the header's size needs; a chunk of text that inflates to 100 megabytes."""
    deflate = zlib.compressobj()
    million = bytes(1 << 20)
    bomb = b"".join(deflate.compress(million) for _ in range(100)) + deflate.flush()
    honest = (8, 8, 8, 2, 0, 0, 0)
    began = time.process_time()
    for data in (
        png(honest, (b"IDAT", bomb)),
        png(honest, (b"zTXt", b"a\0\0" + bomb), (b"IDAT", zlib.compress(bytes(25 * 8)))),
        png(honest, (b"iCCP", b"a\0\0" + bomb), (b"IDAT", zlib.compress(bytes(25 * 8)))),
    ):
        try:
            assert decode(Image(data=data)).shape == (8, 8, 3)
        except BadImage:
            continue
    assert time.process_time() - began < 5


def test_a_jpeg_of_endless_scans_is_refused():
    data = encoded(photograph(64, 64), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert decode(Image(data=data)).shape == (64, 64, 3)
    with pytest.raises(BadImage, match="more than 500 scans"):
        decode(Image(data=data[:at] + data[at:-2] * 500 + b"\xff\xd9"))


def test_a_file_of_a_hundred_megabytes_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(100 << 20)
    with pytest.raises(BadImage, match=r"large\.png': 104,857,600 bytes are more than the 67,108,864 that are read"):
        decode(Image(path=str(path)))
    with pytest.raises(BadImage, match="picture: 67,108,865 bytes are more"):
        decode(Image(data=bytes(FILE_LIMIT + 1)))


def test_what_is_no_file_is_refused_and_waits_for_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    for name, reason in (("pipe", "not a file"), (".", "not a file"), ("loop", "symbolic links")):
        with pytest.raises(BadImage, match=reason):
            decode(Image(path=str(tmp_path / name)))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_opaque_pictures_are_decoded_once(form, monkeypatch):
    calls = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(image_decoding.cv2, "imdecode", lambda *a: calls.append(a) or imdecode(*a))
    for options in ({"lossless": True}, {}) if form == "WEBP" else ({},):
        calls.clear()
        decode(Image(data=encoded(plain(), form, **options)))
        assert len(calls) == 1


def test_a_large_jpeg_may_be_decoded_at_a_fraction():
    data = encoded(photograph(1200, 1600), "JPEG", quality=92)
    picture = Image(data=data)
    assert decode(picture, (130, 130)).shape == (150, 200, 3)
    assert decode(picture, (151, 9)).shape == (300, 400, 3)
    assert decode(picture, (1200, 1200)).shape == (1200, 1600, 3)
    for how in ("squash", "crop", "pad", "shortest"):
        whole, reduced = (
            prepare(picture, (64, 96), ImagePreprocessing(how, "pillow_bicubic", reduce_jpeg=reduce))
            for reduce in (False, True)
        )
        difference = np.abs(whole.astype(int) - reduced)
        assert 0 < difference.max() <= 6
        assert difference.mean() < 1
    lossless = Image(data=encoded(photograph(), "PNG"))
    assert (prepare(lossless, (64, 64), ImagePreprocessing(reduce_jpeg=True)) == prepare(
        lossless, (64, 64), ImagePreprocessing()
    )).all()  # fmt: skip


def test_a_reduced_jpeg_still_turns():
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    pixels = decode(Image(data=encoded(photograph(), "JPEG", exif=exif)), (100, 100))
    assert pixels.shape == (200, 150, 3)


def test_chunks_of_a_png_that_show_nothing_are_left_out(capfd):
    rows = zlib.compress((b"\0" + bytes(RED) * 4) * 4)
    seen = png((4, 4, 8, 2, 0, 0, 0), (b"IDAT", rows))
    noisy = png(
        (4, 4, 8, 2, 0, 0, 0),
        (b"tEXt", b"Comment\0" + b"x" * 99),
        (b"iCCP", b"ICC\0\0" + zlib.compress(b"no profile")),
        (b"IDAT", rows[:9]),
        (b"IDAT", rows[9:]),
        (b"sRGB", b"\0"),
    )
    assert image_files.whole(seen) is seen
    assert image_files.whole(noisy) == png((4, 4, 8, 2, 0, 0, 0), (b"IDAT", rows[:9]), (b"IDAT", rows[9:]))
    assert (decode(Image(data=noisy)) == RED).all()
    assert capfd.readouterr().err == ""


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=12),
    near_the_start=st.booleans(),
)
def test_a_damaged_picture_is_a_picture_or_a_bad_one(form, changes, near_the_start):
    data = bytearray(encoded(photograph(24, 31), form))
    for at, value in changes:
        data[at % (64 if near_the_start else len(data))] = value
    try:
        pixels = decode(Image(data=bytes(data)))
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
