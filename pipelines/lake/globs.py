"""Patterns of keys: `2026/**/*.jpg`."""

from __future__ import annotations

import re
from typing import Final

_MAGIC: Final = re.compile(r"[*?\[{]")


def is_glob(text: str) -> bool:
    """Return whether a key is a pattern."""
    return _MAGIC.search(text) is not None


def literal_start(pattern: str) -> str:
    """Return the common beginning of all matches: the pattern up to its first special character."""
    found = _MAGIC.search(pattern)
    return pattern[: found.start()] if found else pattern


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression that fully matches the keys of a pattern.

    `*` and `?` stand for characters within one folder's name, `**` between slashes for any number of folders, none
    included, and at the end for everything below; `[a-c]` and `[!a-c]` for one character, `{jpg,png}` for alternatives.
    A bracket or brace without its closing one is literal.
    """
    parts: list[str] = []
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
        elif (
            character == "["
            and (found := re.compile(r"\[(!?)(\]?[^\]/]*)\]").match(pattern, at))
            and (one := _one_of(found[2], negated=bool(found[1])))
        ):
            parts.append(one)
            at = found.end() - 1
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


def _one_of(characters: str, *, negated: bool) -> str:
    """Return the expression for one of these characters, "" for an empty set such as `[z-a]` or `[]`."""
    if "--" in characters:  # Python reserves it for future use, and warns
        return ""
    # only a dash between two characters is special
    escaped = re.sub(r"([\\^\[\]&~|])", r"\\\1", characters)
    expression = f"(?!/)[{'^' if negated else ''}{escaped}]"
    try:
        re.compile(expression)
    except re.error:
        return ""
    return expression


def _closes(pattern: str, at: int) -> bool:
    depth = 0
    for character in pattern[at:]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return True
    return False
