"""Holds the contracts of `tests/contracts.py` on the active backend and prints `docs/works.md`.

    KERAS_BACKEND=tensorflow python scripts/contracts_table.py    # docs/works/tensorflow.json
    KERAS_BACKEND=jax python scripts/contracts_table.py
    KERAS_BACKEND=torch python scripts/contracts_table.py
    python scripts/contracts_table.py --page                      # docs/works.md

Names of networks after it hold those again and keep the rest of the file; ``heads`` means the
heads. Takes minutes for each backend. The page shows the backends that have a file.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKS = ROOT / "docs" / "works"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
SHOWN = {"yes": "yes", "no": "no", "fails": "**fails**", "": "-"}

__all__ = ["WORKS", "main", "page"]


def measure(only: list[str]) -> None:
    """Runs the battery and writes the backend's file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import contracts
    import head_contracts
    import keras
    import keras_hub
    from networks import NETWORKS

    backend = keras.backend.backend()
    path = WORKS / f"{backend}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found = {
        **found,
        "backend": backend,
        "keras": keras.__version__,
        "keras_hub": keras_hub.__version__,
        "version": _version(backend),
        "day": datetime.date.today().isoformat(),
        "command": f"KERAS_BACKEND={backend} python scripts/contracts_table.py",
        "means": {
            "networks": _means(contracts.CONTRACTS),
            "heads": _means(head_contracts.CONTRACTS),
        },
        "head_kinds": {c.name: c.kind for c in head_contracts.CASES.values()},
    }
    rows, heads = dict(found.get("networks", {})), dict(found.get("heads", {}))

    def write() -> None:
        kinds = {n.name: n.kind for n in NETWORKS.values() if n.name in rows}
        found["kinds"] = kinds
        found["networks"] = {name: rows[name] for name in kinds}
        found["heads"] = {case: heads[case] for case in head_contracts.CASES if case in heads}
        WORKS.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        partial.replace(path)

    for network in NETWORKS.values():
        if network.mark == "slow" or (only and network.name not in only):
            continue
        subject = contracts.trial(network)
        cells = {name: list(contracts.run(name, subject)) for name in contracts.CONTRACTS}
        rows[network.name] = cells
        write()
        print(network.name, {k: v for k, v in cells.items() if v[0] == "fails"} or "", flush=True)
    for case in head_contracts.CASES if not only or "heads" in only else ():
        heads[case] = {}
        for shape in head_contracts.SHAPES:
            subject = head_contracts.trial(case, shape)
            heads[case][shape] = {
                name: list(contracts.run(name, subject, head_contracts.CONTRACTS))
                for name in head_contracts.CONTRACTS
            }
        write()
        print(case, flush=True)


def _version(backend: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(backend)


def _means(contracts: dict) -> dict[str, str]:
    return {name: " ".join(fn.__doc__.split()) for name, fn in contracts.items()}


class _Notes:
    """Reasons, each numbered once."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def mark(self, why: str) -> str:
        number = self.reasons.setdefault(_reason(why), len(self.reasons) + 1)
        return f" [{number}](#reason-{number})"

    def lines(self) -> list[str]:
        return [f'{n}. <span id="reason-{n}"></span>{_escaped(r)}' for r, n in self.reasons.items()]


def _reason(why: str) -> str:
    """An error without what changes from one run to the next: numbers that Keras counts up, and
    the name of the backend.
    """
    why = re.sub(r"('[a-z_]+?)_\d+'", r"\1'", why)
    why = re.sub(r"backend is '(jax|torch)'", "backend is another", why)
    return why if len(why) <= 240 else why[:240].rsplit(" ", 1)[0] + " ..."


def _escaped(text: str) -> str:
    return re.sub(r"([*_|<>\[\]`])", r"\\\1", text)


def page() -> str:
    """`docs/works.md`, from the files of the backends."""
    paths = [WORKS / f"{b}.json" for b in BACKENDS]
    found = [json.loads(p.read_text()) for p in paths if p.exists()]
    notes = _Notes()
    first = found[0]
    lines = [
        "# What works with what",
        "",
        "Each cell is what a contract gave that was held against a network or a head, by the same "
        "code as the tests: *yes*; *no*, where this package says in one line that it does not do "
        "this with that network, and the number leads to that line; **fails**, which is a bug, "
        "known and still there; *-* where there is nothing to ask. Where backends differ, the cell "
        "says so.",
        "",
        "Networks are small or have random weights: this is about what works, not how well. Of "
        "`keras.applications` one of each family is held against all contracts, the rest against "
        "the first three (`make test-slow`).",
        "",
        "| backend | version | Keras | KerasHub | printed | by |",
        "|---|---|---|---|---|---|",
        *(
            f"| {BACKENDS[f['backend']]} | {f['version']} | {f['keras']} | {f['keras_hub']} "
            f"| {f['day']} | `{f['command']}` |"
            for f in found
        ),
        "",
        "## Backbones",
        "",
        *_meanings(first["means"]["networks"]),
    ]
    for kind in dict.fromkeys(first["kinds"].values()):
        columns = list(first["means"]["networks"])
        lines += ["", f"### {kind[0].upper() + kind[1:]}" if kind[0] != "k" else f"### `{kind}`"]
        lines += ["", f"| network | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name in (n for n, k in first["kinds"].items() if k == kind):
            cells = [
                _cell([(f["backend"], *f["networks"][name][c]) for f in found], notes)
                for c in columns
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Heads", "", *_meanings(first["means"]["heads"]), ""]
    lines += [
        "Each on features that are vectors, sequences and maps; where these differ, the cell says "
        "so.",
    ]
    titles = {"head": "Heads", "pooling": "Poolings", "normalization": "Normalisations"}
    for kind, title in titles.items():
        columns = list(first["means"]["heads"])
        lines += ["", f"### {title}", "", f"| head | {' | '.join(columns)} |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for case in (c for c, k in first["head_kinds"].items() if k == kind):
            shapes = {s: [] for s in first["heads"][case]}
            cells = []
            for c in columns:
                every = [(f["backend"], *f["heads"][case][s][c], s) for f in found for s in shapes]
                cells.append(_shaped(every, notes))
            lines.append(f"| `{case}` | {' | '.join(cells)} |")
    lines += ["", "## Reasons", "", *notes.lines()]
    return "\n".join(lines) + "\n"


def _meanings(means: dict[str, str]) -> list[str]:
    rows = [f"| {name} | {text} |" for name, text in means.items()]
    return ["| contract | holds if |", "|---|---|", *rows]


def _cell(given: list[tuple], notes: _Notes) -> str:
    """One cell of what each backend gave: one word where they agree."""
    texts = [SHOWN[state] + (notes.mark(why) if why else "") for _, state, why in given]
    if len(set(texts)) == 1:
        return texts[0]
    groups: dict[str, list[str]] = {}
    for (backend, *_), text in zip(given, texts, strict=True):
        groups.setdefault(text, []).append(BACKENDS[backend])
    return "; ".join(f"{text} ({', '.join(who)})" for text, who in groups.items())


def _shaped(given: list[tuple], notes: _Notes) -> str:
    shapes = dict.fromkeys(g[3] for g in given)
    cells = {s: _cell([g[:3] for g in given if g[3] == s], notes) for s in shapes}
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    groups: dict[str, list[str]] = {}
    for shape, text in cells.items():
        groups.setdefault(text, []).append(shape)
    return "; ".join(f"{', '.join(of)}: {text}" for text, of in groups.items())


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments == ["--page"]:
        (ROOT / "docs" / "works.md").write_text(page())
    else:
        measure(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
