"""SafeName: a name that cannot leave the root; and show_name() for showing foreign names to people.

A name from the wire is text until ``SafeName.parse`` has checked it; code that touches files takes only ``SafeName``. There
are two profiles: ``wire`` applies everywhere, ``portable`` also refuses what Windows and macOS cannot keep. A name is taken,
or refused with the rule it breaks, never rewritten. Names that differ only in case are compared by ``folded``; whether both
may exist is up to the store.

Spec: BP1-NAM.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import NameRefused

FILENAME_LENGTH_MAX = 1024
"""Bytes of a name in UTF-8 (BP1-NAM-003)."""

COMPONENT_LENGTH_MAX = 255
"""Bytes of a component in UTF-8 (BP1-NAM-003): what Linux file systems take."""

RESERVED = ".blockproto"
"""The component that is reserved for stores, at any place in a name (BP1-NAM-004)."""

IN_PROGRESS = ".blockproto-"
"""What the names of files begin with that a download has beside its destination until it is complete."""

SHOWN_LENGTH_MAX = 120
"""Characters of a name that an error text shows."""
ESCAPED_LENGTH_MAX = 2 * SHOWN_LENGTH_MAX
"""Characters of it when some of them had to be escaped: the reason behind it must fit too."""

assert COMPONENT_LENGTH_MAX < FILENAME_LENGTH_MAX

_PLAIN = re.compile(r"[ !-\-0-~][ -.0-~]{0,254}(?:/[ !-\-0-~][ -.0-~]{0,254})*").fullmatch
"""ASCII names no component of which begins with a dot: with the length in all they obey every rule of ``wire``."""

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that change the direction of what is shown behind them."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]").search
_SURROGATE = re.compile("[\ud800-\udfff]").search
_PORTABLE_FORBIDDEN = re.compile(r'[\\:*?"<>|]').search
_UNSHOWABLE = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff{_BIDI}\u2028\u2029\ufeff\ufff9-\ufffb]")
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default-ignorable code points: some file systems and programs do not see them when they compare names."""

_DOUBLE_ENDINGS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz", ".tar.lz4")
_ENDING_LENGTH_MAX = 32

_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\..*)?", re.I | re.S
).fullmatch


@dataclass(frozen=True, slots=True)
class SafeName:
    """A relative path that obeys every rule of the wire profile; no other can be made (but see ``join_plain``).

    Raises:
        NameRefused: with the rule it breaks.
    """

    text: str

    def __post_init__(self) -> None:
        if _PLAIN(self.text) is None or len(self.text) > FILENAME_LENGTH_MAX:
            _judge(self.text)

    @classmethod
    def parse(cls, text: str, *, portable: bool = False) -> SafeName:
        """Judge ``text``.

        Args:
            text: a name from the wire or from a user; bytes that were no UTF-8 stand in it as lone surrogates.
            portable: hold it against the portable profile too.

        Raises:
            NameRefused: with the rule it breaks and the profile the rule is of.

        Spec: BP1-NAM-004, 005.
        """
        name = cls(text)
        if portable:
            judge_portable(text)
        return name

    @property
    def components(self) -> tuple[str, ...]:
        """The parts between the slashes, at least one."""
        return tuple(self.text.split("/"))

    @property
    def folded(self) -> str:
        """The key under which names that differ only in case or normalisation are the same."""
        return fold(self.text)


def are_plain(components: Sequence[str]) -> bool:
    """Whether each of some components obeys every rule wherever it stands; False where that takes a closer look."""
    together = "/".join(components)
    return together.count("/") == len(components) - 1 and _PLAIN(together) is not None


def leaves_room(above: str) -> bool:
    """Whether any component may stand behind ``above``, a name and a slash, or nothing."""
    return len(above.encode()) + COMPONENT_LENGTH_MAX <= FILENAME_LENGTH_MAX


def join_plain(above: str, component: str) -> SafeName:
    """The name of a component behind ``above``: for thousands of names a second, which were judged together.

    Args:
        above: judged by ``SafeName`` and ``leaves_room``.
        component: judged by ``are_plain``.
    """
    name = object.__new__(SafeName)
    object.__setattr__(name, "text", above + component)
    return name


def _refuse(rule: str, why: str, name: str, profile: str = "wire") -> NameRefused:
    shown = _IGNORABLE.sub(_escape, show_name(name[:SHOWN_LENGTH_MAX]))  # what is refused is shown whole
    shown = cut_in_the_middle(shown, ESCAPED_LENGTH_MAX)
    shown += "…" if len(name) > SHOWN_LENGTH_MAX else ""
    return NameRefused(
        f"the name '{shown}' {why} (rule {rule}, profile {profile})", rule=rule, profile=profile
    )


def fold(text: str) -> str:
    """The key under which texts that differ only in case or normalisation are the same: Unicode's canonical caseless match.

    That is what the file systems of Windows and macOS take for one name, or a little more; what only looks alike
    (`²` and `2`, `①` and `1`) they keep apart.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


def _fold_widely(text: str) -> str:
    """As ``fold``, and what only looks alike is the same too: for a name that nothing may be taken for."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


def _judge(text: str) -> None:
    """Check the rules of the wire profile. Raises NameRefused."""
    if not text:
        raise _refuse("empty", "is empty", text)
    if _SURROGATE(text):
        raise _refuse("encoding", "is not valid UTF-8", text)
    length = len(text.encode())
    if length > FILENAME_LENGTH_MAX:
        raise _refuse("name-length", f"has {length} bytes; {FILENAME_LENGTH_MAX} are the most", text)
    if found := _CONTROL(text):
        raise _refuse("control-character", f"holds the control character U+{ord(found[0]):04X}", text)
    if text.startswith("/"):
        raise _refuse("absolute", "begins with a slash; names are relative to the folder", text)
    components = text.split("/")
    for component in components:
        if not component:
            raise _refuse(
                "empty-component", "has an empty component (two slashes together, or one at the end)", text
            )
        if component in {".", ".."}:
            raise _refuse("dot-component", f"has the component '{component}'", text)
        if len(component.encode()) > COMPONENT_LENGTH_MAX:
            raise _refuse("component-length", f"has a component over {COMPONENT_LENGTH_MAX} bytes", text)
    if any(map(is_reserved, components)):
        raise _refuse("reserved", f"has the component '{RESERVED}', which is a store's own", text)


def is_reserved(component: str) -> bool:
    """Whether some file system could take ``component`` for ``.blockproto``.

    That is in any case, normalisation or width, with characters that comparisons ignore, or with the trailing dots and
    spaces that some drop.
    """
    return _compared(component).rstrip(" .") == RESERVED


def is_hidden(name: str) -> bool:
    """Whether a component of ``name`` is reserved for stores, so that it is shown to no client (BP1-NAM-004)."""
    return _PLAIN(name) is None and any(map(is_reserved, name.split("/")))


def is_in_progress(component: str) -> bool:
    """Whether some file system could take ``component`` for a name that begins with ``.blockproto-``.

    Such files are neither sent nor fetched: they belong to unfinished downloads on this machine.
    """
    return _compared(component).startswith(IN_PROGRESS)


def may_hold_ours(text: str) -> bool:
    """Whether ``text``, many components one after another, may hold one that is reserved or in progress: a quick look."""
    return RESERVED[1:] in _compared(text)


def holds_in_progress(text: str) -> bool:
    """Whether a component of ``text`` is the name of something in progress."""
    return IN_PROGRESS[1:] in _compared(text) and any(map(is_in_progress, text.split("/")))


def refuse_in_progress(text: str) -> None:
    """Raise NameRefused if a component of ``text`` is the name of something in progress."""
    if holds_in_progress(text):
        raise _refuse(
            "in-progress", f"has a component that begins with '{IN_PROGRESS}': it belongs to a download", text
        )


def _compared(text: str) -> str:
    """``text`` as the most tolerant file system compares it."""
    return text.casefold() if text.isascii() else _fold_widely(_IGNORABLE.sub("", text))


def judge_portable(text: str) -> None:
    """Check the additional rules of the portable profile, except against existing names. Raises NameRefused.

    It refuses what Windows or macOS cannot keep, and nothing else. Lengths need no rule: 255 bytes of UTF-8 are never more
    than the 255 units of UTF-16 that NTFS takes.
    """
    if found := _PORTABLE_FORBIDDEN(text):
        raise _refuse("forbidden-character", f"holds {show_character(found[0])}", text, "portable")
    for component in text.split("/"):
        if component[-1] in " .":
            raise _refuse("edge", "has a component that ends with a space or dot", text, "portable")
        if _DEVICE(component):
            raise _refuse("device-name", "has a component that is a device on Windows", text, "portable")


def collision(component: str, other: str) -> NameRefused:
    """The error for a name ``component`` that differs from ``other`` only in case or normalisation."""
    why = f"differs only in case or normalisation from '{show_name(other)}', which is there"
    return _refuse("case-collision", why, component, "portable")


def show_character(character: str) -> str:
    """A character as an error text names it."""
    return f"'{character}'" if character.isascii() else f"U+{ord(character):04X}"


def cut_in_the_middle(text: str, length_max: int) -> str:
    """``text`` with ``…`` in the place of its middle where it has more than ``length_max`` characters.

    What tells names apart stands at either end, and what is wrong stands behind the name.
    """
    if len(text) <= length_max:
        return text
    head = length_max // 2
    return f"{text[:head]}…{text[len(text) - (length_max - head - 1) :]}"


def show_name(name: str) -> str:
    r"""``name`` as it can be shown in terminals, logs and pages: never an ESC, never a change of direction or line.

    Controls and bytes that are no UTF-8 become ``\x1b``, the others ``\u202e``. For people: two names can look the same.
    """
    return name if name.isascii() and name.isprintable() else _UNSHOWABLE.sub(_escape, name)


def show_lines(text: str) -> str:
    """Lines that may hold foreign text, of a traceback say, as a log takes them: indented, so none looks like a record."""
    return "\n".join(f"  {show_name(line)}" for line in text.split("\n"))


def _escape(found: re.Match[str]) -> str:
    point = ord(found[0])
    if 0xDC80 <= point <= 0xDCFF:
        point -= 0xDC00
    if point > 0xFFFF:
        return f"\\U{point:08x}"
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


NUMBERS_MAX = 1_000_000
"""The most files of one name beside each other."""


def free_entries(name: str, length_max: int = COMPONENT_LENGTH_MAX) -> Iterator[str]:
    """The names to try in turn when an entry of a folder is taken: "name (1).ext", "name (2).ext" and so on.

    Raises as ``numbered``.
    """
    return (numbered(name, number, length_max) for number in range(1, NUMBERS_MAX))


def numbered(name: str, number: int, length_max: int = COMPONENT_LENGTH_MAX) -> str:
    """The name of an entry of a folder with a number before its ending.

    What makes it longer than ``length_max`` bytes is cut from the end of its stem, never inside a character.

    Raises:
        NameRefused: there is no room for a number.
    """
    stem, ending = split_ending(name)
    tail = f" ({number}){ending}"
    length = length_max - len(tail.encode())
    if length < 1:
        raise NameRefused("the name is too long to keep both", rule="length")
    return stem.encode()[:length].decode(errors="ignore") + tail


def split_ending(name: str) -> tuple[str, str]:
    """Cut a file's name into stem and ending: ("a.b", ".txt"), (".bashrc", ""), ("x", ".tar.gz")."""
    for ending in _DOUBLE_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    at = name.rfind(".")
    ending = name[at:]
    plain = len(ending.encode()) <= _ENDING_LENGTH_MAX and " " not in ending and len(ending) > 1
    if at > 0 and plain and name[:at].strip("."):
        return name[:at], ending
    return name, ""
