"""Patterns of keys: `2026/**/*.jpg`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_MAGIC: Final = re.compile(r"[*?\[{]")
_SET: Final = re.compile(r"\[(!?)(\]?[^\]/]*)\]")


def is_glob(text: str) -> bool:
    """Return whether a key is a pattern."""
    return _MAGIC.search(text) is not None


def literal_start(pattern: str) -> str:
    """Return the common beginning of all matches: the pattern up to its first special character."""
    found = _MAGIC.search(pattern)
    return pattern[: found.start()] if found else pattern


def glob_to_regex(pattern: str, folder: str = "") -> re.Pattern[str]:
    """Return the regular expression that fully matches the keys of a pattern in a folder, whose name is literal.

    `*` and `?` stand for characters within one folder's name, `**` between slashes for any number of folders, none
    included, and at the end for everything below; `[a-c]` and `[!a-c]` for one character, `{jpg,png}` for alternatives.
    A bracket or brace without its closing one is literal.
    """
    parts = [re.escape(folder)]
    at, depth = 0, 0
    while at < len(pattern):
        character = pattern[at]
        folders = re.compile(r"\*\*(/|$)").match(pattern, at) if pattern[:at].endswith("/") or at == 0 else None
        if folders:
            parts.append("(?:.*/)?" if folders[1] else ".*")
            at = folders.end()
            continue
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif one := _one_of(pattern, at):
            parts.append(one.expression)
            at = one.end - 1
        elif character == "{" and _closes(pattern, at):
            parts.append("(?:")
            depth += 1
        elif character == "," and depth:
            parts.append("|")
        elif character == "}" and depth:
            parts.append(")")
            depth -= 1
        else:
            parts.append(re.escape(character))
        at += 1
    return re.compile("".join(parts), re.DOTALL)


class _OneOf(NamedTuple):
    """A set of characters in a pattern: its expression, and where it ends."""

    expression: str
    end: int


def _one_of(pattern: str, at: int) -> _OneOf | None:
    """Return the set of characters that begins at a place; None for none, or an empty one such as `[z-a]` or `[]`."""
    found = _SET.match(pattern, at)
    if found is None or "--" in found[2]:  # Python reserves "--" for future use, and warns
        return None
    # only a dash between two characters is special
    escaped = re.sub(r"([\\^\[\]&~|])", r"\\\1", found[2])
    expression = f"(?!/)[{'^' if found[1] else ''}{escaped}]"
    try:
        re.compile(expression)
    except re.error:
        return None
    return _OneOf(expression, found.end())


def _closes(pattern: str, at: int) -> bool:
    """Return whether the brace at a place has its closing one. Braces within sets of characters do not count."""
    depth = 0
    while at < len(pattern):
        depth += {"{": 1, "}": -1}.get(pattern[at], 0)
        if not depth:
            return True
        one = _one_of(pattern, at)
        at = one.end if one else at + 1
    return False
