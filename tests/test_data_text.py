"""Text with labels from tables, JSON lines and folders; what is wrong with it is named by line."""

import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from conftest import value

import finetune_keras as ftk
from finetune_keras import heads
from finetune_keras.data import records


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def contents(ds):
    return [(t.decode(), int(n)) for x, y in ds for t, n in zip(x.numpy(), y.numpy(), strict=True)]


WANTED = [("Hello, you", 0), ('Buy "now"\nor never', 1), ("Grüße", 0)]


def test_a_csv_file_with_commas_quotes_and_line_breaks_in_fields(tmp_path):
    path = write(
        tmp_path,
        "mail.csv",
        '\ufefftext,label\r\n"Hello, you",ham\r\n"Buy ""now""\nor never",spam\r\n\r\nGrüße,ham\r\n',
    )
    ds = ftk.data.text(path, shuffle=False)
    assert contents(ds) == WANTED
    assert ds.class_names == ["ham", "spam"]
    assert ds.counts.tolist() == [2, 1]
    assert [p.split(" of ")[0] for p in ds.file_paths] == ["line 2", "line 3", "line 6"]
    assert ds.element_spec[1].dtype == "int32"


def test_json_lines_data_frames_and_other_names_of_columns(tmp_path):
    rows = [{"body": t, "kind": "spam" if n else "ham", "other": 1} for t, n in WANTED]
    path = write(tmp_path, "mail.jsonl", "\n".join(json.dumps(r) for r in rows) + "\n\n")
    assert contents(ftk.data.text(path, x="body", y="kind", shuffle=False)) == WANTED
    columns = {k: [r[k] for r in rows] for k in ("body", "kind")}
    assert contents(ftk.data.text(columns, y="kind", shuffle=False)) == WANTED


def test_a_file_without_a_header_and_with_quotation_marks_that_are_text(tmp_path):
    path = write(tmp_path, "sms.tsv", 'ham\tHe said "yes\nspam\tWin, win\n')
    ds = ftk.data.text(path, columns=["label", "text"], shuffle=False)
    assert contents(ds) == [('He said "yes', 0), ("Win, win", 1)]
    bare = write(tmp_path, "SMSCollection", path.read_bytes())
    again = ftk.data.text(bare, columns=["label", "text"], delimiter="\t", shuffle=False)
    assert contents(again) == contents(ds)
    latin = write(tmp_path, "latin.csv", "text,label\nGrüße,a\nTschüß,b\n", "latin-1")
    assert contents(ftk.data.text(latin, encoding="latin-1", shuffle=False))[0] == ("Grüße", 0)


def test_folders_of_classes_and_of_splits(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for name in ("neg", "pos"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                write(tmp_path / split / name, f"{i}.txt", f"{name} {i}\n")
    parts = ftk.data.text(tmp_path)
    assert set(parts) == {"train", "test"}
    assert parts["train"].counts.tolist() == [4, 4]
    assert contents(parts["test"]) == [
        ("neg 0\n", 0),
        ("neg 1\n", 0),
        ("pos 0\n", 1),
        ("pos 1\n", 1),
    ]
    assert all(t.startswith(("neg", "pos")[n]) for t, n in contents(parts["train"]))
    one = ftk.data.text(tmp_path / "train")
    assert one.class_names == ["neg", "pos"]
    write(tmp_path / "train" / "pos", "4.txt", b"\xff\xfe")
    with pytest.warns(UserWarning, match="1 of 9 texts are left out: .*pos/4.txt.*not utf-8"):
        assert len(ftk.data.text(tmp_path / "train").labels) == 8


def test_columns_with_half_characters_lose_these_rows():
    rows = {"text": ["good", "\ud83d", "x", "fine"], "label": ["a", "a", "\udc00", "b"]}
    with pytest.warns(UserWarning, match="2 of 4 texts are left out: 'row 1: half a character"):
        assert contents(ftk.data.text(rows, shuffle=False)) == [("good", 0), ("fine", 1)]


BAD = "text,label\ngood,a\n,a\nno label,\none field\nfine,b\nto,many,fields\n"


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("bad.csv", BAD, ["line 3", "line 4", "line 5", "line 7"]),
        ("bad.csv", b"text,label\ngood,a\nGr\xfc\xdfe,a\nfine,b\n", ["line 3"]),
        (
            "bad.jsonl",
            b'{"text": "good", "label": "a"}\n{"text": \n[1]\n\n{"text": "\xfc", "label": "a"}\n'
            b'{"text": null, "label": "a"}\n{"label": "b"}\n{"text": "fine", "label": "b"}\n',
            ["line 2", "line 3", "line 5", "line 6", "line 7"],
        ),
        (
            "bad.jsonl",
            b'{"text": "good", "label": "a"}\n{"text": "\\ud83d", "label": "a"}\n'
            b'{"text": "x", "label": "\\udc00"}\n{"text": "x", "label": 1'
            + 5000 * b"0"
            + b'}\n{"text": "fine", "label": "b"}\n',
            ["line 2", "line 3", "line 4"],
        ),
    ],
)
def test_bad_rows_are_left_out_and_named_by_line(tmp_path, name, text, lines):
    path = write(tmp_path, name, text)
    with pytest.warns(UserWarning, match=f"^{len(lines)} of {len(lines) + 2} texts") as raised:
        ds = ftk.data.text(path, shuffle=False)
    assert contents(ds) == [("good", 0), ("fine", 1)]
    assert [s.split(" of ")[0] for s in ds.skipped] == lines
    assert all(line in str(raised[0].message) for line in lines)
    with pytest.raises(ValueError, match=f"^{lines[0]} of .*strict=True"):
        ftk.data.text(path, strict=True)


def test_a_stratified_split_and_an_order_by_seed_and_epoch():
    rows = {"text": [f"t{i}" for i in range(40)], "label": ["a"] * 30 + ["b"] * 10}
    train, val = ftk.data.text(rows, batch_size=4, seed=3).split(0.2)
    assert (train.counts.tolist(), val.counts.tolist()) == ([24, 8], [6, 2])
    assert not {t for t, _ in contents(train)} & {t for t, _ in contents(val)}
    train.order.epoch = 0
    first, second = contents(train), contents(train)
    assert first != second
    train.order.epoch = 0
    assert contents(train) == first
    assert contents(val) == contents(val)


def test_other_texts_have_another_digest():
    columns = {"text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}
    found = ftk.data.text(columns).digest()
    assert found == ftk.data.text(columns, batch_size=3, seed=5).digest()
    other = {**columns, "text": ["a", "b", "c", "e"]}
    assert found != ftk.data.text(other).digest()
    assert found != ftk.data.text({**columns, "label": ["x", "y", "y", "y"]}).digest()
    assert ftk.data.text(columns, preprocessor=lambda t: t).digest() is None


def test_threads_do_not_mix_up_the_limit_of_csv(tmp_path, monkeypatch):
    path = write(tmp_path, "long.csv", "text,label\n" + 200_000 * "x" + ",a\ny,b\n")
    before, limits, set_limit = csv.field_size_limit(), [], csv.field_size_limit

    def slow(*value):
        limits.extend(value)
        time.sleep(0.02)
        return set_limit(*value)

    monkeypatch.setattr(csv, "field_size_limit", slow)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: records.read(path).rows, range(4)))
    assert [len(rows[0]["text"]) for rows in found] == [200_000] * 4
    # One at a time raises it, and puts it back before the next one.
    assert limits == [limits[0], before] * (len(limits) // 2)
    assert set_limit() == before
    limits.clear()
    short = write(tmp_path, "short.csv", "text,label\nx,a\n")
    assert len(records.read(short).rows) == 1
    assert not limits  # nor is it touched where no file needs it


@pytest.mark.trains
def test_training_with_a_preprocessor_on_every_backend(tmp_path):
    """What works on strings runs in the pipeline, so that the model needs none of it."""
    import tensorflow as tf

    words = tf.constant(["good", "bad"])

    def count(strings):
        tokens = tf.strings.split(strings).to_tensor("")
        return tf.cast(tf.reduce_sum(tf.cast(tokens[..., None] == words, tf.int32), 1), "float32")

    texts = [f"{w} thing {i}" for i in range(16) for w in ("good", "bad")]
    rows = {"text": texts, "label": ["pos", "neg"] * 16}
    train, val = ftk.data.text(rows, preprocessor=count, batch_size=8).split(0.25)
    x, _ = next(iter(val))
    assert x.shape == (8, 2)
    inputs = keras.Input((2,))
    own = keras.Model(inputs, keras.layers.Dense(4, activation="tanh", name="d")(inputs))
    model = ftk.build(own, heads.Classification(class_names=val), learning_rate=0.1)
    model.fit(train, epochs=8, verbose=0)
    predicted = value(model(value(x), training=False)).argmax(1)
    np.testing.assert_array_equal(predicted, next(iter(val))[1].numpy())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: ftk.data.text(d / "none.csv"), ValueError, "there is no file"),
        (lambda d: ftk.data.text(d / "a.pkl"), ValueError, "a pickle, which can run any code"),
        (lambda d: ftk.data.text(d / "no.ending"), ValueError, "give delimiter= to read it"),
        (lambda d: ftk.data.text(d / "a.pkl", delimiter=","), ValueError, "is a pickle"),
        (lambda d: ftk.data.text(d / "m.csv", x="txt"), ValueError, "did you mean 'text'"),
        (lambda d: ftk.data.text(d / "m.csv", y="text2"), ValueError, "no column 'text2'"),
        (lambda d: ftk.data.text(d / "odd.csv"), ValueError, "give x=, the name of a column"),
        (lambda d: ftk.data.text(d / "quote.csv"), ValueError, "line 3 of .*quotes=False"),
        (lambda d: ftk.data.text(d / "twice.csv"), ValueError, "has the column 'text' twice"),
        (lambda d: ftk.data.text(d / "head.csv"), ValueError, "has no rows"),
        (lambda d: ftk.data.text(d / "all.csv"), ValueError, "none of 2 texts.*line 2 of"),
        (lambda d: ftk.data.text(d / "m.csv", encoding="utf-9"), ValueError, "no encoding 'utf-9'"),
        (
            lambda d: ftk.data.text(d / "m.csv", class_names=["a", "c"]),
            ValueError,
            "the label 'b' in line 3 of 'm.csv' is no class",
        ),
        (lambda d: ftk.data.text(d / "a.xlsx"), ValueError, "pandas.read_excel makes of it"),
        (lambda d: ftk.data.text({"text": "abc", "label": "xyz"}), TypeError, "'text' is no list"),
        (lambda d: ftk.data.text({"text": 3, "label": ["a"]}), TypeError, "'text' is no list"),
        (
            lambda d: ftk.data.text({"text": ["a", "\ud83d"], "label": [1, 2]}, strict=True),
            ValueError,
            "row 1: half a character",
        ),
        (lambda d: ftk.data.arrays(["a", "\ud83d"], [0, 1]), ValueError, "half a character"),
        (lambda d: ftk.data.arrays([1.0, 2.0], ["a", "\ud83d"]), ValueError, "label in row 1 has"),
        (lambda d: ftk.data.text({"text": ["a"], "label": []}), ValueError, "different lengths"),
        (lambda d: ftk.data.text(3), TypeError, "given a int"),
        (lambda d: ftk.data.text(d / "empty"), ValueError, "class"),
    ],
)
def test_bad_input_names_the_fix(tmp_path, call, error, message):
    write(tmp_path, "m.csv", "text,label\none,a\ntwo,b\n")
    write(tmp_path, "odd.csv", "p,q\none,a\n")
    write(tmp_path, "quote.csv", 'text,label\none,a\n"two,b\nthree,c\n')
    write(tmp_path, "twice.csv", "text,text\none,a\n")
    write(tmp_path, "head.csv", "text,label\n")
    write(tmp_path, "all.csv", "text,label\n,a\n,b\n")
    write(tmp_path, "a.pkl", "x")
    write(tmp_path, "a.xlsx", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message) as raised:
        call(tmp_path)
    assert "\n" not in str(raised.value)
