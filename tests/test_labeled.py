"""Labelled tables: read as they are written, checked row by row, split as asked."""

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import assert_error
from hypothesis import given, settings
from hypothesis import strategies as st

from bertlab.core.files import BertlabError
from bertlab.data import labeled
from bertlab.data.labeled import (
    LabeledTexts,
    positive_class,
    read_frame,
    read_labeled,
    read_texts,
    read_tweets,
    validate_labels,
)
from bertlab.evaluation import disaster_class, holdout, kfold, per_class_scores, write_submission


@pytest.fixture
def table(tmp_path):
    def write(content, name="t.csv"):
        (tmp_path / name).write_bytes(content.encode())
        return tmp_path / name

    return write


# ---------------------------------------------------------------- as it is written


@pytest.mark.parametrize(
    "labels",
    [["1.10", "1.1"], ["01", "1"], ["None", "NA"], ["1e3", "1000"], ["nan", "null"], ["True", "TRUE"]],
)
def test_labels_are_strings(table, labels):
    rows = [f"text {'abcd'[i]},{labels[i % 2]}" for i in range(4)]
    data = read_labeled(table("text,label\n" + "\n".join(rows) + "\n"))
    assert [data.names[i] for i in data.labels] == [labels[i % 2] for i in range(4)]


@pytest.mark.parametrize(
    "text", ["NA", "None", "nan", "1.10", "007", "1e5", "TRUE", "2020-01-01", "#N/A", "-"]
)
def test_texts_are_strings(table, text):
    assert read_labeled(table(f"text,label\n{text},a\nother,b\n")).texts == [text, "other"]
    assert read_labeled(table(f"text\tlabel\n{text}\ta\nother\tb\n", "t.tsv")).texts == [text, "other"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab,\t\"'\n 1.0N", min_size=1).filter(str.strip), st.sampled_from("xy")),
        min_size=2,
        max_size=8,
    )
)
@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_what_csv_writes_is_read(tmp_path_factory, suffix, delimiter, rows):
    path = tmp_path_factory.mktemp("csv") / f"t{suffix}"
    with open(path, "w", encoding="utf8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([("text", "label"), *rows])
    try:
        frame = read_frame(path)
    except BertlabError as e:  # lines that are rows of their own by accident: refused, not guessed
        assert suffix == ".tsv" and "both ways" in str(e)
        return
    assert list(zip(frame["text"], frame["label"])) == rows


@pytest.mark.parametrize(
    "content, parts",
    [
        ("text,label\nfine,pos\nbad film, boring plot,neg\n", ["row 3", "3 cells", "double quotes"]),
        ("text,label\nfine,pos\nbad film,neg,\n", ["row 3", "3 cells"]),
        ("text,label\nfine,pos\nbad film\n", ["row 3", "1 cells"]),
        ('text,label\n"two\nlines",pos\n\nbad, bad,neg\n', ["row 4", "3 cells"]),
        ('text,label\nfine,pos\n"open,neg\n', ["row 3", "the quotes do not match"]),
        ('text,label\nfine,pos\n"very" bad,neg\n', ["row 3", "the quotes do not match"]),
        ("text,label\n", ["there is no text"]),
        ("text,label,text\na,b,c\n", ["row 1", "two columns are called 'text'"]),
        ("text,label,target\na,b,c\n", ["row 1", "'label' and 'target'", "Keep one"]),
        ("text;label\na;b\n", ["row 1", "separated by semicolons. Separate the columns by commas"]),
        ('text,label\n"a\nb",x\n" ",y\n', ["row 3", "the text is empty"]),
        ("text,label\na,x\nb,\n", ["row 3", "the label is missing"]),
        ("text,label,group\na,x,1\nb,y,\n", ["row 3", "the group is empty"]),
        ("text,label\na,x\nb,x\n", ["all texts have one label"]),
    ],
)
def test_what_cannot_be_told_apart_is_refused(table, content, parts):
    path = table(content)
    assert_error(lambda: read_labeled(path), path, *parts)


def test_a_comma_at_the_end_of_every_row(table):
    data = read_labeled(table("text,label\ngood film,pos,\nbad film,neg,\n"))
    assert data.texts == ["good film", "bad film"] and data.names == ("neg", "pos")
    data = read_labeled(table("text,label,\ngood film,pos,\nbad film,neg,\n"))
    assert data.texts == ["good film", "bad film"]


def test_a_tsv_with_commas_and_quotation_marks(table):
    data = read_labeled(table('text\tlabel\nbad film, boring plot\tneg\n"Good," she said\tpos\n', "t.tsv"))
    assert data.texts == ["bad film, boring plot", '"Good," she said']


def test_other_line_ends_and_a_byte_order_mark(table):
    data = read_labeled(table('\ufefftext, label \r\na,x\r\n"b\r\nc",y\r\n'))
    assert data.texts == ["a", "b\nc"] and data.names == ("x", "y")


def test_no_such_table(tmp_path):
    assert_error(lambda: read_labeled(tmp_path / "no.csv"), "no.csv", "no such file")
    assert_error(lambda: read_labeled(tmp_path), "train.csv", "no such file")


def test_notes_name_what_decides(table):
    data = read_labeled(table("text,label,group\na,x,1\nb,y,1\nc,x,2\n"))
    assert any("'group'" in note for note in data.notes) and data.groups.tolist() == [0, 0, 1]
    data = read_labeled(table("text,label\na,Pos\nb,pos\nc,neg\n"))
    assert any("'Pos' and 'pos'" in note for note in data.notes)
    data = read_labeled(table("text,label\n!!!,x\n???,y\n"))  # without a letter, but not copies of each other
    assert data.groups.tolist() == [0, 1]


# ---------------------------------------------------------------- the tweets, saved by another program

KAGGLE = [
    ("1", "", "", "Forest fire &amp; smoke http://t.co/a", "1"),
    ("2", "ablaze", "Seoul, Korea", "so\npretty", "0"),
    ("3", "a%20b", "", "NA", "0"),
    ("4", "", "", "007", "1"),
]


@pytest.mark.parametrize("drop", [[], ["id"], ["location"], ["id", "location"]])
@pytest.mark.parametrize("index", [False, True])
def test_kaggle_file_saved_again(tmp_path, drop, index):
    frame = pd.DataFrame(KAGGLE, columns=["id", "keyword", "location", "text", "target"])
    frame.to_csv(tmp_path / "train.csv", index=False)
    want = read_labeled(tmp_path)
    again = frame.drop(columns=drop).astype({"target": float})
    again[again.columns[::-1]].to_csv(tmp_path / "again.csv", index=index)
    data = read_labeled(tmp_path / "again.csv")
    assert data.texts == want.texts and data.names == want.names == ("ordinary", "disaster")
    assert data.labels.tolist() == want.labels.tolist() == [1, 0, 0, 1]
    assert read_tweets(tmp_path / "again.csv").target.tolist() == [1, 0, 0, 1]


def test_rows_are_counted_as_a_spreadsheet_counts_them(table):
    path = table('id,keyword,location,text,target\n1,,,"two\nlines",1\n2,,,b,yes\n', "train.csv")
    assert_error(lambda: read_labeled(path), "row 3", "'yes'")


# ---------------------------------------------------------------- the positive class


@pytest.mark.parametrize(
    "names, positive",
    [
        ("fraud normal", "fraud"),
        ("normal fraud", "fraud"),
        ("disaster ordinary", "disaster"),
        ("0 1", "1"),
        ("0.0 1.0", "1.0"),
        ("-1 1", "1"),
        ("1 2", "2"),
        ("1.0 2.0", "2.0"),
        ("0 4", "4"),
        (".5 1.5", "1.5"),
        ("5 1e3", "1e3"),
        ("ham spam", "spam"),
        ("no yes", "yes"),
        ("neg pos", "pos"),
        ("False True", "True"),
        ("weird normal", "weird"),
        ("스팸 정상", "스팸"),
        ("irony non-irony", "irony"),
        ("not_english english", "english"),
        ("related unrelated", "related"),
    ],
)
def test_the_positive_class_is_chosen_by_name(names, positive):
    for order in (names.split(), names.split()[::-1]):
        assert positive_class(order, [5, 9])[0] == positive


def test_the_positive_class_is_said(table):
    rows = "".join(f"text {c},{'cats' if c < 'd' else 'dogs'}\n" for c in "abcdefgh")
    data = read_labeled(table("text,label\n" + rows))
    assert data.names == ("dogs", "cats") and data.positive == "cats"  # the rarer one
    assert any("'cats' (the rarer one)" in note for note in data.notes)
    data = read_labeled(table("text,label\n" + rows), positive="dogs")
    assert data.names == ("cats", "dogs") and any("as asked for" in note for note in data.notes)
    assert_error(
        lambda: read_labeled(table("text,label\n" + rows), positive="birds"), "'birds'", "cats, dogs"
    )
    assert read_labeled(table("text,label\na,x\nb,y\nc,z\n")).positive is None


def test_per_class_scores():
    labels, probabilities = np.array([0, 0, 0, 1]), np.eye(2)[[0, 0, 1, 1]]
    scores = per_class_scores(labels, probabilities, ["normal", "fraud"])
    assert scores.loc["normal", "f1"] == pytest.approx(0.8) and scores.loc["fraud", "f1"] == pytest.approx(
        2 / 3
    )
    assert scores["texts"].tolist() == [3, 1]


@pytest.mark.parametrize(
    "names, at",
    [(["disaster", "ordinary"], 0), (["0", "1"], 1), (["1.0", "0.0"], 0), (["else", "Disaster"], 1)],
)
def test_a_submission_goes_by_the_name_of_the_class(tmp_path, names, at):
    assert disaster_class(names) == at
    write_submission(tmp_path / "s.csv", ["7"], np.eye(2)[[at]], names)
    assert (tmp_path / "s.csv").read_text() == "id,target\n7,1\n"


@pytest.mark.parametrize(
    "names", [["ham", "spam"], ["a", "b"], ["1", "yes"], ["0", "1", "2"], ["1", "2"], ["fake", "real"]]
)
def test_a_submission_of_another_classifier_is_refused(tmp_path, names):
    assert_error(lambda: disaster_class(names), names[0], "Train a classifier")
    probabilities = np.full((1, 2), 0.5)
    if len(names) == 2:
        assert_error(lambda: write_submission(tmp_path / "s.csv", ["7"], probabilities, names), "say which")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("second, says", [("7", "the id occurred before"), (" ", "the id is missing")])
def test_a_submission_has_each_id_once(table, second, says):
    path = table(f"id,keyword,text\n7,,fire\n{second},,song\n8,,smoke\n", "test.csv")
    assert_error(lambda: read_tweets(path, need_ids=True), "test.csv, row 3", says)
    assert len(read_tweets(path)) == 3


# ---------------------------------------------------------------- splits


def made(counts, copies=1):
    labels = np.repeat(np.arange(len(counts)), counts)
    groups = np.arange(len(labels)) // copies
    names = tuple("abcdefgh"[: len(counts)])
    return LabeledTexts([f"text {i}" for i in range(len(labels))], labels, groups, names)


@pytest.mark.parametrize("counts", [[8, 8], [8, 8, 8], [40, 8], [1000, 100], [12, 13, 14, 15]])
@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.25, 0.3, 0.5, 0.75, 0.9, 0.01, 0.999])
def test_a_fraction_means_that_fraction_of_every_class(counts, fraction):
    train, valid = holdout(made(counts), fraction)
    assert sorted([*train, *valid]) == list(range(sum(counts)))
    labels = made(counts).labels
    for c, n in enumerate(counts):
        assert (labels[valid] == c).sum() == min(n - 1, max(1, round(fraction * n)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=2, max_size=60), st.floats(0.01, 0.99)
)
def test_groups_stay_together(rows, fraction):
    groups, labels = (np.array(column) for column in zip(*rows))
    names, labels = np.unique(labels, return_inverse=True)
    data = LabeledTexts(["t"] * len(rows), labels, groups, tuple(map(str, names)))
    try:
        train, valid = holdout(data, fraction)
    except BertlabError:
        return
    assert not set(groups[train]) & set(groups[valid])
    assert len(train) and len(valid) and len(train) + len(valid) == len(rows)


def test_eight_texts_per_class():
    data = made([8, 8])
    assert len(holdout(data, 0.25)[1]) == 4 and len(holdout(data)[1]) == 2
    assert all(len(valid) for _, valid in kfold(data, 8))
    assert_error(lambda: holdout(made([8, 1])), "smallest class has 1")
    assert_error(lambda: holdout(data, 1.0), "1.0")


def test_labels_of_a_dataframe():
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1.0, 0.0, 1.0]})
    assert validate_labels(frame).names == ("0", "1")
    texts = pd.Series(["half \ud83d", "b"], dtype=object)
    frame = pd.DataFrame({"text": texts, "label": ["x", "y"]})
    assert validate_labels(frame).texts[0] == "half \ufffd"


# ---------------------------------------------------------------- files of other programs


@pytest.mark.parametrize(
    "content, says",
    [
        ("id;text;label\n1;a, b;x\n2;c;y\n", "separated by semicolons"),
        ("sep=;\ntext;label\na;x\n", "separated by semicolons"),
        ("text|label\na, b|x\n", "separated by bars"),
        (
            "text\tlabel\na\tx\n",
            "separated by tabs. Separate the columns by commas, or let the name end in .tsv",
        ),
    ],
)
def test_columns_that_are_not_separated_by_commas(table, content, says):
    "Seen before: advice on quotes, since a semicolon did not count and a comma in a text did."
    assert_error(lambda: read_labeled(table(content)), "row 1", says)


def test_a_table_with_the_line_ends_of_old_macs(table):
    data = read_labeled(table('text,label\r"a, b",x\rc,y\r'))
    assert data.texts == ["a, b", "c"] and data.names == ("x", "y")


def test_a_positive_class_is_one_of_two(table):
    "Seen before: with three classes the wish was ignored."
    path = table("text,label\na,x\nb,y\nc,z\n")
    assert_error(lambda: read_labeled(path, "x"), "one of two, there are 3: x, y, z")


def test_labels_with_spaces_around_them_are_told(table):
    data = read_labeled(table("text,label\na, x\nb,x\nc,y\n"))
    assert data.names == ("x", "y") and "the spaces around some labels do not count" in data.notes


# ---------------------------------------------------------------- what the eye does not see


@pytest.mark.parametrize(
    "twin",
    [
        "yes\u200b",  # zero-width space
        "\ufeffyes",  # byte order mark, inside the file
        "y\u00ades",  # soft hyphen
        "\u202ayes\u202c",  # a direction and its end
        "yes\u2060",  # word joiner
        "yes\u3164",  # Hangul filler
    ],
)
def test_labels_that_look_alike_are_refused_with_their_row(table, twin):
    content = f"text,label\nfire,yes\nsong,no\nsmoke,{twin}\nbread,no\n"
    assert_error(lambda: read_labeled(table(content)), "row 4", ascii(twin), "'yes'", "Correct or remove")


@pytest.mark.parametrize(
    "one, other", [("긍정", unicodedata.normalize("NFD", "긍정")), ("not ok", "not\xa0ok")]
)
def test_labels_in_two_forms_of_unicode_or_with_two_kinds_of_spaces_are_refused(table, one, other):
    content = f"text,label\nfire,{one}\nsong,no\nsmoke,{other}\n"
    assert_error(lambda: read_labeled(table(content)), "row 4", "looks like")


def test_a_text_or_label_of_invisible_characters_is_empty(table):
    content = "text,label\nfire,yes\n\u200b,no\nsong,no\n"
    assert_error(lambda: read_labeled(table(content)), "row 3", "the text is empty")
    content = "text,label\nfire,yes\nsong,\u200b\nsong two,no\n"
    assert_error(lambda: read_labeled(table(content)), "row 3", "the label is missing")


@pytest.mark.parametrize("one, other", [("1", "1.0"), ("1E5", "100000"), ("1", "１"), ("TRUE", "True")])
def test_labels_that_mean_the_same_to_others_are_named(table, one, other):
    data = read_labeled(table(f"text,label\nfire,{one}\nsong,0\nsmoke,{other}\n"))
    assert len(data.names) == 3 and any("different classes" in note for note in data.notes)


def test_texts_with_two_labels_are_counted(table):
    rows = "fire,yes\nsong,no\nfire,no\nfire,no\nbread,no\nbread,yes\n"
    assert "texts with more than one label: 2" in read_labeled(table(f"text,label\n{rows}")).notes


def test_a_blank_group_is_empty(table):
    content = "text,label,group\nfire,yes,a\nsong,no, \n"
    assert_error(lambda: read_labeled(table(content)), "row 3", "the group is empty")


# ---------------------------------------------------------------- put together, exported, typed by hand


@pytest.mark.parametrize("name, mark", [("t.csv", ","), ("t.tsv", "\t")])
def test_the_header_again_is_no_text(table, name, mark):
    "Seen before: two files put together had a third class, label, with the text text."
    content = "text,label\nfire,yes\ntext, label\nsong,no\n".replace(",", mark)
    assert_error(lambda: read_labeled(table(content, name)), "row 3", "the header again", "Remove")


@pytest.mark.parametrize("content", ['text\na\n""\nb\n', '"text"\r\n"a"\r\n""\r\n"b"\r\n'])
def test_an_empty_cell_is_a_row_and_a_blank_line_is_none(table, content):
    "As Python's csv and pandas write a column with an empty text in it. Seen before: left out."
    assert read_frame(table(content))["text"].tolist() == ["a", "", "b"]
    assert read_frame(table(content.replace('""', "")))["text"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "content, name, says",
    [
        ('"text";"label"\n"a";"x"\n', "t.csv", "separated by semicolons"),
        ('"text"\t"label"\n"a"\t"x"\n', "t.csv", "separated by tabs"),
        ("text,label\na,x\n", "t.tsv", "separated by commas. Separate the columns by tabs, or let the name"),
    ],
)
def test_the_delimiter_shows_in_a_quoted_header_too(table, content, name, says):
    "Seen before: that the quotes do not match."
    assert_error(lambda: read_labeled(table(content, name)), "row 1", says)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_old_line_ends_with_a_newer_one_at_the_end(table, end, last):
    rows = [f"text {c},{'xy'[i % 2]}" for i, c in enumerate("abcd")]
    data = read_labeled(table(end.join(["text,label", *rows]) + (last or end)))
    assert data.texts == [row.split(",")[0] for row in rows]


def test_a_carriage_return_in_a_cell_is_named(table):
    content = "text,label\nfine\rfilm,x\nbad,y\n"
    assert_error(lambda: read_labeled(table(content)), "row 2", "carriage return", "into quotes")
    quoted = 'text,label\n"fine\rfilm",x\nbad,y\n'
    assert read_labeled(table(quoted)).texts == ["fine\rfilm", "bad"]


def test_labels_that_differ_in_quotes_are_named(table):
    data = read_labeled(table('text,label\na, "x"\nb,"x"\nc,y\n'))  # a space before a quote
    assert len(data.names) == 3 and any("different classes" in note for note in data.notes)


def test_a_table_with_a_keyword_says_that_it_is_read_as_tweets(table):
    "Seen before: the labels of somebody's own table became ordinary and disaster without a word."
    data = read_labeled(table("text,keyword,target\nbuy,a,0\nsell,b,1\n"))
    assert any("read as Kaggle's disaster tweets" in note for note in data.notes)
    path = table("text,keyword,target\nbuy,a,spam\nsell,b,ham\n")
    assert_error(lambda: read_labeled(path), "row 2", "call the column label")
    assert read_labeled(table("text,keyword,label\nbuy,a,0\nsell,b,1\n")).texts == ["buy", "sell"]


@pytest.mark.parametrize("value", [b"fire", ["fire", "smoke"], {"a": 1}, np.array([1, 2])])
@pytest.mark.parametrize("column", ["text", "label"])
def test_values_that_are_no_strings_are_refused(column, value):
    "Seen before: str() of them, such as b'fire'."
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]}, dtype=object)
    frame.at[1, column] = value
    assert_error(lambda: validate_labels(frame), "row 2", f"the {column} is no string")


def test_a_table_with_names_of_several_parts_is_refused():
    frame = pd.DataFrame([["a", "x"]], columns=pd.MultiIndex.from_tuples([("text", ""), ("label", "")]))
    assert_error(lambda: read_labeled(frame), "several parts")


def test_labels_beyond_the_whole_numbers_of_a_float_stay_apart():
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1e20, 2e20, 1e20]})
    assert validate_labels(frame).names == ("1e+20", "2e+20")


def test_near_copies_are_the_reason_that_is_said(table):
    rows = "".join(f"order {i} is {'late' if i % 2 else 'here'},{'xy'[i % 2]}\n" for i in range(16))
    data = read_labeled(table("text,label\n" + rows))
    assert_error(lambda: holdout(data, 0.25), "1 different texts", "with the same letters, count as one")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json.gz", "T.XLSX", "t.parquet"])
def test_other_formats_are_named(table, name):
    assert_error(
        lambda: read_labeled(table('{"text": "a, b", "label": "x"}\n', name)), name, "Save it as a .csv"
    )


# ---------------------------------------------------------------- rows that a quotation mark joins


@pytest.mark.parametrize(
    "content, name",
    [
        ('text,label\n"Great film,pos\nother,neg\nthe end",neg\nlast,pos\n', "t.csv"),
        ('text,label\n"Great film,pos\nthe end",neg\nlast,pos\n', "t.csv"),
        ('id,text,label\n1,"Great film,pos\n2,the end",neg\n3,last,pos\n', "t.csv"),
        ('label,text\npos,"Great film\nneg,the end"\nneg,last\n', "t.csv"),
        ('text\tlabel\n"Great film\tpos\nthe end"\tneg\nlast\tpos\nan end\n', "t.tsv"),
        ('id,keyword,location,text,target\n1,,,"Fire,1\n2,,,gone",0\n3,,,song,1\n', "t.csv"),
    ],
)
def test_rows_that_an_open_quote_joins_are_refused(table, content, name):
    "Seen before: rows 2 to 4 were one text with the label of the last, without a word."
    if name.endswith("tsv"):
        assert_error(lambda: read_labeled(table(content, name)), "row 4", "1 cells")  # not read as quoted
    else:
        assert_error(lambda: read_labeled(table(content, name)), "row 2", "one row or several?", "Double")


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"Great film, really\nI like it, too",pos\nlast,neg\n',
        'text,label\n"Rate these:\nfine film,pos\nbad film,neg\n",pos\nlast,neg\n',
        '"text","label"\n"Great film,pos\nthe end","neg"\n"last","pos"\n',  # nothing in doubt
        'text,label\n"I choose peace, love\nand nothing else",love\nlast,war\n',  # a comma of prose
    ],
)
def test_texts_of_several_lines_are_texts(table, content):
    assert len(read_labeled(table(content))) == 2


def test_a_letter_in_a_table_that_is_yet_to_be_labelled(table):
    "Seen before: refused as two rows, since its lines end in a comma and the label is empty."
    assert read_texts(str(table('text,label\n"Dear John,\nthank you",\nsong,\n'))) == [
        "Dear John,\nthank you",
        "song",
    ]


# ---------------------------------------------------------------- the same text in other signs


@pytest.mark.parametrize(
    "other",
    [unicodedata.normalize("NFD", "Café 언어 모델"), "ＣＡＦＥ\u0301 언어 모델", "café\u200b 언어\xa0모델"],
)
def test_copies_in_other_signs_are_of_one_group(table, other):
    "Seen before: what the model reads as the same text was on both sides of the split, and no conflict."
    data = read_labeled(table(f"text,label\nCafé 언어 모델,x\nsong,y\n{other},y\n"))
    assert data.groups.tolist() == [0, 1, 0] and "texts with more than one label: 1" in data.notes


@pytest.mark.parametrize(
    "one, other", [("1", "1 "), ("a b", "a\xa0b"), ("가", unicodedata.normalize("NFD", "가"))]
)
def test_groups_that_look_the_same_are_one(table, one, other):
    data = read_labeled(table(f"text,label,group\nfire,x,{one}\nsong,y,{other}\nsmoke,x,z\n"))
    assert data.groups.tolist() == [0, 0, 1]


def test_labels_that_differ_in_what_nobody_sees_or_in_a_sign(table):
    content = "text,label\nfire,😀\nsong,no\nsmoke,😀\ufe0f\n"
    assert_error(lambda: read_labeled(table(content)), "row 4", "looks like")
    data = read_labeled(table("text,label\nfire,-1\nsong,1\nsmoke,−1\n"))  # the sign for minus
    assert "'-1' and '−1' are different classes" in data.notes


# ---------------------------------------------------------------- tables that are in Python already


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", "Sparse[float]", "category"])
def test_whole_numbers_of_any_dtype_are_whole_numbers(dtype):
    labels = pd.Series([1.0, 0.0, 1.0]).astype(dtype)
    assert read_labeled(pd.DataFrame({"text": ["a", "b", "c"], "label": labels})).names == ("0", "1")


def test_arrow_columns_of_pandas():
    "Seen before: NotImplementedError, mod not implemented."
    pytest.importorskip("pyarrow", reason="needs the extra hub")
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1.5, 0.0, 1.5]})
    data = read_labeled(frame.astype({"text": "string[pyarrow]", "label": "float64[pyarrow]"}))
    assert data.names == ("0.0", "1.5") and data.texts == ["a", "b", "c"]


def test_a_group_of_lists_is_refused():
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "group": [[1], [2]]})
    assert_error(lambda: read_labeled(frame), "row 1: the group is no string")


@pytest.mark.parametrize("format", ["torch", "numpy", "pandas", "arrow"])
def test_data_sets_in_any_format(format):
    "Seen before: the classes tensor(0) and tensor(1), the first of them positive; or a traceback."
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    rows = {"text": ["a", "b", "c"], "label": [1, 0, 1], "id": [1, 2, 3]}
    data = read_labeled(datasets.Dataset.from_dict(rows).with_format(format))
    assert (data.texts, data.names, data.labels.tolist()) == (["a", "b", "c"], ("0", "1"), [1, 0, 1])
    named = datasets.Dataset.from_dict(rows).rename_column("text", "sentence").with_format(format)
    assert_error(lambda: read_labeled(named), "no column 'text' (it has 'sentence', 'label', 'id')")


def test_other_libraries_tables_are_named():
    arrow = pytest.importorskip("pyarrow", reason="needs the extra hub")
    table = arrow.table({"text": ["a", "b"], "label": ["x", "y"]})
    assert_error(lambda: read_labeled(table), "a pyarrow.Table is no table", "a DataFrame of pandas")


# ---------------------------------------------------------------- train and test mixed up


def test_a_submission_is_of_the_test_tweets(table):
    "Seen before: of the folder, and of train.csv, the tweets to train on were submitted."
    train = table("id,keyword,text,target\n1,,fire,1\n2,,song,0\n", "train.csv")
    test = table("id,keyword,text\n10,,smoke\n", "test.csv")
    assert read_tweets(test.parent, need_ids=True)["id"].tolist() == ["10"]
    assert read_tweets(test.parent)["id"].tolist() == ["1", "2"]
    assert_error(lambda: read_tweets(train, need_ids=True), "train.csv, row 1", "'target'", "test.csv")


def test_ids_that_pandas_wrote_as_floats(table):
    path = table(",id,keyword,text\n0,10.0,,smoke\n1,20.0,,bread\n", "test.csv")
    assert read_tweets(path, need_ids=True)["id"].tolist() == ["10", "20"]
    path = table("id,keyword,text\n10.0,,smoke\n10,,bread\n", "test.csv")
    assert_error(lambda: read_tweets(path, need_ids=True), "row 3: the id occurred before")


def test_what_is_built_in_may_be_named_by_a_path(monkeypatch):
    "Seen before: KeyError, also from `bertlab finetune --data word-order`."
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    monkeypatch.setitem(labeled.BUILT_IN_DATA, "word-order", lambda: frame)
    assert read_labeled(Path("word-order")).texts == read_labeled("word-order").texts == ["a", "b"]
