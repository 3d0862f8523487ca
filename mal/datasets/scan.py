"""Walk through a JSON object that is larger than memory: its top level by hand, its long arrays in windows.

A window is a run of whole array elements, about a megabyte of them. Its end is guessed (the last `},{` of
what was read) and proved by decoding it: a window starts between two elements, so a cut inside an element
leaves a bracket or a string open and can't be valid JSON. The decoder that reads the elements is the proof,
so each byte is parsed once.
"""

import re
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import msgspec

from mal.datasets.document import Document
from mal.errors import BoxFileError

WINDOW = 1 << 18  # bytes; fits the second-level cache together with the objects decoded from it

_T = TypeVar("_T")
_SPACE = b" \t\r\n"
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_TAIL = 1 << 14
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{},]', re.DOTALL)
_NON_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|NaN|-?Infinity', re.DOTALL)
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_BYTE = re.compile(r"\(byte (\d+)\)$")

_raw = msgspec.json.Decoder(msgspec.Raw)
_string = msgspec.json.Decoder(str)


class Window(NamedTuple, Generic[_T]):
    """A run of whole array elements."""

    start: int
    """Offset in the document of the first element."""
    stop: int
    """Offset just behind the last one."""
    elements: _T
    """What the decoder made of them."""


class Malformed(Exception):  # noqa: N818  it is a finding; whoever catches it knows whether it is an error
    """What a JSON decoder found, by kind.

    `at` is the byte it stumbled over, None for "the text ended too early"; `trailing` means that
    the value is complete and something follows it at `at`.
    """

    def __init__(self, error: Exception) -> None:
        text = str(error)
        found = _BYTE.search(text)
        self.trailing = "trailing characters" in text
        # Of trailing characters msgspec gives the place behind the first one.
        self.at = int(found[1]) - self.trailing if found else None
        self.detail = text.partition("malformed: ")[2].partition(" (byte")[0] or "unexpected text"
        super().__init__(text)


class Reader:
    """Reads a document from its start: the members of a top-level object in order, or the elements of a top-level list.

    Offsets are positions in the document.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._at = 3 if document.read(0, 3) == b"\xef\xbb\xbf" else 0
        self._first = True

    def next_key(self) -> str | None:
        """Key of the next member, None after the last; the value must then be consumed by `skip` or `windows`.

        Raises:
            BoxFileError: no key, colon, comma or closing brace where there must be one.
        """
        if self._first:
            self._expect(b"{")
        if self._peek() == b"}":
            self._at += 1
            self.finish()
            return None
        if not self._first:
            self._expect(b",")
            self._peek()
        self._first = False
        start = self._at
        if self._peek() != b'"':
            raise self._broken('a key in "quotes" or }')
        self.skip()
        try:
            key = _string.decode(self._document.read(start, self._at))
        except (msgspec.DecodeError, UnicodeDecodeError):
            key = ""  # unreadable text: none of our keys
        self._expect(b":")
        return key

    def finish(self) -> None:
        """Raise BoxFileError if anything follows."""
        if self._peek():
            raise self._broken("end of the file")

    def value_starts(self) -> str:
        """First character of the value that comes next, '' at the end of the document."""
        return self._peek().decode("latin-1")

    def skip(self) -> None:
        """Move behind the value that comes next."""
        self._peek()
        size = _TAIL
        while True:
            text = self._document.read(self._at, self._at + size)
            complete = self._at + len(text) >= self._document.size
            try:
                self._decode(text, _raw.decode)
            except Malformed as problem:
                if problem.trailing and problem.at is not None:
                    self._at += len(text[: problem.at].rstrip(_SPACE))
                    return
                # Near its end a text may only look wrong, because a number or an escape was cut.
                if problem.at is not None and (complete or problem.at < len(text) - 16):
                    raise self._error(self._at + problem.at, problem.detail) from None
            else:
                if complete:
                    self._at += len(text.rstrip(_SPACE))
                    return
            if complete:
                raise self._error(self._document.size, "the file ends too early")
            size *= 2

    def windows(self, decode: Callable[[bytes], _T]) -> Iterator[Window[_T]]:
        """Go through the array that comes next.

        Args:
            decode: takes the text of an array and returns its elements. It raises msgspec.DecodeError
                for malformed text and for nothing else: that is what proves a window's end.

        Raises:
            BoxFileError: malformed JSON, with the byte.
        """
        self._expect(b"[")
        if self._peek() == b"]":
            self._at += 1
            return
        size, ended = WINDOW, False
        while not ended:
            text = self._document.read(self._at, self._at + size)
            found = self._cut(text, decode)
            if found is None:
                size *= 2  # one element is longer than a window
                continue
            stop, following, elements, ended = found
            if not text[:stop].strip(_SPACE):  # two commas in a row, or one before the bracket
                self._peek()
                raise self._broken("a value")
            yield Window(self._at, self._at + stop, elements)
            self._at += following
            size = WINDOW

    def _cut(self, text: bytes, decode: Callable[[bytes], _T]) -> tuple[int, int, _T, bool] | None:
        """Elements at the start of `text`: where they stop, where the next start, what they are, last of the array?

        None: there is no whole element; more text is needed.
        """
        complete = self._at + len(text) >= self._document.size
        for stop, following in [(len(text), len(text))] if complete else _ends(text):
            whole = text[:stop]
            try:
                # At the end of the document nothing is cut: the array's own bracket is in the text.
                elements = self._decode(b"[" + whole if complete else b"[" + whole + b"]", decode)
            except Malformed as problem:
                if problem.trailing and problem.at is not None:  # the array ended in here
                    end = text.rindex(b"]", 0, problem.at - 1)
                    return end, end + 1, self._decode(b"[" + text[: end + 1], decode), True
                if problem.at is not None and problem.at <= stop:
                    raise self._error(self._at + problem.at - 1, problem.detail) from None
            else:
                if complete:
                    end = whole.rindex(b"]")
                    return end, end + 1, elements, True
                return stop, following, elements, False
        if complete:
            raise self._error(self._document.size, "the file ends too early")
        return None

    def _decode(self, text: bytes, decode: Callable[[bytes], _T]) -> _T:
        try:
            return decode(text)
        except RecursionError:
            raise self._error(self._at, "brackets nested too deeply") from None
        except msgspec.DecodeError as error:
            problem = Malformed(error)
            repaired = text if problem.trailing else repair(text)
            if repaired == text:
                raise problem from None
        try:
            return decode(repaired)
        except RecursionError:
            raise self._error(self._at, "brackets nested too deeply") from None
        except msgspec.DecodeError as error:
            raise Malformed(error) from None

    def _peek(self) -> bytes:
        while True:
            text = self._document.read(self._at, self._at + 256)
            rest = text.lstrip(_SPACE)
            self._at += len(text) - len(rest)
            if rest or not text:
                return rest[:1]

    def _expect(self, byte: bytes) -> None:
        if self._peek() != byte:
            raise self._broken(byte.decode())
        self._at += 1

    def _broken(self, expected: str) -> BoxFileError:
        found = self._document.read(self._at, self._at + 1)
        what = f"found {found.decode('latin-1')!r}" if found else "the file ends"
        return self._error(self._at, f"{what}, expected {expected}")

    def _error(self, at: int, detail: str) -> BoxFileError:
        return BoxFileError(
            f"{self._document.name}: broken JSON at byte {at} of {self._document.size}: {detail}; "
            "was it written completely?"
        )


def repair(text: bytes) -> bytes:
    """Replace what Python's json writes although it is no JSON by valid text of the same length, so that offsets stay.

    NaN, Infinity and -Infinity become empty lists (no field that we read may be a list of none), halves of
    surrogate pairs become U+FFFD. `text` must start outside of a string.

    >>> repair(b'[NaN, "NaN", -Infinity, "\\\\udc80"]')
    b'[[ ], "NaN", [       ], "\\\\ufffd"]'
    """
    if b"NaN" in text or b"Infinity" in text:
        text = _NON_FINITE.sub(_as_list, text)
    if b"\\ud" in text or b"\\uD" in text:
        text = _ESCAPE.sub(lambda match: b"\\ufffd" if match["half"] else match[0], text)
    return text


def _as_list(match: re.Match[bytes]) -> bytes:
    token = match[0]
    return token if token.startswith(b'"') else b"[" + b" " * (len(token) - 2) + b"]"


def _ends(text: bytes) -> Iterator[tuple[int, int]]:
    """Where elements may end and the next begin: a cheap guess, then the exact place."""
    guesses = list(_BETWEEN.finditer(text, max(0, len(text) - _TAIL)))
    if guesses:
        yield guesses[-1].start() + 1, guesses[-1].end()
    depth, last = 0, None
    for token in _TOKEN.finditer(text):
        byte = token[0]
        if byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
            if depth < 0:  # the array's own end; what follows it makes the decoder stop there
                yield token.end(), token.end()
                return
        elif byte == b"," and depth == 0:
            last = token
    if last:
        yield last.start(), last.end()
