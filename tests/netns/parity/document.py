"""The tables of docs/parity.md, made from the rows: `python -m tests.netns.parity.document` renews them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.netns.parity import rows, rows_ipv6
from tests.netns.parity.rows import ARRIVING, Outer, Row
from tests.netns.parity.rules import FIREWALLS, Rules

PARITY: Final = Path(__file__).parents[3] / "docs" / "parity.md"
BEGIN: Final = "<!-- begin: made by python -m tests.netns.parity.document -->\n"
END: Final = "<!-- end -->\n"
IPV6_SECTIONS: Final = {
    "IPv6: sizes": rows_ipv6.SIZES,
    "IPv6: offloads": rows_ipv6.OFFLOADS,
    "IPv6: checksums": rows_ipv6.CHECKSUMS,
    "IPv6: headers": rows_ipv6.HEADERS,
    "IPv6: fragments": rows_ipv6.FRAGMENTS,
    "IPv6: addresses": rows_ipv6.ADDRESSES,
    "IPv6: protocols": rows_ipv6.PROTOCOLS,
}
SECTIONS: Final = {
    "Sizes": rows.SIZES,
    "Offloads": rows.OFFLOADS,
    "Checksums": rows.CHECKSUMS,
    "IP headers": rows.HEADERS,
    "Fragments": rows.FRAGMENTS,
    "Frames": rows.FRAMES,
    "Addresses": rows.ADDRESSES,
    "Protocols": rows.PROTOCOLS,
    "What conntrack calls invalid": rows.INVALID,
}


def tables() -> str:
    """All rows as Markdown."""
    firewalls = _table("Firewalls", ("rules", "eBPF carries some of it on node"), map(_ruled, FIREWALLS))
    return "\n".join(
        [
            *_of_family(SECTIONS, "What comes over the wire", ARRIVING),
            firewalls,
            *_of_family(IPV6_SECTIONS, "IPv6: what comes over the wire", rows_ipv6.ARRIVING),
        ]
    )


def _of_family(sections: Mapping[str, Iterable[Row]], came: str, arriving: Iterable[Outer]) -> list[str]:
    heads = ("a container sends", "at its node", "at the other node")
    sent = [_table(title, heads, map(_sent, section)) for title, section in sections.items()]
    return [*sent, _table(came, ("VXLAN with", "at the receiver's node"), map(_came, arriving))]


def _table(title: str, heads: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    rule = "|".join("---" for _ in heads)
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"### {title}\n\n| {' | '.join(heads)} |\n|{rule}|\n{body}"


def _sent(row: Row) -> tuple[str, ...]:
    return row.name, by_whom(row.out), by_whom(row.into) or "nothing arrives"


def _came(row: Outer) -> tuple[str, ...]:
    return row.name, by_whom(row.into)


def _ruled(row: Rules) -> tuple[str, ...]:
    return row.name, row.carried.replace(" ", " and ") or "none"


def by_whom(words: str) -> str:
    """Reasons in the table's notation, for people."""
    return ", ".join(" or ".join(map(_word, word.split("|"))) for word in words.split())


def _word(reason: str) -> str:
    return "eBPF" if reason in ("encap", "decap") else f"kernel (`{reason}`)"


def renewed(text: str) -> str:
    """The document with its tables made anew. ValueError without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no begin and end marks")
    return before + BEGIN + "\n" + tables() + END + after


if __name__ == "__main__":
    PARITY.write_text(renewed(PARITY.read_text()))
