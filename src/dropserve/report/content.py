"""What a page is made of. Text is plain: the template escapes it. Only ``Plot.svg`` is markup already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

from dropserve.manifest import CheckRecord

Tone = Literal["plain", "good", "warn", "bad"]


@dataclass(frozen=True)
class Fact:
    """One large figure at the top of the page."""

    figure: str
    words: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Answer:
    """A question of who decides, and what is known.

    Attributes:
        said: paragraphs, or the lines of a list.
        listed: whether it is a list.
    """

    question: str
    said: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Notice:
    """A paragraph that stands out."""

    kind: ClassVar[str] = "notice"
    title: str
    text: str
    tone: Tone = "warn"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the columns from ``numbers`` on are set flush right.

    Attributes:
        long: takes the whole width though it has few columns.
    """

    kind: ClassVar[str] = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 1
    caption: str = ""
    long: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing with its legend, pairs of style and words."""

    kind: ClassVar[str] = "plot"
    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Checks:
    """Export checks, what needs attention first."""

    kind: ClassVar[str] = "checks"
    records: tuple[CheckRecord, ...]


@dataclass(frozen=True)
class Example:
    """One row: a picture (a data URI) or its values, what was said, and whether that was right."""

    picture: str
    values: tuple[tuple[str, str], ...]
    said: str
    truth: str
    tone: Tone


@dataclass(frozen=True)
class Gallery:
    """Some examples under a title."""

    kind: ClassVar[str] = "gallery"
    title: str
    examples: tuple[Example, ...]


Block = Notice | Table | Plot | Checks | Gallery


@dataclass(frozen=True)
class Section:
    """A heading, what it means in words, then figures.

    Attributes:
        id: of the heading, for links.
        words: paragraphs.
        absent: why there is nothing to show; then there are no blocks.
    """

    id: str
    title: str
    words: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        warnings: shown before anything else.
    """

    title: str
    subtitle: str
    summary: tuple[Answer, ...]
    facts: tuple[Fact, ...]
    warnings: tuple[Notice, ...]
    sections: tuple[Section, ...]
    footer: str
