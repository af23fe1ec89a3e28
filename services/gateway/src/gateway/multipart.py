"""A multipart body taken apart as it arrives: bytes in, events out, no input or output of its own."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from darkroom.errors import PermanentError


@dataclass(frozen=True)
class PartBegins:
    """A form field; one with a file name (which may be empty) is a file."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartData:
    """The next bytes of the part that began last, perhaps a view of the chunk that they came in."""

    data: bytes | memoryview


@dataclass(frozen=True)
class PartEnds:
    """The part that began last is complete."""


Event = PartBegins | PartData | PartEnds


class MultipartReader:
    """Turns chunks of a `multipart/form-data` body into events; keeps no more than one chunk."""

    def __init__(self, content_type: str | None) -> None:
        """Raises `wrong-content-type` for any other kind of body."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise PermanentError.of(
                "wrong-content-type",
                "The request's content type cannot be read",
                415,
                f"The body is {content_type or 'of no stated type'}; it must be multipart/form-data with a boundary.",
                value=content_type,
                limit="multipart/form-data",
                remedy="Send the file as the form field `file`, as in `curl -F file=@photo.jpg`.",
            )
        self._events: list[Event] = []
        self._header = self._value = b""
        self._disposition = b""
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_ends,
                    "on_end": self._body_ends,
                },
            )
        except FormParserError as error:
            raise malformed(str(error)) from error

    def feed(self, chunk: bytes) -> list[Event]:
        """What the next chunk of the body brings; raises `malformed-upload`."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise malformed(str(error)) from error
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Call at the end of the body; raises `malformed-upload` when it came too early."""
        if not self._is_complete:
            raise malformed("the body ends before its last boundary")

    def _part_begins(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        # Latin-1 keeps every byte, so that the UTF-8 in names can be read afterwards.
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise malformed("a part has no Content-Disposition: form-data with a name")
        filename = options.get(b"filename")
        self._events.append(PartBegins(_text(options[b"name"]), None if filename is None else _text(filename)))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(memoryview(data)[start:end]))

    def _part_ends(self) -> None:
        self._events.append(PartEnds())

    def _body_ends(self) -> None:
        self._is_complete = True


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise malformed(f"the name {value[:100]!r} is not UTF-8") from error


def malformed(fault: str) -> PermanentError:
    """The body cannot be taken apart."""
    return PermanentError.of(
        "malformed-upload",
        "The multipart body is malformed",
        400,
        f"The multipart body cannot be read: {fault}.",
        remedy="Send the request again, whole; most HTTP clients build multipart bodies themselves.",
    )
