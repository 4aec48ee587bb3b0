"""Formats and faults of corpus files."""

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
import unicodedata
import zipfile
from types import SimpleNamespace

import numpy as np
import openpyxl
import pandas as pd
import pytest
import zstandard
from helpers import assert_error
from hypothesis import given, settings
from hypothesis import strategies as st

from bertlab.core.files import BertlabError
from bertlab.data import corpora, docstrings, downloads, labeled, readers, text
from bertlab.data.parallel import Pairs
from bertlab.data.text import SkipCounts

PAIRS = [(f"{i}번째 문장이다.", f"This is sentence {i}.") for i in range(12)]


def zstd_compress(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


# ---------------------------------------------------------------- text files


@pytest.mark.parametrize(
    "wrap, ending", [(bytes, ".txt"), (gzip.compress, ".txt.gz"), (zstd_compress, ".txt.zst")]
)
def test_line_ends_and_byte_order_mark(tmp_path, wrap, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(wrap("\ufeff하나\r\ntwo\r\n\r\nfour".encode()))
    assert list(text.read_lines(path)) == [(1, "하나"), (2, "two"), (3, ""), (4, "four")]
    assert list(readers.read_text(path)) == ["하나", "two", "four"]


def test_rows_are_right_across_blocks(tmp_path):
    path = tmp_path / "long.txt"
    lines = [
        f"{i} " + "글" * (i % 90) for i in range(40_000)
    ]  # several blocks of 1 MB, cut inside characters
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    assert list(text.read_lines(path)) == list(enumerate(lines, 1))


@pytest.mark.parametrize(
    "content, parts",
    [
        (b"", ["row 1", "the file is empty"]),
        ("좋다\n싫다\n".encode("cp949"), ["row 1", "is not UTF-8", "CP949"]),
        ("fine\n좋다".encode() + b"\n\xff\n", ["row 3", "is not UTF-8"]),
        ("utf-16".encode("utf-16"), ["row 1", "NUL byte", "UTF-16"]),
        (b"one\ntwo\nth\x00ree\n", ["row 3", "NUL byte"]),
    ],
)
def test_faults_name_file_row_and_remedy(tmp_path, content, parts):
    path = tmp_path / "faulty.txt"
    path.write_bytes(content)
    assert_error(lambda: list(text.read_lines(path)), path, *parts)


@pytest.mark.parametrize("ending, wrap", [(".txt", bytes), (".txt.zst", zstd_compress)])
def test_line_of_50_mb(tmp_path, ending, wrap):
    path = tmp_path / f"a{ending}"
    path.write_bytes(wrap(b"one\n" + b"x" * 50_000_000 + b"\nthree\n"))
    assert_error(lambda: list(text.read_lines(path)), path, "row 2", "longer than 32 MB")
    skipped = SkipCounts()
    assert list(text.read_lines(path, skipped)) == [(1, "one"), (3, "three")]
    assert sum(skipped.values()) == 1


def test_missing_file(tmp_path):
    assert_error(lambda: list(text.read_lines(tmp_path / "nowhere.txt")), "nowhere.txt", "no such file")
    assert_error(lambda: list(text.read_lines(tmp_path)), "no such file")


def test_compressed_data_cut_short(tmp_path):
    content = "\n".join(f"line {i}" for i in range(100_000)).encode()
    for ending, wrap in [(".txt.gz", gzip.compress), (".txt.zst", zstd_compress)]:
        path = tmp_path / f"a{ending}"
        whole = wrap(content)
        path.write_bytes(whole[: len(whole) // 2])
        assert_error(lambda path=path: list(text.read_lines(path)), path, "damaged or cut short")
        skipped = SkipCounts()
        read = list(text.read_lines(path, skipped))
        assert sum(skipped.values()) == 1
        if ending == ".txt.gz":  # zstd may hold back up to one block
            assert len(read) > 1000
    path = tmp_path / "not.txt.zst"
    path.write_bytes(b"this is no zstd at all")
    assert_error(lambda: list(text.read_lines(path)), path, "damaged or cut short")


def test_long_window(tmp_path):
    path = tmp_path / "a.txt.zst"
    params = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    content = b"".join(b"%d a line\n" % i for i in range(1_000_000))
    path.write_bytes(zstandard.ZstdCompressor(compression_params=params).compressobj().compress(b""))
    with open(path, "wb") as f, zstandard.ZstdCompressor(compression_params=params).stream_writer(f) as out:
        out.write(content)
    assert sum(1 for _ in text.read_lines(path)) == 1_000_000


# ---------------------------------------------------------------- aligned pairs


def test_pairs_in_any_column_order(tmp_path):
    rows = "".join(f"{en}\tx\t {ko} \n" for ko, en in PAIRS)
    for name, content in [
        ("a.tsv", f"en\tnote\t ko\n{rows}"),
        ("b.tsv.zst", f"번역문\tnote\t원문\n{rows}"),
        ("c.tsv.gz", f"en\t\tko\n{rows}"),
    ]:
        wrap = zstd_compress if name.endswith("zst") else gzip.compress if name.endswith("gz") else bytes
        (tmp_path / name).write_bytes(wrap(content.encode()))
        assert list(readers.read_pairs(tmp_path / name)) == PAIRS
    assert len(list(corpora.open_corpus(tmp_path, lang="ko"))) == 3 * len(PAIRS)  # a folder of three


def test_pairs_without_rows(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("ko\ten\n")
    assert_error(lambda: list(corpora.open_corpus(path)), path, "holds no sentence")
    path.write_text("ko\tfr\n안녕\tsalut\n")
    assert_error(lambda: list(corpora.open_corpus(path)), path, "row 1", "번역문 or en", "'fr'")
    path.write_bytes(b"")
    assert_error(lambda: list(corpora.open_corpus(path)), path, "the file is empty")


# ---------------------------------------------------------------- AI Hub

LAYOUTS = {
    "1_구어체(1)_200226": ["SID", "원문", "번역문"],
    "2_대화체": ["대분류", "소분류", "상황", "Set Nr.", "발화자", "원문", "번역문"],
    "3_문어체_뉴스(1)": [
        "ID",
        "날짜",
        "자동분류1",
        "자동분류2",
        "자동분류3",
        "URL",
        "언론사",
        "원문",
        "번역문",
    ],
    "4_문어체_한국문화": ["ID", "키워드", "원문", "번역문"],
    "5_문어체_조례": ["ID", "지자체", " 원문", "번역문 "],
    "6_문어체_지자체웹사이트": ["ID ", "지자체", "원문\n", "\t번역문"],
}


def write_workbook(path, header, pairs, first_id=1):
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(header)
    for i, (ko, en) in enumerate(pairs, first_id):
        row = {"원문": ko, "번역문": en, "SID": i, "ID": i, "Set Nr.": i}
        sheet.append([row.get(name.strip(), "…") for name in header])
    book.create_sheet("Sheet2").append(["not", "this", "one"])
    book.save(path)


@pytest.fixture
def aihub(tmp_path):
    folder = tmp_path / "aihub"
    folder.mkdir()
    for k, (name, header) in enumerate(LAYOUTS.items()):
        write_workbook(folder / f"{name}.xlsx", header, PAIRS[2 * k : 2 * k + 2])  # ids collide over files
    return folder


def test_aihub_all_layouts(aihub):
    (aihub / "~$1_구어체(1)_200226.xlsx").write_bytes(b"a spreadsheet program's lock file")
    skipped = SkipCounts()
    assert list(readers.read_aihub(aihub, skipped)) == PAIRS
    assert not skipped
    assert corpora.detect_format(aihub) == "aihub"
    assert [tag for _, tag in corpora.open_corpus(aihub)] == ["ko", "en"] * len(PAIRS)


def test_aihub_zipped(aihub):
    before = corpora.open_corpus(aihub, lang="ko")
    want = list(before)
    for path in list(aihub.glob("*.xlsx"))[::2]:
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            archive.write(path, "속/" + path.name)
            archive.writestr("__MACOSX/._" + path.name, b"")
        path.unlink()
    beside = sorted(p.name for p in aihub.iterdir())
    assert list(corpora.open_corpus(aihub, lang="ko")) == want
    assert sorted(p.name for p in aihub.iterdir()) == beside  # nothing is unpacked
    with zipfile.ZipFile(aihub / "7.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert_error(lambda: list(corpora.open_corpus(aihub)), "7.zip", "holds 0 workbooks")


def test_aihub_odd_rows(tmp_path):
    path = tmp_path / "1_구어체(2).xlsx"
    book = openpyxl.Workbook()
    for row in [
        ["SID", "원문", "번역문"],
        [1, "하나", "one"],
        ["x2", "둘", "two"],
        [3, "", "three"],
        [4, "넷", None],
        [None] * 3,
        [5, 5, 5.5],
        [6, "하나", "one"],
        [7.0, " 하나 ", "One"],
    ]:
        book.active.append(row)
    book.save(path)
    skipped = SkipCounts()
    assert list(readers.read_aihub(path, skipped)) == [
        ("하나", "one"),
        ("둘", "two"),
        ("5", "5.5"),
        ("하나", "One"),
    ]
    assert dict(skipped) == {
        "empty cell": 3,
        "kept, but its id is not a whole number": 1,
        "the pair occurred before": 1,
    }
    assert skipped.examples["empty cell"][0] == "1_구어체(2).xlsx row 4"


def test_aihub_faults(tmp_path):
    write_workbook(tmp_path / "a.xlsx", ["ID", "한국어", "영어"], PAIRS)
    assert_error(lambda: list(readers.read_aihub(tmp_path)), "a.xlsx, row 1", "원문", "'한국어'")
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04 broken")
    assert_error(lambda: list(readers.read_aihub(tmp_path)), "a.xlsx", "Download it again")
    openpyxl.Workbook().save(tmp_path / "a.xlsx")
    assert_error(lambda: list(readers.read_aihub(tmp_path)), "a.xlsx", "empty")
    assert_error(lambda: list(readers.read_aihub(tmp_path / "nowhere")), "nowhere", "no such file or folder")


# ---------------------------------------------------------------- the Pile


def document(sentence, subset="Pile-CC"):
    return json.dumps({"text": sentence, "meta": {"pile_set_name": subset}}).encode() + b"\n"


def test_pile_damaged_lines_are_counted(tmp_path):
    lines = [
        document("One is fine."),
        b'{"text": "cut',
        b"\n",
        b"null\n",
        b'{"text": 5}\n',
        b'{"meta": {}}\n',
        b'{"text": "\xff"}\n',
        b'{"text": "No meta is fine."}\n',
        b'{"text": "So is this.", "meta": null}\n',
        b'{"text": "Half \\ud83d a smile."}\n',
        b"\0\n",
    ]
    (tmp_path / "00.jsonl").write_bytes(b"".join(lines))
    corpus = corpora.open_corpus(tmp_path)
    assert [t for t, _ in corpus] == [
        "one is fine.",
        "no meta is fine.",
        "so is this.",
        "half \ufffd a smile.",
    ]
    assert dict(corpus.skipped) == {"not a document of the Pile": 4, "is not UTF-8": 1, "holds a NUL byte": 1}
    "".join(t for t, _ in corpus).encode()  # can be written


def test_pile_damaged_frame_in_the_middle(tmp_path):
    frames = [
        zstd_compress(b"".join(document(f"Sentence {i} of frame {k}.") for i in range(50))) for k in range(4)
    ]
    frames[1] = frames[1][:40] + b"\0\1\2\3" + frames[1][44:]
    (tmp_path / "00.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "01.jsonl.zst").write_bytes(frames[0][:-7])
    (tmp_path / "02.jsonl.zst").write_bytes(zstd_compress(document("The last file.")))
    skipped = SkipCounts()
    read = [t for t, _ in readers.read_pile(tmp_path, skipped=skipped)]
    after = [t for t in read if "frame 2" in t or "frame 3" in t]
    assert after == [f"Sentence {i} of frame {k}." for k in (2, 3) for i in range(50)]
    assert read[-1] == "The last file."
    places = skipped.examples["the compressed data is damaged or cut short"]
    assert [place.split()[0] for place in places] == ["00.jsonl.zst", "01.jsonl.zst"]


def test_pile_subsets_and_limit(tmp_path):
    lines = document("A b. C d. E f.", "Github") + document("G h. I j.", "FreeLaw")
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(lines))
    assert [t for t, _ in corpora.open_corpus(tmp_path, subsets=["FreeLaw"])] == ["g h.", "i j."]
    assert [t for t, _ in corpora.open_corpus(tmp_path, limit=4)] == ["a b.", "c d.", "e f.", "g h."]
    assert_error(
        lambda: list(corpora.open_corpus(tmp_path, subsets=["Books3"])),
        "Books3",
        "Choose from FreeLaw, Github",
    )


# ---------------------------------------------------------------- tweets

TWEETS = "id,keyword,location,text,target\n1,,,fire &amp; smoke http://t.co/a,1\n2,a%20b,,fire & smoke! @x http://t.co/b,0\n"


def test_tweets(tmp_path):
    (tmp_path / "train.csv").write_text("\ufeff" + TWEETS.replace("\n", "\r\n"), encoding="utf8")
    (tmp_path / "test.csv").write_text('id,keyword,location,text\n0,,,"a ""quote"",\nand a line end"\n')
    (tmp_path / "sample_submission.csv").write_text("id,target\n0,0\n")
    frame = labeled.read_tweets(tmp_path)
    assert frame.text.tolist() == [
        "fire & smoke url",
        "fire & smoke! user url",
    ] and frame.target.tolist() == [1, 0]
    test = labeled.read_tweets(tmp_path / "test.csv")
    assert "target" not in test and test.text[0] == 'a "quote", and a line end'
    assert len(list(corpora.open_corpus(tmp_path))) == 3  # both files, not the submission


def test_conflicting_twins_are_found(tmp_path):
    header = "id,keyword,location,text,target\n"
    (tmp_path / "train.csv").write_text(
        header + "1,,,Fire! http://a.b,1\n2,,,fire 7,0\n3,,,rain,0\n4,,,RAIN,0\n"
    )
    frame = labeled.read_tweets(tmp_path)
    assert frame.group.tolist() == [0, 0, 1, 1] and labeled.label_conflicts(frame).id.tolist() == ["1", "2"]


@pytest.mark.parametrize(
    "content, parts",
    [
        (
            TWEETS.replace("target", "label").replace("text", "tweet"),
            ["row 1", "'text' is missing", "nlp-getting-started"],
        ),
        (TWEETS.replace(",1\n", ",\n"), ["row 2", "target is ''"]),
        (TWEETS.split("\n")[0] + "\n", ["no row"]),
        (TWEETS + "3,,,a,1,too,many,cells\n", ["not a CSV file"]),
        ("", ["the file is empty"]),
    ],
)
def test_tweet_faults(tmp_path, content, parts):
    (tmp_path / "train.csv").write_text(content)
    assert_error(lambda: labeled.read_tweets(tmp_path), tmp_path / "train.csv", *parts)


def test_tweets_in_another_encoding(tmp_path):
    (tmp_path / "train.csv").write_bytes(TWEETS.encode() + "3,,,caf\xe9,1\n".encode("latin1"))
    assert_error(lambda: labeled.read_tweets(tmp_path), "row 4", "is not UTF-8")


# ---------------------------------------------------------------- one door


def test_open_corpus_faults(tmp_path):
    assert_error(lambda: corpora.open_corpus(tmp_path), "holds no files that bertlab knows")
    (tmp_path / "a.docx").write_bytes(b"x")
    assert_error(
        lambda: corpora.open_corpus(tmp_path / "a.docx"), "a.docx", "holds no files that bertlab knows"
    )
    assert_error(lambda: corpora.open_corpus("nowhere"), "nowhere", "default or messages")
    (tmp_path / "a.txt").write_text("hello there\n")
    assert_error(
        lambda: corpora.open_corpus(tmp_path / "a.txt", subsets=["x"]), "subsets is an option of the Pile"
    )
    assert_error(lambda: corpora.open_corpus("messages", lang="fr"), "Choose ko, en or both")
    (tmp_path / "a.txt").write_text("---\n***\n")
    assert_error(lambda: list(corpora.open_corpus(tmp_path / "a.txt")), "holds no sentence")


def test_fingerprint_knows_content_not_place(tmp_path):
    for folder, content in [("one", "hello"), ("two", "hello"), ("three", "hullo")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(content)
    one, two, three = (
        corpora.open_corpus(tmp_path / f / "a.txt").fingerprint for f in ["one", "two", "three"]
    )
    assert one == two != three
    assert corpora.open_corpus(tmp_path / "one" / "a.txt", limit=1).fingerprint != one


def test_messages_need_their_package(monkeypatch):
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    assert_error(lambda: corpora.open_corpus("messages"), "pip install jupyterlab-language-pack-ko-KR")


# ---------------------------------------------------------------- the embedded corpus


BUILD = """
from bertlab.data import docstrings
from bertlab.core.files import read_json
docstrings.LIBRARIES = {"python": "", "numpy": "numpy"}
docstrings._sources = lambda library, read=docstrings._sources: dict(list(read(library).items())[:60])
write, calls = docstrings._write_docstrings, []
docstrings._write_docstrings = lambda *args: (calls.append(1), write(*args))
n = sum(1 for _ in docstrings.docstrings())
print(len(calls), n, read_json(docstrings.build_docstring_corpus() / "manifest.json")["sha256"])
"""


def test_two_processes_build_once_and_alike(tmp_path):
    def start(cache):
        env = os.environ | {"BERTLAB_CACHE": str(tmp_path / cache), "TQDM_DISABLE": "1"}
        return subprocess.Popen([sys.executable, "-c", BUILD], env=env, stdout=subprocess.PIPE, text=True)

    both = [start("shared"), start("shared")]
    built, counts, hashes = zip(*(p.communicate(timeout=120)[0].split() for p in both))
    assert sorted(built) == ["0", "1"] and len(set(counts)) == 1 and int(counts[0]) > 500
    again = start("another").communicate(timeout=120)[0].split()
    assert again == ["1", counts[0], hashes[0]]  # the same order, whichever worker was faster


def test_docstring_oddities():
    assert docstrings.find_docstrings("def f(): '''x'''\n\x00") == []
    assert docstrings.docstring_sentences("") == []
    table = (
        "Table.\n\n====  ====\na     b\n====  ====\n1     2\n====  ====\n\nThe table above is left out here."
    )
    assert [s for _, s in docstrings.docstring_sentences(table)] == ["The table above is left out here."]
    fields = ":param x: The first of the two numbers.\n:returns: The sum of the two numbers."
    assert len(docstrings.docstring_sentences(fields)) == 2


# ---------------------------------------------------------------- no silent loss, no silent guess


def test_paragraphs_are_split_into_sentences(tmp_path):
    sentences = [f"This is the sentence with the number {i}." for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(sentences[i : i + 20]) for i in (0, 20, 40)))
    corpus = corpora.open_corpus(tmp_path / "a.txt")
    assert [t for t, _ in corpus] == [s.lower() for s in sentences]
    assert corpus.skipped["nothing lost: a long line, split into sentences"] == 3


def test_quoted_tsv_is_read_as_csv_reads_it(tmp_path):
    rows = [("ko", "en"), ("가\t나", 'say "hi"'), ("두\n줄", "two\nlines"), ("다", "three"), ('"라"', "a, b")]
    with open(tmp_path / "a.tsv", "w", encoding="utf8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    assert list(readers.read_pairs(tmp_path / "a.tsv")) == rows[1:]
    with open(tmp_path / "b.tsv", "w", encoding="utf8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    assert list(readers.read_pairs(tmp_path / "b.tsv")) == rows[1:]


def test_quotation_marks_of_a_tsv_that_is_not_quoted(tmp_path):
    rows = [("ko", "en"), ("가", '"Yes," she said.'), ("나", '"No."'), ('"다', "three"), ("라", 'four"')]
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf8")
    assert list(readers.read_pairs(tmp_path / "a.tsv")) == rows[1:]
    rows = [
        ("en", "ko"),
        ('"open', "가"),
        ("between", "나"),
        ('close"', "다"),
    ]  # the quotes match by accident
    (tmp_path / "b.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf8")
    assert_error(lambda: list(readers.read_pairs(tmp_path / "b.tsv")), "b.tsv, row 2", "both ways")
    with open(tmp_path / "b.tsv", "w", encoding="utf8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(rows)
    assert list(readers.read_pairs(tmp_path / "b.tsv")) == [(ko, en) for en, ko in rows[1:]]


def test_rows_with_too_many_columns_are_counted(tmp_path):
    (tmp_path / "a.tsv").write_text("ko\ten\n가\tone\n나\ttwo\tthree\n다\tfour\t\n", encoding="utf8")
    corpus = corpora.open_corpus(tmp_path / "a.tsv", lang="en")
    assert [t for t, _ in corpus] == ["one", "four"] and dict(corpus.skipped) == {"too many columns": 1}
    (tmp_path / "b.tsv").write_text("ko\ten\ten\n가\tone\ttwo\n", encoding="utf8")
    assert_error(
        lambda: list(readers.read_pairs(tmp_path / "b.tsv")), "2 columns are called", "Keep one column"
    )


@pytest.mark.parametrize(
    "line, label",
    [
        ({"text": "A b.", "meta": "Books3"}, "Books3"),
        ({"text": "A b.", "meta": '{"pile_set_name": "Books3"}'}, "Books3"),
        ({"text": "A b.", "meta": "{'pile_set_name': 'Books3'}"}, "Books3"),
        ({"text": "A b.", "meta": {"pile_set_name": ["Books3", "CC"]}}, "Books3 + CC"),
        ({"text": "A b.", "meta": {"pile_set_name": {"a": 1}}}, ""),
        ({"text": "A b.", "meta": ["Books3"]}, "Books3"),
        ({"text": "A b.", "meta": 7}, ""),
        ({"text": "A b.", "meta": "half \ud83d"}, "half \ufffd"),
        ({"content": "A b.", "source": "Books3"}, "Books3"),
        ({"raw_content": "A b."}, ""),
        ({"text": None, "body": "A b."}, ""),
    ],
)
def test_lines_that_are_nearly_of_the_pile(tmp_path, line, label):
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    assert list(corpora.open_corpus(tmp_path)) == [("a b.", label)]


def test_the_reason_of_an_empty_corpus_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "no text"}\n')
    assert_error(lambda: list(corpora.open_corpus(tmp_path)), "text, content", "title")
    (tmp_path / "b.tsv").write_text("ko\ten\n가\n나\n", encoding="utf8")
    assert_error(
        lambda: list(corpora.open_corpus(tmp_path / "b.tsv")), "left out: 2 x too few columns (b.tsv row 2"
    )


# ---------------------------------------------------------------- workbooks


def test_the_first_visible_sheet_with_the_columns(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["원문", "번역문"])
    book.active.append(["숨은", "hidden"])
    book.active.sheet_state = "hidden"
    book.create_sheet("cover").append(["A title"])
    sheet = book.create_sheet("data")
    sheet["B3"], sheet["C3"], sheet["B4"], sheet["C4"] = "원문", "번역문", "보임", "visible"
    book.save(tmp_path / "a.xlsx")
    assert list(readers.read_aihub(tmp_path / "a.xlsx")) == [("보임", "visible")]


@pytest.mark.parametrize("cell", ["XFD1048576", "XFD200000", "ZZ1000000"])
def test_a_stray_cell_far_away(tmp_path, cell):
    write_workbook(tmp_path / "a.xlsx", LAYOUTS["4_문어체_한국문화"], PAIRS)
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    book.worksheets[0][cell] = " "
    book.save(tmp_path / "a.xlsx")
    assert_error(
        lambda: list(readers.read_aihub(tmp_path / "a.xlsx")), "a.xlsx", "does not fit into memory", "stray"
    )


def test_a_far_row_alone_is_read(tmp_path):
    write_workbook(tmp_path / "a.xlsx", LAYOUTS["4_문어체_한국문화"], PAIRS)
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    book.worksheets[0]["A50000"] = "x"
    book.save(tmp_path / "a.xlsx")
    assert list(readers.read_aihub(tmp_path / "a.xlsx")) == PAIRS


@pytest.fixture(scope="module")
def workbook_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "a.xlsx"
    write_workbook(path, LAYOUTS["4_문어체_한국문화"], PAIRS)
    return path.read_bytes()


@settings(max_examples=150, deadline=5000)
@given(data=st.data())
def test_damaged_workbooks_give_one_error(workbook_bytes, tmp_path_factory, data):
    content = bytearray(workbook_bytes)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path_factory.mktemp("damaged") / "a.xlsx"
    path.write_bytes(content)
    try:
        list(readers.read_aihub(path))
    except BertlabError as e:
        assert "\n" not in str(e) and "a.xlsx" in str(e)


@settings(max_examples=100, deadline=5000)
@given(data=st.data())
def test_damaged_xml_gives_one_error(workbook_bytes, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.xlsx"
    with zipfile.ZipFile(io.BytesIO(workbook_bytes)) as old, zipfile.ZipFile(path, "w") as new:
        names = old.namelist()
        victim = data.draw(st.sampled_from([n for n in names if n.startswith("xl/")]))
        for name in names:
            content = bytearray(old.read(name))
            if name == victim:
                at = data.draw(st.integers(0, len(content) - 1))
                content[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=12))
            new.writestr(name, bytes(content))
    try:
        list(readers.read_aihub(path))
    except BertlabError as e:
        assert "\n" not in str(e) and "a.xlsx" in str(e)


def test_a_panic_of_calamine_is_one_error(tmp_path, monkeypatch):
    class PanicException(BaseException):
        "As pyo3 raises it when Rust panics."

    def panic(path):
        raise PanicException("index out of bounds:\nthe len is 3")

    (tmp_path / "a.xlsx").write_bytes(b"x")
    monkeypatch.setattr(readers, "_open_workbook", panic)
    assert_error(
        lambda: list(readers.read_aihub(tmp_path / "a.xlsx")), "a.xlsx", "index out of bounds: the len"
    )


# ---------------------------------------------------------------- a path is a path, and its content counts


@pytest.mark.parametrize("name", ["messages", "default"])
def test_a_path_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    built_in = corpora.open_corpus(name)  # an empty folder is no corpus
    assert built_in.options["format"] == name and "no corpus" in built_in.notes[0]
    (tmp_path / name / "pairs.tsv").write_text("ko\ten\n가\tmine\n", encoding="utf8")
    for path in (name, f"./{name}", tmp_path / name, f"{name}/"):
        assert [t for t, _ in corpora.open_corpus(path, lang="en")] == ["mine"]
        assert list(Pairs(path)) == [("가", "mine")]
    assert "not the built-in corpus" in corpora.open_corpus(name).notes[0]


def test_fingerprints_see_every_byte_and_cost_once(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "big.txt"
    path.write_bytes(b"a line of text\n" * (70 * 2**20 // 15))
    os.utime(path, (1e9, 1e9))
    first = corpora.open_corpus(path).fingerprint
    hashed, hash_file = [], corpora._hash_file
    monkeypatch.setattr(corpora, "_hash_file", lambda path: hashed.append(path) or hash_file(path))
    assert corpora.open_corpus(path).fingerprint == first and not hashed
    with open(path, "r+b") as file:
        file.seek(33_333_333)
        file.write(b"#")
    assert corpora.open_corpus(path).fingerprint != first and hashed == [path]
    second = corpora.open_corpus(path).fingerprint
    with open(path, "r+b") as file:
        file.write(b"#")
    os.utime(path, (1e9, 1e9))
    third = corpora.open_corpus(path).fingerprint
    with open(path, "r+b") as file:
        file.write(b"*")
    os.utime(path, (1e9, 1e9))  # size, time and place are those of the one before
    assert len({second, third, corpora.open_corpus(path).fingerprint}) == 3
    for note in (tmp_path / "cache" / "fingerprints").glob("*.json"):
        note.write_text("[null]")
    assert corpora.open_corpus(path).fingerprint != first


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    assert_error(lambda: corpora.open_corpus(tmp_path / "a.txt"), "a pipe or a device")
    assert_error(lambda: next(text.read_lines(tmp_path / "a.txt")), "a pipe or a device")
    assert_error(lambda: labeled.read_labeled(tmp_path / "a.txt"), "a pipe or a device")


@pytest.mark.parametrize("wrap, ending", [(gzip.compress, ".gz"), (zstd_compress, ".zst")])
def test_compressed_bombs_are_streamed(tmp_path, wrap, ending):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(wrap(b"a" * 400_000_000))
    tracemalloc.start()
    assert_error(lambda: list(text.read_lines(path)), "longer than 32 MB")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 350 * 2**20


def test_long_lines_in_a_row_are_counted_one_by_one(tmp_path):
    long = b"x" * 40_000_000
    (tmp_path / "a.txt").write_bytes(b"one\n" + long + b"\n" + long + b"\nfour\n" + long)
    skipped = SkipCounts()
    assert list(text.read_lines(tmp_path / "a.txt", skipped)) == [(1, "one"), (4, "four")]
    assert dict(skipped) == {"the line is longer than 32 MB": 3}


def test_a_damaged_docstring_cache_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(docstrings, "LIBRARIES", {"python": ""})
    sources = docstrings._sources
    monkeypatch.setattr(docstrings, "_sources", lambda library: dict(list(sources(library).items())[:20]))
    folder = docstrings.build_docstring_corpus()
    whole, manifest = (folder / "sentences.tsv").read_bytes(), (folder / "manifest.json").read_text()
    half = b"".join(whole.splitlines(keepends=True)[::2])
    for sentences, note in [(half, manifest), (whole, "{}"), (whole, "null"), (whole, "{"), (b"", manifest)]:
        (folder / "sentences.tsv").write_bytes(sentences)
        (folder / "manifest.json").write_text(note)
        assert (docstrings.build_docstring_corpus() / "sentences.tsv").read_bytes() == whole
    (folder / "sentences.tsv").unlink()
    assert (docstrings.build_docstring_corpus() / "sentences.tsv").read_bytes() == whole


def test_print_where_korean_cannot_be_printed():
    code = "from bertlab.data.downloads import download_corpus; download_corpus('aihub')"
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0 and b"\\ud55c" in done.stdout and not done.stderr


def test_hub_files_with_other_columns(tmp_path):
    frame = pd.DataFrame({"a": ["x"]})
    for convert in (downloads._convert_pairs, downloads._convert_documents, downloads._convert_tweets):
        assert_error(lambda convert=convert: convert(frame, tmp_path), "has no column", "only a")
    for column, values, convert in (
        ("translation", ["no dict"], downloads._convert_pairs),
        ("translation", [{"ko": 1, "en": 2}], downloads._convert_pairs),
        ("translation", [], downloads._convert_pairs),
        ("text", [1, 2], downloads._convert_documents),
        ("text", [b"bytes"], downloads._convert_documents),
    ):
        broken = pd.DataFrame({column: values})
        assert_error(lambda b=broken, c=convert: c(b, tmp_path), f"{column!r}", "nothing that can be read")
    tweets = pd.DataFrame({"text": ["a fire"], "target": ["yes"]})
    assert_error(lambda: downloads._convert_tweets(tweets, tmp_path), "'target'", "nothing that can be read")
    assert not list(tmp_path.iterdir())  # what nobody can read is not kept


def test_what_hub_files_hold_beside_text_is_counted(tmp_path):
    pairs = [{"ko": "비가 온다.", "en": "It rains."}, {"ko": "하나", "en": None}, None]
    downloads._convert_pairs(pd.DataFrame({"translation": pairs}), tmp_path)
    skipped = SkipCounts()
    assert list(readers.read_pairs(tmp_path / "pairs.tsv.zst", skipped)) == [("비가 온다.", "It rains.")]
    assert skipped["empty cell"] == 2
    meta = [{"pile_set_name": "Github", "tags": np.array(["a"])}, ["a list"], {"pile_set_name": "FreeLaw"}]
    frame = pd.DataFrame({"text": ["It rains.", "It pours.", None], "meta": meta})
    downloads._convert_documents(frame, tmp_path)
    corpus = corpora.open_corpus(tmp_path / "documents.jsonl.zst")
    assert list(corpus) == [("it rains.", "Github"), ("it pours.", "")]
    assert corpus.skipped["not a document of the Pile"] == 1


def test_a_ragged_table_of_the_hub_is_not_shifted(tmp_path):
    (tmp_path / "train.csv").write_text("id,text,target\n1,a fire,1,9\n")  # pandas takes the id for an index
    assert_error(lambda: downloads._read_hub_table(tmp_path / "train.csv"), "train.csv, row 2", "4 cells")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written (No space left on device)"),
        (ConnectionError("nobody\n answers"), "(ConnectionError: nobody answers). Check the internet"),
        (
            ValueError("an odd file"),
            "(ValueError: an odd file). See https://huggingface.co/datasets/NeelNanda/",
        ),
    ],
)
def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch, error, says):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path))
    left = tmp_path / "corpora" / ".pile-10k.download"
    left.mkdir(parents=True)
    (left / "half.incomplete").write_bytes(b"of a process that was killed")

    def fail(**options):
        assert not left.exists()
        left.mkdir()
        raise error

    hub = SimpleNamespace(HfApi=lambda: SimpleNamespace(list_repo_files=lambda *args, **options: fail()))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert_error(lambda: downloads.download_corpus("pile-10k"), says)
    assert [path.name for path in left.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_the_package_needs_no_optional_reader(tmp_path):
    code = "import sys; sys.modules.update(zstandard=None, python_calamine=None)\n"
    code += "import bertlab.data.parallel, bertlab.data.labeled, bertlab.evaluation\n"
    code += "from bertlab.core.files import BertlabError\nfrom bertlab.data.text import read_lines\n"
    code += "try: list(read_lines('a.txt.zst'))\nexcept BertlabError as e: print(e)"
    (tmp_path / "a.txt.zst").write_bytes(zstd_compress(b"x"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "pip install zstandard" in done.stdout, done.stderr


# ---------------------------------------------------------------- nothing is left out in silence


def test_all_visible_sheets_are_read_and_the_others_counted(tmp_path):
    "Seen before: the second sheet of sentences was left out without a word."
    book = openpyxl.Workbook()
    sheets = [book.active, *(book.create_sheet(name) for name in ("more", "hidden", "goes on", "cover"))]
    for i, sheet in enumerate(sheets[:3]):
        for row in (["ID", "원문", "번역문"], [i, f"문장 {i}", f"sentence {i}"]):
            sheet.append(row)
    sheets[2].sheet_state = "hidden"
    for row in ([7, "문장", "no header"], [8, "문장", "here"]):
        sheets[3].append(row)
    book.save(tmp_path / "a.xlsx")
    skipped = SkipCounts()
    assert list(readers.read_aihub(tmp_path / "a.xlsx", skipped)) == [
        ("문장 0", "sentence 0"),
        ("문장 1", "sentence 1"),
    ]
    assert dict(skipped) == {"a hidden sheet of sentences": 1, "a sheet without the two columns": 1}


def test_the_header_again_is_no_pair(tmp_path):
    (tmp_path / "a.tsv").write_text("ko\ten\n가\tone\nko\ten\n나\ttwo\n", encoding="utf8")
    write_workbook(
        tmp_path / "b.xlsx", ["원문", "번역문"], [("가", "one"), ("원문", "번역문"), ("나", "two")]
    )
    for name, read in (("a.tsv", readers.read_pairs), ("b.xlsx", readers.read_aihub)):
        skipped = SkipCounts()
        assert list(read(tmp_path / name, skipped)) == [("가", "one"), ("나", "two")]
        assert dict(skipped) == {"the header again": 1}
    (tmp_path / "c.csv").write_text("id,text\n1,one\nid,text\n2,two\n")
    corpus = corpora.open_corpus(tmp_path / "c.csv")
    assert [t for t, _ in corpus] == ["one", "two"] and dict(corpus.skipped) == {"the header again": 1}


def test_pairs_that_are_left_out_are_counted(tmp_path):
    rows = ["ko\ten", "가\tone", "나", "다\ttwo\tthree", "same\tSame", "\u200b\tfour", "라\tfive"]
    (tmp_path / "a.tsv").write_text("\n".join(rows), encoding="utf8")
    pairs = Pairs(tmp_path / "a.tsv")
    for _ in range(2):
        assert list(pairs) == [("가", "one"), ("라", "five")] and sum(pairs.skipped.values()) == 4
    (tmp_path / "b.csv").write_text("ko,en\n가,one\n", encoding="utf8")
    assert_error(lambda: Pairs(tmp_path / "b.csv"), "b.csv", "a .tsv with the columns ko and en")


def test_long_texts_of_a_table_are_split_like_long_lines(tmp_path):
    "Seen before: all but the first sentences of a review were cut off by the length of the model."
    sentences = [f"This is the sentence with the number {c}." for c in "abcdefghij"]
    (tmp_path / "a.csv").write_text(f'text\n"{" ".join(sentences)}"\nShort. It stays one.\n')
    corpus = corpora.open_corpus(tmp_path / "a.csv")
    assert [t for t, _ in corpus] == [*map(str.lower, sentences), "short. it stays one."]
    assert dict(corpus.skipped) == {"nothing lost: a long line, split into sentences": 1}


@pytest.mark.parametrize(
    "content", ["a one\rb two\rc three", "a one\rb two\rc three\n", "a one\rb two\r\nc three"]
)
def test_lines_of_old_macs(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert list(readers.read_text(tmp_path / "a.txt")) == ["a one", "b two", "c three"]


def test_a_carriage_return_in_a_line_is_a_space(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rparts\r\nthree\r\nfour\r\n")
    assert [t for t, _ in corpora.open_corpus(tmp_path / "a.txt")] == ["one", "two parts", "three", "four"]


def test_names_in_capitals_and_what_else_lies_in_a_folder(tmp_path):
    "Seen before: B.TXT was not read, and nothing said so."
    for name, content in (("a.txt", b"one"), ("B.TXT", b"two"), ("c.Txt.GZ", gzip.compress(b"three"))):
        (tmp_path / name).write_bytes(content)
    corpus = corpora.open_corpus(tmp_path)
    assert sorted(t for t, _ in corpus) == ["one", "three", "two"] and corpus.notes == ()
    (tmp_path / "d.md").write_text("four")
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").write_text("x")
    corpus = corpora.open_corpus(tmp_path)
    assert [note.partition("not read: ")[2] for note in corpus.notes] == ["d.md, more"]
    assert corpus.describe()["notes"] == list(corpus.notes)


def test_the_first_key_that_holds_text(tmp_path):
    lines = [{"text": " ", "content": "One."}, {"text": "Two.", "content": "x"}, {"text": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [t for t, _ in readers.read_pile(tmp_path)] == ["One.", "Two."]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"},\n{"text": "b"}]', '{\n "text": "a"\n}', '{"text": "a"},\n']
)
def test_json_that_is_not_one_object_per_line(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    assert_error(lambda: list(readers.read_pile(tmp_path)), "Write one JSON object per line")


@pytest.mark.parametrize("size", [4, 9000])
def test_frames_that_zstd_skips(tmp_path, size):
    "As pzstd writes them between its frames."
    skippable = (0x184D2A50).to_bytes(4, "little") + size.to_bytes(4, "little") + b"x" * size
    (tmp_path / "a.txt.zst").write_bytes(
        skippable + zstd_compress(b"one\n") + skippable + zstd_compress(b"two")
    )
    assert list(readers.read_text(tmp_path / "a.txt.zst")) == ["one", "two"]


def test_a_pair_that_may_be_shifted_is_told(tmp_path):
    (tmp_path / "a.tsv").write_text("ko\ten\tnote\n가\tone\tx\n나\ttwo\n", encoding="utf8")
    skipped = SkipCounts()
    assert list(readers.read_pairs(tmp_path / "a.tsv", skipped)) == [("가", "one"), ("나", "two")]
    assert dict(skipped) == {"kept, but with fewer cells than the header": 1}


# ---------------------------------------------------------------- names and encodings of other machines


def test_columns_named_in_composed_and_decomposed_letters(tmp_path):
    "Seen before: there is no column 원문, only 원문."
    (tmp_path / "p.tsv").write_text(
        f"{unicodedata.normalize('NFD', '원문')}\t번역문\u200b\n안녕\thello\n", "utf8"
    )
    assert list(readers.read_pairs(tmp_path / "p.tsv")) == [("안녕", "hello")]


@pytest.mark.parametrize(
    "encoding, says",
    [("utf-16", "2 x holds a NUL byte"), ("cp949", "1 x is not UTF-8"), ("utf-16-be", "NUL")],
)
def test_documents_in_another_encoding_are_named_so(tmp_path, encoding, says):
    "Seen before: that no line was JSON, and the last began ''."
    (tmp_path / "a.jsonl").write_bytes('{"text": "안녕하세요"}\n'.encode(encoding))
    assert_error(
        lambda: list(corpora.open_corpus(tmp_path / "a.jsonl")), "a.jsonl", says, "ave the file as UTF-8"
    )


@pytest.mark.parametrize("name", ["a.parquet", "B.PARQUET", "c.ARROW"])
def test_tables_named_in_capitals(tmp_path, name):
    "Seen before: a .PARQUET was read as another format, and so was damaged."
    pytest.importorskip("pyarrow", reason="needs the extra hub")
    frame = pd.DataFrame({"text": ["one", "two"]})
    (frame.to_feather if "ARROW" in name else frame.to_parquet)(tmp_path / name)
    assert [text for text, _ in corpora.open_corpus(tmp_path / name)] == ["one", "two"]
