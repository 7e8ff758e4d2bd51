"""Sources: every format reads the same texts, and whatever is wrong with a file is said."""

import gzip
import io
import json
import re

import pytest

from jgpt.config import DataConfig
from jgpt.data import records
from jgpt.data.corpus import open_corpus
from jgpt.data.records import BadRecords, DataError
from jgpt.data.sources import SourceSpec, parse_sources, read_documents

TEXTS = [
    "朝、町を歩いた。\n犬が吠えた。",
    "行を\u2028区切る\u0085文字\x1cも本文",
    'かぎ"括弧"と\\円',
    "😀絵文字",
]


def read(kind, path, bad=None, **settings):
    config = DataConfig(**settings)
    spec = SourceSpec(kind, str(path))
    return [d.text for d in read_documents(spec, config, bad or BadRecords(100))]


def jsonl(texts, end="\n"):
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + end for t in texts).encode()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# --- formats ---------------------------------------------------------------------------------


def test_jsonl_plain_gzip_and_crlf_with_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(TEXTS, "\r\n") + b"\r\n")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl"):
        assert read("jsonl", tmp_path / name) == TEXTS


def test_zstandard_in_several_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="zstandard is an optional package")
    compress = zstandard.ZstdCompressor().compress
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compress(jsonl(TEXTS[:2])) + compress(jsonl(TEXTS[2:])))
    assert read("jsonl", path) == TEXTS


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is an optional package")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": [*TEXTS, None], "id": range(5)}), path)
    bad = BadRecords(100)
    assert read("parquet", path, bad, text_field="body") == TEXTS
    assert bad.count == 1 and ":5:" in bad.examples[0]
    with pytest.raises(DataError) as error:
        read("parquet", path)
    assert "set data.text_field to one of: body, id" in one_line(error)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no such thing")
    with pytest.raises(DataError, match="as Parquet"):
        read("parquet", tmp_path / "b.parquet")


def test_array_record_of_json_and_of_text(tmp_path):
    module = pytest.importorskip(
        "array_record.python.array_record_module", reason="array_record is an optional package"
    )
    for name, data in {
        "json": [jsonl([text]) for text in TEXTS],
        "text": [text.encode() for text in TEXTS],
    }.items():
        path = tmp_path / f"{name}.array_record"
        writer = module.ArrayRecordWriter(str(path), "group_size:2")
        for record in [*data, b"\xff\xfe"]:
            writer.write(record)
        writer.close()
        bad = BadRecords(100)
        assert read("array_record", path, bad) == TEXTS
        assert bad.count == 1 and f"{path}:5:" in bad.examples[0]


def test_text_by_file_and_by_block(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("一行目\n二行目\n\n \n次の塊\n", encoding="utf-8")
    assert read("text", path) == ["一行目\n二行目\n\n \n次の塊"]
    assert read("text", path, text_documents="block") == ["一行目\n二行目", "次の塊"]


# --- specifications --------------------------------------------------------------------------


def test_specifications(monkeypatch):
    monkeypatch.setenv("CORPORA", "/corpora")
    text = "microworld@0.5, jsonl:$CORPORA/a.jsonl.gz@2,${CORPORA}/b.parquet,huggingface:x/y@z.json"
    assert parse_sources(text) == [
        SourceSpec("microworld", "", 0.5),
        SourceSpec("jsonl", "/corpora/a.jsonl.gz", 2.0),
        SourceSpec("parquet", "/corpora/b.parquet", 1.0),
        SourceSpec("huggingface", "x/y@z.json", 1.0),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("jsonl:$NO_SUCH_VARIABLE/a.jsonl", "NO_SUCH_VARIABLE is not set"),
        ("jsonlines:a.jsonl", "unknown kind 'jsonlines'"),
        ("corpus.bin", "cannot tell the kind"),
        ("jsonl:", "without a path"),
        ("microworld:path", "has no path"),
        ("a.jsonl@0", "positive number"),
        (" , ", "is empty"),
    ],
)
def test_specifications_that_cannot_be_used(text, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        parse_sources(text)
    one_line(error)


def test_globs_and_folders_stand_for_sorted_files(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([name]))
    (tmp_path / "notes.txt").write_text("x")
    assert read("jsonl", tmp_path / "*.jsonl") == ["a", "b", "c"]
    assert read("jsonl", tmp_path) == ["a", "b", "c"]


# --- bad input -------------------------------------------------------------------------------


def test_bad_lines_are_counted_with_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    good = jsonl(["良い行"])
    lines = [
        good,
        b'{"text": "broken\n',
        b'{"text": "\xff\xfe"}\n',
        b"[1]\n",
        b'{"text": 5}\n',
        b'{"text": "\\ud83d lone surrogate"}\n',
        b"\n",
        b"[" * 100_000 + b"\n",
        good,
    ]
    path.write_bytes(b"".join(lines))
    bad = BadRecords(100)
    assert read("jsonl", path, bad) == ["良い行"] * 2
    assert bad.count == 6
    for number, reason in {2: "broken JSON", 3: "not UTF-8", 4: "not an object"}.items():
        assert any(f"{path}:{number}: " in e and reason in e for e in bad.examples)
    with pytest.raises(DataError, match=r"more than data\.max_bad_records=2 .*:2: broken") as error:
        read("jsonl", path, BadRecords(2))
    one_line(error)


def test_a_missing_field_lists_those_there_are(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x", "id": 1}\n')
    with pytest.raises(DataError) as error:
        read("jsonl", path)
    assert f"{path}:1 has no field 'text'; set data.text_field to one of: body, id" in one_line(
        error
    )


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_truncated_compressed_files_are_refused_at_the_line(tmp_path, kind):
    data = jsonl([f"{n}" * 50 for n in range(5000)])
    if kind == "gz":
        packed = gzip.compress(data)
    else:
        zstandard = pytest.importorskip("zstandard", reason="zstandard is an optional package")
        packed = zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cut short after line") as error:
        read("jsonl", path)
    one_line(error)
    path.write_bytes(b"this is not compressed")
    with pytest.raises(DataError, match="is damaged"):
        read("jsonl", path)


def test_a_huge_line_is_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["前", "長" * 2000, "後"]))
    bad = BadRecords(100)
    assert read("jsonl", path, bad) == ["前", "後"]
    assert bad.count == 1 and f"{path}:2: line longer" in bad.examples[0]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no file at"):
        read("jsonl", tmp_path / "none.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DataError):
        read("jsonl", tmp_path / "loop.jsonl")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pyarrow.*pip install 'jgpt\[data\]'"):
        read("parquet", tmp_path / "a.parquet")


# --- opened corpora --------------------------------------------------------------------------


def opened(path, **settings):
    return open_corpus(DataConfig(sources=str(path), validation_fraction=0.0, **settings))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no document; is the file empty?"),
        (b"\n \n\n", "holds no document"),
        (b"{\n[]\n\xff\n", "all 3 records are unreadable, the first at"),
        (
            jsonl(["", "  "]),
            "removed all 2 documents, most by data.cleaning.min_characters",
        ),
    ],
)
def test_corpora_without_a_document_say_why(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        opened(path)
    one_line(error)


def test_a_side_that_is_empty_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["ただ一つの文書。"]))
    with pytest.raises(DataError, match="no document to validate on"):
        open_corpus(DataConfig(sources=str(path), validation_fraction=1e-6))
    with pytest.raises(DataError, match="no document to train on"):
        open_corpus(DataConfig(sources=str(path), validation_fraction=1 - 1e-9))


def test_the_report_counts_what_was_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["ＡＢＣ", "春夏秋冬", ""]) + b"{\n")
    for _ in range(2):  # written, then found in the cache
        report = opened(path).report
        assert (report.documents, report.characters, report.bad_records) == (2, 7, 1)
        assert f"{path}:4" in report.bad_examples[0]
        assert report.cleaning.filters["normalize"].changed == 1
        assert report.cleaning.filters["min_characters"].documents == 1
    with pytest.raises(DataError, match="max_bad_records=0"):
        opened(path, max_bad_records=0)


def test_a_changed_file_is_read_again_and_changes_the_fingerprint(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["一", "二"]))
    first = opened(path)
    path.write_bytes(jsonl(["一", "三"]))
    second = opened(path)
    assert list(first.training_texts()) == ["一", "二"]
    assert list(second.training_texts()) == ["一", "三"]
    assert first.fingerprint != second.fingerprint
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert opened(copy).fingerprint == second.fingerprint


def test_nothing_half_written_stays_in_the_cache(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["一"]) + b"{\n" * 5)
    cache = tmp_path / "cache"
    with pytest.raises(DataError):
        opened(path, max_bad_records=2, cache=str(cache))
    assert [p for p in cache.rglob("*") if p.is_file()] == []


def test_an_unwritable_cache_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["一"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data\.cache or \$JGPT_CACHE") as error:
        opened(path, cache=str(tmp_path / "file" / "cache"))
    one_line(error)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["一"]))

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jgpt.data.store.np.save", full)
    with pytest.raises(DataError, match="No space left on device") as error:
        opened(path, cache=str(tmp_path / "cache"))
    one_line(error)


def test_decompressing_needs_no_whole_file_in_memory(tmp_path):
    """The first lines of a file come before the rest of it is read."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(["x" * 1000 for _ in range(20_000)])))
    lines = records.read_lines(path, BadRecords(0))
    assert next(lines)[0] == 1
    assert isinstance(records._decompressed(path), io.BufferedIOBase)
