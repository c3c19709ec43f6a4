"""The table in docs/own_data.md: every row is a test with real files of its kind."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import test_own_folders
from PIL import Image
from user_folders import HW, IDS, PICTURE, PLAIN, Home, make_rows

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
ROWS, row = make_rows()


@pytest.fixture
def home(tmp_path, capsys):
    return Home(tmp_path, capsys)


def palette_image(ids, colours):
    image = Image.fromarray(ids)
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


# --- how labels are written ---


@row("masks of 0 and 255")
def masks_of_0_and_255(home):
    home.add(255 * IDS)
    home.classes(PLAIN).refused(
        "no training label holds class 1 'thing', while 255, the ignore_label, is 50% "
        "of the pixels; .*write `1 NAME values=255`"
    )
    home.classes("0 background\n1 thing values=255\n").open().means(IDS)


@row("masks of 0 and 1")
def masks_of_0_and_1(home):
    home.add(IDS).classes(PLAIN).open().means(IDS)


@row("masks of 1, 2 or 4 bits")
def masks_of_few_bits(home):
    home.add(Image.fromarray(IDS.astype(bool)))
    rows = np.packbits(np.repeat(IDS, 4, axis=1) & [0, 0, 0, 1] * 16, axis=1)
    header = struct.pack(">IIBBBBB", 16, 12, 4, 0, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(line) for line in rows)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    four_bits = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    home.add(four_bits, stem="b").classes(PLAIN).open()
    home.means(IDS)
    home.means(IDS, i=1)


@row("colours (RGB or RGBA)")
def colours(home):
    rgb = np.array([[0, 0, 0], [128, 64, 128]], np.uint8)[IDS]
    home.add(rgb).add(Image.fromarray(rgb).convert("RGBA"), stem="b")
    home.classes(PLAIN).refused("labels are colours, but classes.txt lists none; give")
    home.classes("0 background #000000\n1 road #804080\n").open()
    home.means(IDS)
    home.means(IDS, i=1)


@row("a palette that is the same in every file")
def one_palette(home):
    image = palette_image(IDS, [[9, 9, 9], [200, 0, 0]])
    home.add(image).classes(PLAIN).open().means(IDS)
    assert "palettes differ" not in home.said


@row("palettes that differ from file to file")
def palettes_that_differ(home):
    home.add(palette_image(IDS, [[0, 0, 0], [200, 0, 0]]))
    home.add(palette_image(1 - IDS, [[200, 0, 0], [0, 0, 0]]), stem="b")
    home.classes(PLAIN).open()
    assert "palettes differ: the same index has another colour in 1 label" in home.said
    assert "train/labels/b.png" in home.said
    home.classes("0 background #000000\n1 thing #c80000\n").open()
    home.means(IDS)
    home.means(IDS, i=1)


@row("several values for one class")
def merged_classes(home):
    home.add(np.where(IDS == 1, np.uint8(13), np.uint8(14)))
    home.classes("0 sky values=7\n1 car values=13,14\n").open().means(np.ones(HW))


@row("several void values")
def several_voids(home):
    labels = np.tile(np.uint8([0, 254, 255, 1] * 4), (12, 1))
    home.add(labels).classes("0 wall values=1\nvoid values=0,254,255\n").open()
    home.means(np.where(labels == 1, 0, 255))


@row("0 is void, ids start at 1 (ADE20K)")
def ids_from_1(home):
    labels = np.tile(np.uint8([0, 1, 2, 2] * 4), (12, 1))
    home.add(labels)
    home.classes("1 wall\n2 floor\n").refused(
        r"must be `INDEX NAME`; .*line 1 \(got `1 wall`, which may be `0 wall values=1`"
    )
    home.classes("0 wall values=1\n1 floor values=2\nvoid values=0\n").open()
    home.means(np.where(labels == 0, 255, labels - 1))


@row("ids with gaps")
def gaps(home):
    home.add(np.uint8([7, 23])[IDS])
    home.classes("0 road values=7\n1 sky values=23\n").open().means(IDS)


@row("more than 255 classes (16 bits)")
def many_classes(home):
    ids = np.uint16([0, 299])[IDS]
    home.add(ids).add(ids, stem="b", kind="tif").add(ids, stem="c", kind="npy")
    home.classes("".join(f"{k} class{k}\n" for k in range(300)))
    home.refused("line 256: must not be ignore_label, got 255; .*ignore_label=65535")
    home.open(ignore_label=65_535)
    for i in range(3):
        home.means(ids, i=i)
    assert home.sample()["labels"].dtype == np.uint16


@row("grey saved as RGB, or with opacity (LA)")
def grey_with_more_channels(home):
    home.add(np.dstack([IDS] * 3)).add(Image.fromarray(IDS).convert("LA"), stem="b")
    home.classes(PLAIN).open()
    home.means(IDS)
    home.means(IDS, i=1)


@row("labels in TIFF, BMP, GIF, lossless WebP or .npy")
def other_formats(home):
    for kind in ("tif", "bmp", "gif", "npy"):
        home.add(IDS, stem=kind, kind=kind)
    home.add(np.dstack([IDS] * 3), stem="webp", kind="webp", lossless=True)
    home.classes(PLAIN).open()
    for i in range(5):
        home.means(IDS, i=i)


@row("labels in JPEG")
def jpeg_labels(home):
    home.add(IDS, kind="jpg").classes(PLAIN)
    home.refused(
        "train/labels/a.jpg; labels are read from .*, which store them without"
    )
    (home.root / "train/labels/a.jpg").rename(home.root / "train/labels/a.png")
    home.refused("must be stored without loss, got JPEG; export them as PNG")


@row("a value that is no class")
def stray_value(home):
    home.add(np.uint8([0, 3])[IDS]).classes(PLAIN).refused(
        r"train/labels/a.png: values must be 0..1 or ignore_label 255, got 3 \(96 px\)"
    )


@row("a class that no label has")
def absent_class(home):
    home.add(IDS).classes(PLAIN + "2 rare\n").open()
    (line,) = home.dataset.describe_classes("train")
    assert line == "no label of train has a pixel of 2 rare"


@row("void pixels")
def void_pixels(home):
    home.add(np.where(np.arange(16) % 4 == 3, np.uint8(255), IDS))
    home.classes(PLAIN).open()
    (line,) = home.dataset.describe_classes("train")
    assert line == "25.0% of the pixels of train are void: they do not count"


# --- images ---


@row("images in TIFF, BMP or WebP, or grey")
def other_images(home):
    for kind in ("tif", "bmp"):
        home.add(IDS, stem=kind, image_kind=kind)
    home.add(IDS, PICTURE[..., 0], stem="grey").classes(PLAIN).open()
    for i in (0, 2):  # bmp and tif
        np.testing.assert_array_equal(home.sample(i=i)["image"], PICTURE)
    grey = home.sample(i=1)["image"]
    np.testing.assert_array_equal(grey, np.dstack([PICTURE[..., 0]] * 3))


@row("images of 16 bits, grey or of several bands")
def deep_images(home):
    deep = np.random.default_rng(1).integers(0, 65_536, (*HW, 4), np.uint16)
    home.add(IDS, deep, image_kind="tif").add(IDS, deep, stem="b", image_kind="npy")
    home.classes(PLAIN).open()
    for i in range(2):
        np.testing.assert_array_equal(home.sample(i=i)["image"], deep)
    bands = home.dataset.bands
    assert (bands.num_bands, bands.dtype) == (4, "uint16")
    np.testing.assert_allclose(bands.mean, deep.mean(axis=(0, 1)))
    np.testing.assert_allclose(bands.deviation, deep.std(axis=(0, 1)))


@row("images of floats, with missing data")
def missing_data(home):
    image = np.random.default_rng(1).normal(5, 2, (*HW, 2)).astype(np.float32)
    image[0, :4] = np.nan
    home.add(IDS, image, image_kind="npy").classes(PLAIN)
    home.refused("must be finite, got 4 pixels that are NaN or infinite; .*nodata=nan")
    home.open(nodata="nan")
    assert (home.sample()["labels"][0, :4] == 255).all()
    assert np.isfinite(home.sample()["image"]).all()
    np.testing.assert_allclose(
        home.dataset.bands.mean, np.nanmean(image, axis=(0, 1)), rtol=1e-6
    )


@row("images with opacity (alpha)")
def opacity(home):
    alpha = np.full(HW, 255, np.uint8)
    alpha[:3] = 0
    home.add(IDS, np.dstack([PICTURE, alpha])).classes(PLAIN).open()
    np.testing.assert_array_equal(home.sample()["image"], PICTURE)
    home.means(IDS)
    assert "1 images have an opacity (alpha) that is not used: train/images/a.png" in (
        home.said
    )
    home.open(alpha="void").means(np.where(alpha == 0, 255, IDS))
    band = home.open(alpha="band").sample()["image"]
    np.testing.assert_array_equal(band, np.dstack([PICTURE, alpha]))


@row("images of different bands in one folder")
def mixed_bands(home):
    home.add(IDS).add(IDS, PICTURE[..., 0].astype(np.uint16), stem="b")
    home.classes(PLAIN).refused(
        "b.png: must be RGB, as train/images/a.png is, got 1 band of uint16"
    )


@row("a very large image")
def large_image(home):
    home.add(IDS).classes(PLAIN)
    home.refused(
        "must have at most 100 pixels; cut the image, or raise "
        r"--config.data.max_image_pixels: train/images/a.png \(got 12 x 16, which",
        max_image_pixels=100,
    )


@row("a label of another size than its image")
def another_size(home):
    home.add(IDS[:, :9]).classes(PLAIN).refused(
        "labels/a.png: must have the size of its image, got 12 x 9, but the image has "
        r"12 x 16 \(height x width\); resize one of them"
    )


@row("a damaged file")
def damaged_file(home):
    home.add(IDS).classes(PLAIN)
    path = home.root / "train/images/a.png"
    path.write_bytes(path.read_bytes()[:-30])
    home.refused("train/images/a.png: must be a sound file, got a damaged one")


@pytest.mark.parametrize("name", ROWS)
def test_row(name, home):
    ROWS[name](home)


def test_the_page_has_these_rows():
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [line.split("|")[1].strip() for line in table]
    start = cells.index("you have") + 2
    rows = [*ROWS, *test_own_folders.ROWS]
    assert cells[start : start + len(rows)] == rows
