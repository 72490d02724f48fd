"""Messages between processes: JSON over TCP, each preceded by its length."""

import json
import socket
import struct
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("!Q")
LARGEST = 1 << 30
"""Bytes of a message; more means that somebody else is talking."""


class Stranger(ValueError):  # noqa: N818
    """What came is no message."""


def encode(message: Message) -> bytes:
    """A message as it is sent."""
    content = json.dumps(message).encode()
    return _LENGTH.pack(len(content)) + content


def send(connection: socket.socket, message: Message) -> None:
    """Sends a message; raises OSError if the connection is gone."""
    connection.sendall(encode(message))


class Inbox:
    """What has arrived over one connection, cut into messages."""

    def __init__(self) -> None:
        self._content = bytearray()

    def read(self, connection: socket.socket) -> list[Message] | None:
        """The messages that are complete after reading what is there; None if the connection is at its end.

        Raises:
            Stranger: if it is not messages that come.
            OSError: if the connection is broken, or nothing comes before its timeout.
        """
        content = connection.recv(1 << 20)
        if not content:
            return None
        self._content += content
        messages = []
        while len(self._content) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._content)
            if length > LARGEST:
                raise Stranger("too long")
            end = _LENGTH.size + length
            if len(self._content) < end:
                break
            messages.append(_parse(bytes(self._content[_LENGTH.size : end])))
            del self._content[:end]
        return messages


def receive(connection: socket.socket) -> Message:
    """Waits for one message, as long as the connection's timeout allows.

    Raises:
        Stranger: if something else comes.
        OSError: if nothing comes, or the connection ends.
    """
    inbox = Inbox()
    while True:
        messages = inbox.read(connection)
        if messages is None:
            raise ConnectionResetError("the connection ended")
        if messages:
            return messages[0]


def _parse(content: bytes) -> Message:
    try:
        message = json.loads(content)
    except ValueError:
        raise Stranger("no JSON") from None
    if not isinstance(message, dict):
        raise Stranger("no message")
    return message
