"""The Python examples of README and docs, as a reader would run them.

The blocks of a page run in its order, in one namespace and a folder of their own. A block that
cannot run here has a line above its fence that readers do not see, with the reason::

    <!-- not run: needs a module of TF Hub -->

What a block prints is compared with the text below it, but for digits, spaces and rules: numbers
differ by backend, version and processor.
"""

import ast
import operator
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_keras as ftk

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:^<!-- not run: (.+) -->\n)?^```python\n((?:.*\n)*?)```\n(?:\n```text\n((?:.*\n)*?)```$)?",
    re.M,
)
NAME = re.compile(r"\b(ftk|heads|select|schedules|recipes)\.(\w+(?:\.\w+)*)")
# No test downloads anything: the same network with random weights, and faster on small images.
OFFLINE = {
    'weights="imagenet"': "weights=None",
    "(224, 224, 3)": "(32, 32, 3)",
    'images("photos")': 'images("photos", size=32)',
}
LONG = (
    "docs/guides/cross-validation.md",
    "docs/guides/averaging.md",
    "docs/guides/fine-tune.md",
    "docs/guides/photographs.md",
    "docs/guides/presets.md",
    "docs/index.md",  # the first of README again
    "docs/quickstart.md",
)


def pages():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        name = path.relative_to(ROOT).as_posix()
        if "```python" in path.read_text(encoding="utf-8"):
            yield pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])


def blocks(page):
    """Why a block is not run, empty if it is; its code, below as many empty lines as in the page,
    so that errors name the right one; and what it prints, empty if the page does not say.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        above = text.count("\n", 0, found.start(2))
        yield found[1] or "", "\n" * above + found[2], found[3] or ""


def words(printed):
    """The words of what was printed, which are the same everywhere."""
    return re.sub(r"[\d.]+(e[-+]\d+)?", "0", re.sub(r"-{3,}", "", printed)).split()


def given(page):
    """What a page says that its reader has, in the present folder or by name."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (4, 32, 32, 3)).astype("float32"), np.arange(4) % 2
    if page in ("README.md", "docs/index.md"):
        return {"images_0_to_255": x, "integer_labels": y}
    if page == "docs/quickstart.md":
        data = ftk.data.arrays(x, y, batch_size=2)
        return {"train": data, "val": data}
    if page == "docs/guides/data.md":
        pictures("pictures")
        files = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)]
        rows = [f"{file},{file[:3]}" for file in files]
        Path("labels.csv").write_text("\n".join(["path,breed", *rows]))
        mail = [f"text {i},{'spam' if i % 2 else 'ham'}" for i in range(10)]
        Path("mail.csv").write_text("\n".join(["text,label", *mail]))
        frame = {"path": files, "label": [file[:3] for file in files]}
        return {"frame": frame, "x": x, "y": y}
    if page == "docs/guides/photographs.md":
        pictures("photos")
        keras.utils.save_img("new.jpg", x[0])
    return {}


def pictures(folder):
    """Ten of cats and ten of dogs, as far as names go."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (Path(folder) / name).mkdir(parents=True)
        for i in range(10):
            path = Path(folder) / name / f"{i}.jpg"
            keras.utils.save_img(path, rng.uniform(0, 255, (32, 32, 3)))


@pytest.mark.parametrize("page", pages())
@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__", **given(page)}
    for why, code, printed in blocks(page):
        if why:
            continue
        for online, offline in OFFLINE.items():
            code = code.replace(online, offline)
        capsys.readouterr()
        exec(compile(code, ROOT / page, "exec"), names)
        found = capsys.readouterr().out
        assert words(found) == words(printed) or not printed, found


@pytest.mark.parametrize("page", pages())
def test_what_is_not_run_is_python_and_uses_names_that_there_are(page):
    fences = (ROOT / page).read_text(encoding="utf-8").count("```python")
    assert len(list(blocks(page))) == fences
    for _, code, _ in blocks(page):
        ast.parse(code)
        for module, name in NAME.findall(code):
            operator.attrgetter(name)(ftk if module == "ftk" else getattr(ftk, module))
