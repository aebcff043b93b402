"""CSV files and data frames that name images."""

import csv
import warnings

import numpy as np
import pytest
from PIL import Image

import finetune_keras as ftk
from finetune_keras.data.labels import encode

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    (path / "sub").mkdir()
    for i in range(6):
        Image.new("RGB", (12, 12), (40 * i, 0, 0)).save(path / f"{i}.png")
    Image.new("RGB", (12, 12), (250, 0, 0)).save(path / "sub" / "ä b.png")
    return path


def written(folder, text, name="all.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class NAType:
    """As pandas.NA is: no comparison with it is true or false."""

    def __eq__(self, other):
        return self

    __hash__ = None

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


class Frame:
    """What a data frame of pandas or polars has in common."""

    def __init__(self, **columns):
        self._columns = {k: np.array(v, dtype=object) for k, v in columns.items()}
        self.columns = list(self._columns)

    def __getitem__(self, name):
        return self._columns[name]


def pixels(ds):
    """The red value and the label of each example."""
    return [(round(float(r)), int(y)) for x, ys in ds for r, y in zip(x[:, 0, 0, 0], ys)]  # noqa: B905


def test_a_csv_gives_each_image_its_label(folder):
    path = written(folder, "file;note\n".replace(";", ",") + "1.png,a\n3.png,b\n1.png,a\n")
    ds = ftk.data.table(path, y="note", size=8, shuffle=False)
    assert pixels(ds) == [(40, 0), (120, 1), (40, 0)]
    assert (ds.class_names, ds.counts.tolist()) == (["a", "b"], [2, 1])
    path = written(folder, b'\xef\xbb\xbfpath,label\r\n"sub/\xc3\xa4 b.png", b \r\n\r\n2.png,a\r\n')
    ds = ftk.data.table(path, size=8, shuffle=False)
    assert pixels(ds) == [(250, 1), (80, 0)]
    tsv = written(folder, "path\tlabel\nsub\\ä b.png\t7\n0.png\t10\n", "all.tsv")
    ds = ftk.data.table(tsv, size=8, shuffle=False)
    assert (pixels(ds), ds.class_names) == ([(250, 0), (0, 1)], ["7", "10"])


EXCEL = "path;label\r\nsub/ä b.png;Größe\r\n2.png;a\r\n"


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (EXCEL.encode(), {}),
        (EXCEL.encode("utf-8-sig"), {}),
        (EXCEL.encode("cp1252"), {"encoding": "cp1252"}),
        (EXCEL.encode("latin-1"), {"encoding": "latin-1"}),
        (("sep=;\r\n" + EXCEL).encode(), {}),
        (EXCEL.replace(";", "\t").encode("utf-16"), {}),  # "Unicode text"
        (EXCEL.replace(";", "|").encode("utf-16"), {"encoding": "utf-8"}),
        (EXCEL.replace(";", ",").encode("utf-32"), {}),
    ],
)
def test_tables_as_excel_writes_them(folder, data, options):
    ds = ftk.data.table(written(folder, data), size=8, shuffle=False, **options)
    assert (pixels(ds), ds.class_names) == ([(250, 0), (80, 1)], ["Größe", "a"])
    read = ftk.data.text(folder / "all.csv", x="path", shuffle=False, **options)
    assert read.class_names == ["Größe", "a"]


def test_json_lines_name_images_too(folder):
    path = written(folder, '{"file_name": "1.png", "label": "b"}\n{"label": "a"}\n', "a.jsonl")
    with pytest.raises(ValueError, match=r"the path in line 2 of 'a.jsonl' is missing"):
        ftk.data.table(path, size=8)
    path = written(folder, '{"file_name": "1.png", "label": "b"}\n', "a.jsonl")
    assert pixels(ftk.data.table(path, size=8)) == [(40, 0)]


def test_names_with_accents_are_one_however_they_are_written(folder, tmp_path):
    composed, parts = "\u00e4", "a\u0308"
    for name in (composed, parts):
        path = written(folder, f"path,label\nsub/{name} b.png,{name}\n0.png,{parts}\n")
        ds = ftk.data.table(path, size=8, shuffle=False)
        assert (pixels(ds), ds.class_names) == ([(250, 0), (0, 0)], [composed])
    assert encode([parts, "b"], [composed, "b"])[0].tolist() == [0, 1]
    for split, name in (("train", composed), ("val", parts)):
        for other in (name, "b"):
            (tmp_path / split / other).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / other / "0.png")
    both = ftk.data.images(tmp_path, size=8)
    assert both["train"].class_names == both["val"].class_names == ["b", composed]
    assert both["val"].counts.tolist() == [1, 1]
    (tmp_path / "train" / parts).mkdir()
    message = r"two folders of the name '\xe4', .* '\\xe4'.*: move the files into one"
    with pytest.raises(ValueError, match=message.replace("\\xe4", "\u00e4", 1)) as caught:
        ftk.data.images(tmp_path, size=8)
    assert "\n" not in str(caught.value)


def test_frames_and_columns(folder):
    for rows in (
        Frame(image=["0.png", "5.png"], target=["dog", "cat"]),
        {"image": ["0.png", "5.png"], "target": ["dog", "cat"]},
    ):
        ds = ftk.data.table(rows, folder=folder, size=8, shuffle=False)
        assert pixels(ds) == [(0, 1), (200, 0)]
    ds = ftk.data.table(rows, folder=folder, size=8, class_names=["fox", "dog", "cat"])
    assert ds.class_names == ["fox", "dog", "cat"]
    assert sorted(pixels(ds)) == [(0, 1), (200, 2)]
    train, val = ftk.data.table(
        {"path": [f"{i}.png" for i in range(6)], "label": list("aabbcc")}, folder=folder, size=8
    ).split(0.5)
    assert train.counts.tolist() == val.counts.tolist() == [1, 1, 1]


def test_a_file_that_is_listed_several_times_is_in_one_part(folder):
    paths = [f"{i}.png" for i in range(6)] * 2 + ["0.png"] * 5
    rows = {"path": paths, "label": ["ab"[int(p[0]) % 2] for p in paths]}
    train, val = ftk.data.table(rows, folder=folder, size=8).split(1 / 3)
    assert not set(train.file_paths) & set(val.file_paths)
    assert len(set(val.file_paths)) == 2
    assert sorted(train.file_paths + val.file_paths) == sorted(str(folder / p) for p in paths)


def test_numbers_to_predict(folder):
    rows = {"path": ["0.png", "1.png", "2.png"], "age": ["30", "41", "7"], "b": [0.5, 1, 2]}
    ages = ftk.data.table(rows, y="age", labels="numbers", folder=folder, size=8, shuffle=False)
    assert ages.labels.tolist() == [30, 41, 7]
    assert (ages.num_classes, ages.counts) == (None, None)
    assert ages.element_spec[1].dtype == tf.float32
    both = ftk.data.table(rows, y=["age", "b"], folder=folder, size=8, shuffle=False)
    assert both.labels.tolist() == [[30, 0.5], [41, 1], [7, 2]]
    assert both.element_spec[1].shape.as_list() == [None, 2]
    assert len(both.split(0.4)[1].labels) == 1


LABELS = {
    "text": (["b", "a", "b"], [1, 0, 1], ["a", "b"]),
    "numbers": ([2, 1, 10], [1, 0, 2], ["1", "2", "10"]),
    "text of numbers": (["2", "1", "10"], [1, 0, 2], ["1", "2", "10"]),
    "one number as two texts": (["1", "01", "2.0"], [0, 0, 1], ["1", "2"]),
    "from zero": ([0, 2, 1, 1], [0, 2, 1, 1], ["0", "1", "2"]),
    "booleans": ([True, False], [1, 0], ["False", "True"]),
    "bytes": ([b"x", b"y"], [0, 1], ["x", "y"]),
    "space": ([" x", "x "], [0, 0], ["x"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(case):
    values, expected, names = LABELS[case]
    labels, found = encode(values)
    assert (labels.tolist(), found, labels.dtype) == (expected, names, np.dtype("int32"))


def test_a_missing_label_is_no_class():
    for value in ("nan", "NaN", "<NA>", "NaT", "", "  ", None, float("nan"), np.datetime64("NaT")):
        with pytest.raises(ValueError, match="^1 labels are missing, the first in row 1"):
            encode(["x", value])
    for how in ({"class_names": ["nan", "x"]}, {"kind": "classes"}):
        assert encode(["x", "nan"], **how)[0].tolist() == [1, 0]
    with pytest.warns(UserWarning, match="class 'NA', first in row 1: if these labels are missing"):
        encode(["x", "NA"])
    frame = Frame(text=["a", "b", "c"], label=["x", NAType(), "y"])
    with pytest.warns(UserWarning, match="1 of 3 texts are left out: .row 1: no label"):
        assert ftk.data.text(frame).class_names == ["x", "y"]


def test_doubtful_labels_are_told():
    with pytest.warns(UserWarning, match="'Cat' and 'cat' differ only by upper and lower case"):
        encode(["cat", "Cat"])
    with pytest.warns(UserWarning, match="class 'dgo' has a single example, in row 9"):
        encode(["dog"] * 9 + ["dgo"] + ["cat"] * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(["dog"] * 9 + ["cat"] * 9)


BAD = {
    "missing file": (b"path,label\n9.png,a\n8.png,b\n", {}, "none of 2 files is there.*folder="),
    "parent": (b"path,label\n0.png,a\n../0.png,b\n", {}, r"line 3 of .* leads out .*'\.\./0.png'"),
    "hidden parent": (b"path,label\nsub/../../x/0.png,a\n", {}, "line 2 of .* leads out"),
    "windows parent": (b"path,label\n..\\x.png,a\n", {}, "line 2 of .* leads out"),
    "absolute": (b"path,label\n/etc/passwd,a\n", {}, "line 2 of .* leads out.*folder= that"),
    "no path": (b"path,label\n,a\n", {}, "path in line 2 of .* is missing"),
    "no label": (b"path,label\n0.png,a\n\n1.png,\n", {}, "1 labels are missing, .*line 4"),
    "two labels": (b"path,label\n0.png,a\n./0.png,b\n", {}, "two labels: one in line 2.*line 3"),
    "fewer": (b"path,label\n0.png,a\n1.png\n", {}, "line 3 of .*: 1 fields in place of 2"),
    "more": (b"path,label\n0.png,a,b\n", {}, "line 2 of .*: 3 fields in place of 2"),
    "quote": (b'path,label\n"0.png,a\n1.png,b\n2.png,c\n', {}, "line 2 of .*unexpected end"),
    "after a quote": (b'path,label\n0.png,"a"b\n', {}, "line 2 of .*expected after"),
    "line break": (b'path,label\n"0.png,a\n1.png",b\n', {}, "line 2 .* line break"),
    "zero byte": (b"path,label\n0.png,a\0b\n", {}, "line 2 of"),
    "not utf-8": (b"path,label\n0.png,a\n1.png,\xff\n", {}, "line 3 of.*give encoding='cp1252'"),
    "utf-16": ("path,label\n0.png,a\n".encode("utf-16-le"), {}, "give encoding='utf-16-le'"),
    "other encoding": (b"path,label\n", {"encoding": "utf-9"}, "there is no encoding 'utf-9'"),
    "no encoding": (b"path,label\n", {"encoding": None}, "there is no encoding None"),
    "empty": (b"", {}, "is empty"),
    "header only": (b"path,label\n", {}, "has no rows"),
    "one column": (b"path:label\n0.png:a\n", {}, "single column, 'path:label'.*delimiter="),
    "wrong delimiter": (b"path,label\n0.png,a\n", {"delimiter": ";"}, "single column.*than ';'"),
    "no delimiter": (b"path,label\n0.png,a\n", {"delimiter": ";;"}, "delimiter=';;': "),
    "decimal comma": (b"path;label\n0.png;0,5\n1.png;1\n", {}, "line 2 .* is '0,5': write numbers"),
    "nan": (b"path,label\n0.png,a\n1.png,nan\n", {}, "missing, .* line 3 .*'nan'.*leave these"),
    "twice": (b"path,label,label\n0.png,a,b\n", {}, "column 'label' twice"),
    "no column": (b"path,kind\n0.png,a\n", {}, "give y=, the name of a column; there are: 'path'"),
    "other column": (b"path,label\n0.png,a\n", {"y": "lable"}, "no column 'lable': did you mean"),
    "unknown class": (b"path,label\n0.png,dgo\n", {"class_names": ["cat", "dog"]},
                      "'dgo' in line 2 of .* is no class: did you mean 'dog'"),
    "no number": (b"path,label\n0.png,a\n", {"labels": "numbers"}, "line 2 .* is no number: 'a'"),
    "infinite": (b"path,label\n0.png,1e999\n", {"labels": "numbers"}, "line 2 of .* is 1e999"),
    "no columns": (b"path,label\n0.png,a\n", {"y": []}, "empty list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_name_the_line(folder, case):
    text, options, words = BAD[case]
    path = written(folder, text, "bad.csv")
    with pytest.raises(ValueError, match=words) as caught:
        ftk.data.table(path, size=8, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_table(tmp_path, folder):
    with pytest.raises(ValueError, match="there is no file"):
        ftk.data.table(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="is a folder.*data.images reads folders"):
        ftk.data.table(tmp_path)
    (tmp_path / "frame.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        ftk.data.table(tmp_path / "frame.pkl")
    with pytest.raises(TypeError, match="path of a CSV or JSONL file, a data frame.*given a list"):
        ftk.data.table([("0.png", "a")])
    with pytest.raises(ValueError, match="of different lengths: {'path': 2, 'label': 1}"):
        ftk.data.table({"path": ["0.png", "1.png"], "label": ["a"]}, folder=folder)
    with pytest.raises(ValueError, match="path in row 1 is missing or no text: 7"):
        ftk.data.table({"path": ["0.png", 7], "label": ["a", "b"]}, folder=folder)


def test_a_link_that_the_user_made_may_lead_out(tmp_path, folder):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").symlink_to(folder / "1.png")
    rows = {"path": ["1.png"], "label": ["a"]}
    assert pixels(ftk.data.table(rows, folder=tmp_path / "data", size=8)) == [(40, 0)]


def test_missing_files_are_left_out_and_named(folder):
    path = written(folder, "path,label\n0.png,a\ngone.png,b\n1.png,b\n")
    with pytest.warns(UserWarning, match="1 of 3 images cannot be read.* no such file: .*gone.png"):
        ds = ftk.data.table(path, size=8, shuffle=False)
    assert pixels(ds) == [(0, 0), (40, 1)]
    with pytest.raises(ValueError, match=r"gone.png' cannot be read: .*strict=True"):
        ftk.data.table(path, strict=True)


def test_it_reads_what_the_csv_module_writes(folder):
    path = folder / "made.csv"
    names = ['say "x"', "a, b", "ü", "c"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["path", "label"], *([f"{i}.png", name] for i, name in enumerate(names))]
        )
    ds = ftk.data.table(path, size=8, shuffle=False)
    assert ds.class_names == sorted(names)
    assert [ds.class_names[y] for _, y in pixels(ds)] == names


def test_ids_of_many_digits_are_not_rounded():
    ids = ["12345678901234568", "12345678901234567"]
    for values in (ids, [int(i) for i in ids]):
        labels, names = encode(values)
        assert (labels.tolist(), names) == ([1, 0], ids[::-1])
    for long in (10**400, "1" + "0" * 400):
        assert encode([long, 1])[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="the label in row 1 is no number"):
        encode([1, 10**400], kind="numbers")


def test_names_come_from_another_data_set(folder):
    x = np.zeros((4, 2))
    train = ftk.data.arrays(x, ["a", "b", "c", "a"])
    val = ftk.data.arrays(x[:2], ["c", "a"], class_names=train)
    assert (val.labels.tolist(), val.class_names) == ([2, 0], ["a", "b", "c"])
    path = written(folder, "path,label\n0.png,c\n1.png,b\n")
    assert ftk.data.table(path, size=8, class_names=train).labels.tolist() == [2, 1]
    assert ftk.data.text({"text": ["t"], "label": ["b"]}, class_names=train).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "class_names has 'a' twice"),
        ([], r"class_names is a list of names .*; given \[\]"),
        ("ab", "class_names is a list of names .*; given 'ab'"),
        (7, "class_names is a list of names .*; given int"),
        ([None], r"class_names is a list of names .*; given \[None\]"),
    ],
)
def test_names_that_are_none(folder, names, message):
    path = written(folder, "path,label\n0.png,a\n1.png,b\n")
    for call in (
        lambda: ftk.data.arrays(np.zeros((2, 2)), ["a", "b"], class_names=names),
        lambda: ftk.data.table(path, size=8, class_names=names),
        lambda: ftk.data.text({"text": ["t"], "label": ["a"]}, class_names=names),
    ):
        with pytest.raises(ValueError, match=message) as e:
            call()
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("seed", [-1, 0.2, True, "a"])
def test_a_seed_to_split_by_is_a_whole_number(seed):
    ds = ftk.data.arrays(np.zeros((4, 2)), ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match=f"seed is a whole number from 0 on; given {seed!r}"):
        ds.split(0.5, seed)
