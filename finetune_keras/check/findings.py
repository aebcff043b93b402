"""What a check says: one line a finding, with its fix."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator

__all__ = ["Finding", "Findings"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is about to go wrong.

    Attributes:
        code: a short word for its kind, such as ``"labels"`` or ``"pixels"``.
        message: what is the case, and what would come of it.
        fix: what to do about it.
    """

    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}; fix: {self.fix}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `finetune_keras.check` found; false if that is nothing.

    Attributes:
        findings: one `Finding` each.
        examples: how many examples were looked at.

    Examples:
        >>> found = Findings((Finding("compile", "the model is not compiled", "compile it"),), 32)
        >>> len(found), [f.code for f in found]
        (1, ['compile'])
        >>> print(Findings((), 32))
        nothing found in 32 examples
    """

    findings: tuple[Finding, ...]
    examples: int

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return f"nothing found in {self.examples} examples"
        return "\n".join(map(str, self.findings))

    __repr__ = __str__

    def to_dict(self) -> dict:
        """The findings as plain Python values, ready for JSON."""
        return {
            "examples": self.examples,
            "findings": [dataclasses.asdict(f) for f in self.findings],
        }

    def _repr_html_(self) -> str:
        if not self.findings:
            return f"<p>{html.escape(str(self))}</p>"

        def row(finding: Finding) -> str:
            cells = (finding.code, finding.message, finding.fix)
            return "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>"

        head = "<tr><th>finding</th><th>what</th><th>fix</th></tr>"
        return (
            f"<table><caption>{self.examples} examples</caption><thead>{head}</thead>"
            f"<tbody>{''.join(map(row, self.findings))}</tbody></table>"
        )
