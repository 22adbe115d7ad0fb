"""Names, numbers and formats that data sets of others have, and that programs stumble over."""

from __future__ import annotations

from typing import Any

# fmt: off
CLASS_NAMES = [
    "None", "NA", "N/A", "null", "nan", "NaN", "", " ", "True", "1", "1.0", "-1", "inf", "~", "#N/A", ".",
    "..", "../x", "/", "a/b/../c", "A/B", "A_B", "A B", "A:B", "a", "A", "person", "mAP", "bbox_mAP",
    "fish ♂", "fish ♀", "fish _", "(background)", "(missed)", "background", "class", "all", "x" * 250,
    "y" * 251, "鳥" * 100, "猫", "ねこ", "고양이", "кот", "قط", "🐈",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "é", "e\u0301", "ß", "İ", "<b>cat</b>", "<script>alert(1)</script>", "&amp;", "a|b", "`cat`", "*cat*",
    "[cat](x)", "$x^2$", "$\\foo$", "$_$ and $", "$\\frac{", "$",
    "two\nlines", "tab\tname", "cr\rname", "\u2028", "\x1b[31mred",
    "\u200b", "it's", 'say "x"', "'''", '"""', "\\", "\\n", "{x}", "{}", "{0}", "%s", "%",
    "{{ fileDirname }}", "{{_base_.model}}", "$HOME", "#", "a,b", ";", "=x", "@x", "-x", "_x",
]
STEMS = [  # of files
    "a", "A", "b", "1", "0001", "a b", " a", "a ", "it's", 'say "x"', "100%", "%20", "%s", "a#b", "a?b",
    "a*b", "[a]", "a&b", "-a", "--out", ".a", "..a", "a.b.c", "é", "e\u0301", "猫", "🐈", "ñ♂", "x" * 120,
    "鳥" * 60, "<b>", "a|b", "`a`", "$x$", "~a", "a,b", "a=b", "{x}", "{{ fileDirname }}", "a\\b", "a\nb",
    "a\tb", "con", "nul", "a-0001", "a_0001", "a:b", "@a", "!a", "a;b", "\u202eabc",
]
FOLDERS = [  # in the folder of a split
    "", "", "", "", "cam1/", "cam2/", "cam 3/", "a/b/", "./", "é/", "e\u0301/", "it's/", ".hidden/",
    "a.jpg/", "x//", "../x/",
]
PARTS = [  # of paths of folders
    "data", "data set", "d'ata", 'd"ata', "été 2017", "e\u0301te\u0301", "数据", "a#b", "100%", "%20", "[a]",
    "{a}", "a,b", "a;b", "-dash", "~tilde", ".hidden", "a=b", "$HOME", "a&b", "(a)", "a\\b",
    "{{ fileDirname }}", "train2017", "🐈", "a:b", "a@b", "a*b",
]
KINDS = [  # formats and modes of Pillow
    *[("JPEG", "RGB")] * 12, ("JPEG", "L"), ("JPEG", "CMYK"), ("PROGRESSIVE", "RGB"), ("PNG", "RGB"),
    ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"),
    ("BMP", "RGB"), ("BMP", "L"), ("BMP", "1"), ("BMP", "P"), ("TIFF", "RGB"), ("TIFF", "L"), ("TIFF", "F"),
    ("TIFF", "I;16"), ("TIFF", "CMYK"), ("TIFF", "RGBA"), ("TIFF", "1"), ("TIFF", "P"), ("WEBP", "RGB"),
    ("WEBP", "RGBA"), ("GIF", "P"), ("ANIMATED", "P"), ("PCX", "RGB"), ("PCX", "L"), ("PPM", "RGB"),
    ("PPM", "L"), ("PPM", "1"), ("TGA", "RGB"), ("JPEG2000", "RGB"), ("ICO", "RGBA"), ("AVIF", "RGB"),
]
SUFFIXES = {
    "JPEG": "jpg", "PROGRESSIVE": "jpeg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp",
    "GIF": "gif", "ANIMATED": "gif", "PCX": "pcx", "PPM": "ppm", "TGA": "tga", "JPEG2000": "jp2",
    "ICO": "ico", "AVIF": "avif",
}
ODD_SIZES = [  # width and height in pixels
    (1, 1), (1, 40), (40, 1), (31, 31), (32, 32), (33, 64), (64, 31), (7, 300), (300, 7), (400, 40),
    (40, 400), (2, 2),
]
IDS = [
    0, 1, 2, 3, 7, 100, 139, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**62,
    2**63 - 1,
]
NONSENSE: list[Any] = [  # for ids
    "1", "a", "", 1.0, 1.5, None, True, -1, -(2**31), 2**63, 2**64, 10**30, [1],
]
EXPERIMENTS = [  # of MLflow
    "dfvt", "team/shelves", "a:b", "été", "a b", "/abs", "x" * 300, "it's", "%", ".", "🐈", "a\\b",
    "Users/x@y.org/z",
]
# fmt: on
