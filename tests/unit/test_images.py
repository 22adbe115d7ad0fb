"""Images of any kind become what trainings see, and what is no image is one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import mmcv
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from dfvt.data.decoding import FLAGS
from dfvt.data.images import find_images, read_image, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large: zeros pack well."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_file_its_content_and_its_pixels_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    for source in (path, path.read_bytes(), RGB):
        assert np.array_equal(read_image(source), RGB[..., ::-1])


@pytest.mark.parametrize("quality", [50, 95])
def test_a_jpeg_is_what_mmcv_makes_of_it(tmp_path: Path, quality: int) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "jpeg", quality=quality))
    assert np.array_equal(read_image(path), mmcv.imread(str(path)))


def test_grey_alpha_palettes_and_sixteen_bit() -> None:
    grey = RGB[..., 0]
    assert np.array_equal(read_image(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=2))
    assert np.array_equal(read_image(grey), np.stack([grey] * 3, axis=2))
    alpha = np.concatenate([RGB, RGB[..., :1]], axis=2)
    assert np.array_equal(read_image(encoded(Image.fromarray(alpha))), RGB[..., ::-1])
    assert np.array_equal(read_image(alpha), RGB[..., ::-1])
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(read_image(encoded(Image.fromarray(deep))), np.stack([grey] * 3, axis=2))
    assert np.array_equal(read_image(deep), np.stack([grey] * 3, axis=2))
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    assert np.array_equal(read_image(encoded(palette)), expected)
    bits = Image.fromarray(grey > 127)
    assert set(np.unique(read_image(encoded(bits)))) == {0, 255}


def test_a_rotated_image_is_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert read_image(encoded(Image.fromarray(RGB), "jpeg", exif=exif)).shape == (60, 40, 3)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("color_type", FLAGS)
def test_every_colour_type_is_read_as_mmcv_reads_it(tmp_path: Path, color_type: str, order: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "image.jpg"
    Image.fromarray(RGB).save(path, exif=exif)
    assert np.array_equal(read_image(path, color_type, order), mmcv.imread(path, color_type, order))


def test_a_picture_is_turned_as_the_annotations_state_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path, exif=exif)
    assert np.array_equal(read_picture(path, (60, 40)), RGB)
    assert np.array_equal(read_picture(path, (40, 60)), np.rot90(RGB, -1))
    assert np.array_equal(read_picture(path), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (b"", "it is empty"),
        (b"GIF89a", "it is"),
        (b"<html>not an image</html>", "it is no image that can be read"),
        (encoded(Image.fromarray(RGB), "jpeg")[:500], "it is damaged"),
        (encoded(Image.fromarray(RGB))[:-700], "it is damaged"),
        (png_of_size(20_000, 20_000), "it has more than 100,000,000 pixels"),
        (png_of_size(12_000, 12_000), "it has 12000×12000 pixels, more than 100,000,000"),
        (png_of_size(9_000, 9_000), "it is damaged"),
        (
            encoded(Image.new("F", (40, 30)), "tiff"),
            r"OpenCV cannot decode \(TIFF image of mode F\)",
        ),
        (encoded(Image.new("RGB", (40, 30)), "pcx"), r"OpenCV cannot decode \(PCX image of mode RGB\)"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"an array of the shape \(2, 3, 4, 5\) is no image"),
        (np.zeros((0, 3, 3), np.uint8), "is no image"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 is no image: use uint8"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "it has 20000×20000 pixels"),
    ],
)
def test_what_is_no_image_is_one_sentence(source: bytes | np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        read_image(source)
    assert "\n" not in str(error.value)


def test_no_program_is_started_to_decode_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    content = encoded(Image.fromarray(RGB), "eps")
    (tmp_path / "image.jpg").write_bytes(content)
    for source in (content, tmp_path / "image.jpg"):
        with pytest.raises(ValueError, match="it is no image that can be read"):
            read_image(source)
    assert started == [], "Pillow decodes EPS with Ghostscript"


@given(content=st.binary(max_size=60), kind=st.sampled_from(["png", "jpeg", "bmp", "tiff", "gif", "webp"]))
def test_nothing_makes_it_fail_otherwise(content: bytes, kind: str) -> None:
    good = encoded(Image.fromarray(RGB[:9, :9]), kind)
    for damaged in (content, good[: len(content)] + content, content + good, good[:40] + content + good[45:]):
        try:
            assert read_image(damaged).dtype == np.uint8
        except ValueError as error:
            assert str(error).startswith("it ")


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/2.jpg", "a/1.PNG", "a/b/3.jpeg", "a/notes.txt", "c d/4.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(*patterns: str) -> list[str]:
        return [path.as_posix() for path in find_images(list(patterns))]

    assert names("a") == ["a/1.PNG", "a/2.jpg", "a/b/3.jpeg"]
    assert names("a/*.jp*", "a/2.jpg", "c d") == ["a/2.jpg", "c d/4.webp"]
    assert names("**/*.jpeg") == ["a/b/3.jpeg"]
    assert names("a/notes.txt") == ["a/notes.txt"], "it was named"
    assert names(f"{tmp_path}/a/?.jpg") == [f"{tmp_path}/a/2.jpg"]
    assert names("a/2.jpg", f"{tmp_path}/a/2.jpg", "c d/../a/2.jpg", "./a/2.jpg") == ["a/2.jpg"], "once"
    (tmp_path / "empty").mkdir()
    for pattern in ("nowhere.jpg", "*.gif", "empty"):
        with pytest.raises(FileNotFoundError, match=pattern.replace("*", r"\*")):
            find_images([pattern])


@pytest.mark.parametrize(("pattern", "sentence"), [("", "empty name"), ("/dev/null", "neither a file nor")])
def test_names_that_cannot_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, sentence: str
) -> None:
    (tmp_path / "image.jpg").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        find_images([pattern, "image.jpg"])


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it cannot be read"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "absent")
