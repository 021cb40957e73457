"""`horizon client connect SERVER`, sent ahead. *Shell.*

A person waits for this command, and most of its time is Python importing what parses words and prints
answers. So the plain form's request goes to the agent first, with nothing imported, and the ordinary
command, which then starts while the agent works, finds its request sent (`take`). Any other form is
left to it alone.
"""

import _socket
import os

SOCKET = "/run/horizon/client.sock"
_sent: dict[tuple[str, bytes], int] = {}


def send_connect(words: list[str]) -> None:
    """Send the request of `client connect` + `words` if they are a name, and perhaps --json."""
    names = [word for word in words if word != "--json"]
    if len(names) != 1 or not names[0].replace("-", "").replace("_", "").isalnum():
        return
    if names[0].startswith("-") or not names[0].isascii():
        return
    path = os.environ.get("HORIZON_SOCKET", SOCKET)
    if path != os.path.abspath(path):
        return
    line = b'{"command": "connect", "arguments": {"server": "%s"}}\n' % names[0].encode()
    connection = _socket.socket(_socket.AF_UNIX)
    try:
        connection.connect(path)
        connection.sendall(line)
    except OSError:
        connection.close()
        return
    _sent[path, line] = connection.detach()


def take(path: str, line: bytes) -> int | None:
    """The file descriptor of the connection on which exactly this was sent already."""
    return _sent.pop((path, line), None)
