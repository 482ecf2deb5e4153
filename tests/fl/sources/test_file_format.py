import bz2
import gzip
import io
import lzma
import re
import zipfile

import pytest

from fl.sources import csv_rows, folder, jsonl, sqlite
from fl.sources.file_format import why_compressed, why_no_text

CHINESE = (
    "user,text\n"
    + "\u738b\u8299,\u6211\u5728\u4e0a\u6d77\u4f4f\u4e86\u5f88\u4e45\uff0c\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\n"
    * 20
)
ROWS = "user,text\na,some text\nb,more text\n"


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.csv", content)
    return buffer.getvalue()


COMPRESSED = {
    "gzip": gzip.compress(ROWS.encode()),
    "bzip2": bz2.compress(ROWS.encode()),
    "xz": lzma.compress(ROWS.encode()),
    "lzma": lzma.compress(ROWS.encode(), lzma.FORMAT_ALONE),
    "zip": zipped(ROWS.encode()),
}


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("load", [csv_rows.load, jsonl.load, lambda path, *_: sqlite.load(path, "text")])
def test_compressed_file_is_refused_with_command_to_decompress(tmp_path, name, load):
    path = tmp_path / "data"
    path.write_bytes(COMPRESSED[name])
    with pytest.raises(ValueError, match=rf"data: the file is compressed \({name}\): decompress it first") as caught:
        load(path, "user", "text")
    assert "\n" not in str(caught.value)


OTHER = {
    "UTF-16 with a mark": (ROWS.encode("utf-16"), "the text is UTF-16: convert it to UTF-8, for instance with iconv"),
    "UTF-16 without": (ROWS.encode("utf-16-be"), "the text is UTF-16: convert it to UTF-8"),
    "UTF-16 BE, Chinese": (CHINESE.encode("utf-16-be"), "the text is UTF-16: .* iconv -f UTF-16BE -t UTF-8"),
    "UTF-16 LE, Chinese": (CHINESE.encode("utf-16-le"), "the text is UTF-16: .* iconv -f UTF-16LE -t UTF-8"),
    "UTF-32 with a mark": (ROWS.encode("utf-32"), "the text is UTF-32: .* iconv -f UTF-32 -t UTF-8"),
    "UTF-32 BE with a mark": (("\ufeff" + ROWS).encode("utf-32-be"), "the text is UTF-32: .* iconv -f UTF-32 -t UTF-8"),
    "UTF-32 BE": (ROWS.encode("utf-32-be"), "the text is UTF-32: .* iconv -f UTF-32BE -t UTF-8"),
    "UTF-32 LE, Chinese": (CHINESE.encode("utf-32-le"), "the text is UTF-32: .* iconv -f UTF-32LE -t UTF-8"),
    "bare CR": (ROWS.replace("\n", "\r").encode(), "lines end with a bare carriage return: convert them"),
    "SQLite": (b"SQLite format 3\0" + bytes(80), 'this is an SQLite file: read it with data.source = "sqlite"'),
    "Parquet": (b"PAR1" + bytes(80), 'this is a Parquet file: read it with data.source = "parquet"'),
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("module", [csv_rows, jsonl])
def test_table_that_is_not_lines_of_utf8_is_refused_with_fix(tmp_path, case, module):
    content, reason = OTHER[case]
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"data: {reason}") as caught:
        module.load(path, "user", "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", OTHER)
def test_clients_file_that_is_not_lines_of_utf8_is_one_bad_row_with_fix(tmp_path, case):
    content, reason = OTHER[case]
    (tmp_path / "anna.txt").write_bytes(content)
    (tmp_path / "ben.txt").write_text("fine\n")
    source = folder.load(tmp_path)
    assert list(source) == [("ben", ["fine"])]
    assert [row.file for row in source.bad_rows] == [str(tmp_path / "anna.txt")]
    assert re.match(reason, source.bad_rows[0].reason)


@pytest.mark.parametrize(
    "content",
    [b"", b"a", b"BZh,text\n", b"PK,text\n", b"]\n", b"a\r\nb\r", b"a\0b\0c\n" + bytes(40), "größer\n".encode() * 99]
    + [
        b"x\n\0y\n" * 30,
        b"ab\n\0cd\n" + b"more text\n" * 50,
        b"a\0bcdef\n" * 9,
        "größer\n".encode("latin-1") * 9,
        CHINESE.encode(),
        CHINESE.encode("gb18030"),
    ],
)
def test_text_with_misleading_first_bytes_is_accepted(content):
    assert why_compressed(content) is None and why_no_text(content) is None
