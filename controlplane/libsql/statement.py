"""What one SQL text is: its verb, whether it writes, where its placeholders are. *Core.*

The wheel begins a transaction only for texts that start with INSERT, UPDATE or DELETE, ignores all
but the first of several statements, and binds NULL for a missing parameter. So the text is read
here, by SQLite's lexical rules (https://www.sqlite.org/lang_expr.html#literal_values_constants_
and tokenize.c): quoted text and names, comments, words, placeholders.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from controlplane.libsql.errors import ProgrammingError


class Kind(Enum):
    """What a statement needs of the connection."""

    EMPTY = auto()
    """Only blanks and comments: nothing to run."""
    READ = auto()
    """Runs beside any writer."""
    CHANGE = auto()
    """Opens a write transaction, if none is open: INSERT, UPDATE, DELETE, REPLACE, SAVEPOINT."""
    DEFINE = auto()
    """Writes, but opens no transaction: CREATE, DROP, ALTER, VACUUM, ATTACH."""
    BEGIN_READ = auto()
    """BEGIN DEFERRED: a snapshot that only reads."""
    BEGIN_WRITE = auto()
    """Any other BEGIN."""
    END = auto()
    """COMMIT, END, ROLLBACK, RELEASE."""


ROW_CHANGES = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE"})

_KINDS = {
    **dict.fromkeys(("SELECT", "VALUES", "EXPLAIN", "PRAGMA"), Kind.READ),
    **dict.fromkeys((*ROW_CHANGES, "SAVEPOINT"), Kind.CHANGE),
    **dict.fromkeys(("COMMIT", "END", "ROLLBACK", "RELEASE"), Kind.END),
}
_MAIN_VERBS = ROW_CHANGES | {"SELECT", "VALUES"}

_TOKEN = re.compile(
    r"""
      (?P<blank> \s+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<quoted> '(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<named> \?\d+ | [:@$]\w+ )
    | (?P<mark> \? )
    | (?P<open> \( ) | (?P<close> \) ) | (?P<end> ; )
    | (?P<other> \d+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One analysed SQL text."""

    kind: Kind
    verb: str
    """The first word in upper case; for WITH, the verb that the common tables are for."""
    marks: tuple[int, ...]
    """Offsets of the ``?`` placeholders."""
    returning: bool
    """Whether the changed rows come back."""

    @property
    def changes_rows(self) -> bool:
        """Whether a number of affected rows means anything."""
        return self.verb in ROW_CHANGES


@lru_cache(maxsize=512)
def analyse(sql: str) -> Statement:
    """Read one SQL text; ProgrammingError if it holds two statements or a named placeholder."""
    words: list[str] = []
    verb, marks = "", []
    depth, ended, returning = 0, False, False
    for token in _TOKEN.finditer(sql):
        kind = token.lastgroup
        if kind == "blank":
            continue
        if ended and kind != "end":
            raise ProgrammingError(
                f"one statement at a time: {sql[token.start() :][:40]!r} follows the first"
            )
        if kind == "word":
            word = token.group().upper()
            if len(words) < 3:
                words.append(word)
            if not verb or (verb == "WITH" and depth == 0 and word in _MAIN_VERBS):
                verb = word
            returning = returning or word == "RETURNING"
        elif kind == "mark":
            marks.append(token.start())
        elif kind == "named":
            raise ProgrammingError(f"placeholder {token.group()!r} is not supported: use '?'")
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        elif kind == "end":
            # A trigger's body is statements between BEGIN and END.
            ended = not (verb == "CREATE" and "TRIGGER" in words)
    return Statement(_kind(verb, words), verb, tuple(marks), returning)


def _kind(verb: str, words: list[str]) -> Kind:
    if not verb:
        return Kind.EMPTY
    if verb == "BEGIN":
        return Kind.BEGIN_READ if "DEFERRED" in words else Kind.BEGIN_WRITE
    return _KINDS.get(verb, Kind.DEFINE)
