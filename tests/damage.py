"""Damage of every kind to a file of state in JSON."""

import json
from collections.abc import Iterator
from typing import Any


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each kind of damage to a whole file, wrong types and missing fields of its first level among them."""
    yield from {
        "empty": b"",
        "blank": b" \n",
        "cut": good[: len(good) // 2],
        "one byte short": good.rstrip()[:-1],
        "not UTF-8": b"\xff\xfe" + good,
        "another encoding": good.decode().encode("utf-16"),
        "zeros": bytes(len(good)),
        "a list": b"[]",
        "a number": b"7",
        "a text": b'"x"',
        "null": b"null",
        "nested beyond reason": b"[" * 100_000,
        "a page of a proxy": b"<html>502 Bad Gateway</html>",
    }.items()
    yield from _of_fields(json.loads(good))


def _of_fields(tree: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name in tree:
        yield f"without {name}", json.dumps({key: value for key, value in tree.items() if key != name}).encode()
        for wrong in ([3], {"x": [1]}, True, float("nan")):
            yield f"{name} is {wrong}", json.dumps(tree | {name: wrong}).encode()
