"""What is wrong with the files of a folder of images, before training on them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from finetune_keras._errors import nearest, whole
from finetune_keras.data import folders, formats

__all__ = ["KINDS", "Problem", "Scan", "scan"]

# From what stops training to what only may mislead.
KINDS = ("unreadable", "truncated", "leaked", "duplicate", "extension", "tiny", "ignored")
_OTHERS = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tga", ".psd", ".ico", ".raw")
_CUT = ("truncat", "premature end", "unexpected end", "end of file", "not enough data")


class Problem(NamedTuple):
    """One file and what is wrong with it.

    Attributes:
        kind: one of `KINDS`.
        path: of the file, below the folder that was scanned.
        why: in words.
        other: the file that it is the same as, if it is a duplicate or leaked.
    """

    kind: str
    path: str
    why: str
    other: str = ""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What `scan` found; prints as a table, and is false if there is nothing.

    Attributes:
        folder: that was scanned.
        files: how many images there are.
        problems: what was found, in the order of `KINDS`, then by path.
    """

    folder: str
    files: int
    problems: tuple[Problem, ...]

    def of(self, kind: str) -> tuple[Problem, ...]:
        """The problems of one kind.

        Raises:
            ValueError: if there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}: {nearest(str(kind), KINDS)}")
        return tuple(p for p in self.problems if p.kind == kind)

    def paths(self, *kinds: str) -> list[str]:
        """The files that have a problem of one of these kinds, each once; all kinds by default."""
        found = [p for kind in kinds or KINDS for p in self.of(kind)]
        return list(dict.fromkeys(os.path.join(self.folder, p.path) for p in found))

    def to_dict(self) -> dict[str, Any]:
        """The same of JSON's types."""
        counts = {kind: len(self.of(kind)) for kind in KINDS}
        problems = [p._asdict() for p in self.problems]
        return {
            "folder": self.folder, "files": self.files, "counts": counts, "problems": problems
        }  # fmt: skip

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __len__(self) -> int:
        return len(self.problems)

    def __str__(self) -> str:
        count = f"{len(self)} problem{'' if len(self) == 1 else 's'}" if self else "no problems"
        lines = [f"{self.folder!r}: {self.files:,} images, {count}"]
        wide = max((len(p.path) for p in self.problems), default=0)
        lines += [f"{p.kind:10}  {p.path:{min(wide, 60)}}  {p.why}" for p in self.problems]
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    __repr__ = __str__


def scan(folder: str | os.PathLike, *, tiny: int = 16) -> Scan:
    """Reads and decodes each image below a folder, in parallel, and tells what is wrong.

    | kind         | the file                                                                    |
    | ------------ | --------------------------------------------------------------------------- |
    | `unreadable` | is no image, or a broken one; training skips it                             |
    | `truncated`  | ends too early: a download that stopped                                     |
    | `leaked`     | has the same bytes as one in an earlier split: results would be too good    |
    | `duplicate`  | has the same bytes as one before it in the same split                       |
    | `extension`  | ends as another format is called; it is read all the same                   |
    | `tiny`       | has a side of fewer than ``tiny`` pixels                                    |
    | `ignored`    | is an image in a format that is not read, such as ``.heic``                 |

    One image is in memory for each thread.

    Args:
        folder: as of `images`: of classes, of splits, or of images.
        tiny: pixels.

    Returns:
        A `Scan`.

    Raises:
        ValueError: if there is no such folder.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.jpg").write_bytes(b"no image")
        >>> [(p.kind, p.path, p.why) for p in scan(folder)]
        [('unreadable', 'a.jpg', 'it is no image')]
    """
    base, tiny = folders.root(folder), whole("tiny", tiny, 0)
    splits = {path.name: i for i, path in enumerate(folders.splits(base).values())}
    paths = folders.files(base, formats.ENDINGS)
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)), "finetune_keras_scan") as threads:
        found = list(threads.map(_looked_at, paths))
    names = [os.path.relpath(path, base) for path in paths]
    problems = [
        Problem("ignored", os.path.relpath(path, base), "images of this format are not read")
        for path in folders.files(base, _OTHERS)
    ]
    first: dict[str, list[int]] = {}

    def split(i: int) -> int:
        return splits.get(Path(names[i]).parts[0], 0)

    for i in sorted(range(len(names)), key=lambda i: (split(i), names[i])):
        head, digest, cut, bad = found[i]
        if head.problem or bad:
            kind = "truncated" if cut else "unreadable"
            problems.append(Problem(kind, names[i], head.problem or bad))
        elif cut:
            problems.append(Problem("truncated", names[i], "its end is missing"))
        if not head.problem:
            problems += _of_header(names[i], head, tiny)
        before = first.setdefault(digest, []) if digest else []
        if before:
            earlier = [j for j in before if split(j) < split(i)]
            same = [j for j in before if split(j) == split(i)]
            problems += [_same("leaked", names, earlier[0], i)] if earlier else []
            problems += [_same("duplicate", names, same[0], i)] if same else []
        before.append(i)
    problems.sort(key=lambda p: (KINDS.index(p.kind), p.path))
    return Scan(str(base), len(paths), tuple(problems))


def _looked_at(path: str) -> tuple[formats.Header, str, bool, str]:
    """The header, a hash of the bytes, whether the end is missing, and why no pixels come out."""
    head = formats.header(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as e:
        return head, "", False, head.problem or formats.reason(e)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest() if data else ""
    if head.problem:
        return head, digest, _cut(data) or _says_so(head.problem), ""
    why = formats.unreadable(path, data, head)
    return head, digest, _cut(data) or _says_so(why), why


def _cut(data: bytes) -> bool:
    """Whether the mark at the end of a format is missing."""
    if data.startswith(b"\xff\xd8"):  # pixels hold neither mark
        return data.rfind(b"\xff\xd9") < max(data.rfind(b"\xff\xda"), 1)
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"GIF8"):
        return b";" not in data[-16:]
    return data.startswith(b"BM") and int.from_bytes(data[2:6], "little") > len(data)


def _says_so(why: str) -> bool:
    return any(word in why.lower() for word in _CUT)


def _of_header(name: str, head: formats.Header, tiny: int) -> list[Problem]:
    found = []
    ending = Path(name).suffix.lower()
    if formats.ENDINGS[ending] != head.format:
        found.append(Problem("extension", name, f"it ends in {ending}, and is {head.format}"))
    if min(head.width, head.height) < tiny:
        found.append(Problem("tiny", name, f"{head.width} x {head.height} pixels"))
    return found


def _same(kind: str, names: list[str], earlier: int, i: int) -> Problem:
    why = f"the same bytes as {names[earlier]!r}"
    if Path(names[earlier]).parent.name != Path(names[i]).parent.name:
        why += ", in another class"
    return Problem(kind, names[i], why, names[earlier])
