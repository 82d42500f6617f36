"""Random command lines, with and without nonsense."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nonsense import PRESETS, wrong_settings

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "tests" / "pipeline" / "golden" / "images.lock"
_LONG = "x" * 300
_ODD = ("", " ", ".", "..", "../..", "/", "a/b", "a\0b", "\ud800", "\x1b[31m", "a\nb", "数学", "%2e", "con", _LONG)


@dataclass(frozen=True)
class Argument:
    """What may stand in one place of a command line: words that are right, and words that are wrong."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    option: str = ""
    needed: bool = False


def _arguments(folder: Path) -> dict[str, tuple[Argument, ...]]:
    """Return what each command takes; `folder` has the files of `write_odd_files`."""
    files = ("", "/", str(folder), "absent", str(folder / "absent" / "x"), *map(str, folder.glob("odd*")))
    settings = tuple(
        f"{'.'.join(path)}={json.dumps(value)[:300]}"
        for path, value in wrong_settings("tiny")
        if not any(part.isdigit() for part in path)
    )
    names = (*_ODD, "-x")
    numbers = ("-1", "4294967296", "1.5", "", "three", "9" * 50, "9" * 5000, "0x1", "nan", "\0")
    config = (
        Argument(
            ("tiny", "smollm2", str(folder / "mine.toml")),
            (*_ODD, "nowhere", "../presets/tiny", *files[3:]),
            "--preset",
        ),
        Argument(("training.steps=3", "mixing.rate=0.2"), (*settings, *_ODD, "a..b=1", "seed"), "--set"),
        Argument(("0", "4294967295"), numbers, "--seed"),
    )
    # Its place is after those of other arguments. Not beside `--preset`: both would be nonsense.
    preset = Argument(("tiny", "smollm2", str(folder / "mine.toml")), (*_ODD, "nowhere", *files[3:]))
    base = (Argument(("champion",), ("nobody", ""), "--base"),)
    images = Argument((str(IMAGES),), files, "--images", needed=True)
    cluster = (Argument((str(folder / "cluster.toml"),), files, "--cluster"), images)
    crons = (
        "",
        "x",
        "* * * * *",
        "* * * * * * *",
        "61 0 0 * * *",
        "0 0 0 31 2 *",
        "0 0 0 */0 * *",
        "\0",
        "9" * 5000 + " 0 0 * * *",
    )
    cron = Argument(("0 0 3 * * MON",), crons, "--cron", needed=True)
    schedule = (Argument(("weekly",), names, needed=True),)
    stage = (Argument(("ngrpo_training",), ("training", *_ODD), needed=True),)
    run = (Argument(("0b5e8a1c-run",), names),)
    number = Argument(("1",), ("three", "", "1.5", "\0"), needed=True)
    model = Argument(("champion", "challenger", "3"), ("0", "./absent", *names), needed=True)
    registered = Argument(("ngrpo-tiny",), (*_ODD, "-x"), "--model")
    full = (str(folder), str(folder / "mine.toml"), str(folder / "mine.toml" / "x"), *_ODD[:4], "a\0b", "\ud800", _LONG)
    outputs = ("", ".", "/", str(folder), str(folder / "absent" / "p.yaml"), "a\0b", _LONG, str(folder / _LONG))
    targets = (
        "",
        " ",
        str(folder / "mine.toml"),
        "s3://",
        "s3://B/x",
        "s3://b/../x",
        "s3://b/a b",
        "s3://b/x#1",
        "a\0b",
        "\ud800",
    )
    return {
        "plan": (*config, *base),
        "run": (*config[1:], *base, preset),
        "rerun": (*config, *base, *stage),
        "evaluate": (*config, Argument(("champion", "3"), ("0", "./absent", *names), needed=True)),
        "deploy": (
            Argument((str(folder / "cluster.toml"),), files, "--cluster", needed=True),
            images,
            Argument(("champion", "3"), ("0", "./absent", *names), needed=True),
        ),
        "ui": (Argument(("5001",), ("-1", "0", "99999", "65536", "abc", "1.5", "", "9" * 5000), "--port"),),
        "compile": (*config, *cluster, Argument((str(folder / "p.yaml"),), outputs, "--output", needed=True)),
        "submit": (*config, *cluster, *base),
        "form": (*config, *cluster),
        "doctor": (*config, *cluster),
        "status": run,
        "logs": (*stage, *run),
        "cancel": (Argument(("r",), names, needed=True),),
        "schedule create": (*config, *cluster, *base, cron, *schedule),
        "schedule replace": (*config, *cluster, *base, cron, *schedule),
        "promote": (*config[1:], number, preset),
        "rollback": (*config, Argument(("it lies",), ("\0", "\ud800"), needed=True)),
        "history": config,
        "mirror": (
            Argument(("paper-1.5b",), ("nowhere", ""), "--preset", needed=True),
            Argument((str(folder / "hub"), "s3://b/hub"), targets, needed=True),
        ),
        "export": (
            registered,
            Argument(("bfloat16", "float32"), ("int8", "", "\0"), "--dtype"),
            Argument(("org/name",), (*(each for each in _ODD if each != "a/b"), "a/b/c", "name"), "--hub"),
            model,
            Argument((str(folder / "absent"),), full, needed=True),
        ),
        "chat": (
            registered,
            Argument(("3 + 4",), ("", " ", "\t", "\0", "\ud800"), "--prompt"),
            Argument(("64",), numbers, "--max-tokens"),
            Argument(("0", "0.7"), ("-1", "11", "nan", "x", ""), "--temperature"),
            model,
        ),
        "exec": (Argument(("true",), ("", "\0", "\ud800"), needed=True),),
        "neighbors": (
            Argument(("8",), ("0", "-1", "99999999", "x", "9" * 5000), "--count"),
            Argument(("cosine", "l1"), ("euclid", "", "\0"), "--metric"),
            Argument(("tiny",), ("nowhere", "", _LONG, "a\0b"), needed=True),
            Argument(("7",), ("\0", "\ud800"), needed=True),
        ),
    }


def write_odd_files(folder: Path) -> None:
    """Write a preset, a cluster, and files that are no settings."""
    (folder / "mine.toml").write_text((PRESETS / "tiny.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "cluster.toml").write_text('store = "s3://bucket/prefix"\n', encoding="utf-8")
    (folder / "odd.toml").write_bytes(b"\xff\xfe")
    (folder / "odd-nested.toml").write_bytes(b"a = " + b"[" * 50_000)
    (folder / "odd-number.toml").write_bytes(b"seed = " + b"9" * 5000)
    (folder / "odd-large.toml").write_bytes(b"#" * (2 << 20))
    (folder / "odd-folder.toml").mkdir()
    os.mkfifo(folder / "odd-pipe.toml")


def command_lines(count: int, folder: Path, seed: int) -> Iterator[tuple[list[str], bool]]:
    """Yield command lines, and whether there is nonsense in them; every fifth has none, and commands come in turn."""
    chance = random.Random(seed)
    commands = _arguments(folder)
    for number in range(count):
        command, arguments = list(commands.items())[number // 5 % len(commands)]
        chosen = [argument for argument in arguments if argument.needed or chance.random() < 0.5]
        wrong = None if number % 5 == 0 else chance.choice(chosen or arguments)
        if wrong is not None and wrong not in chosen:
            chosen.append(wrong)
        # Options first: what follows `--` is no option, whatever it looks like.
        words = [f"{argument.option}={_word(argument, wrong, chance)}" for argument in chosen if argument.option]
        places = [_word(argument, wrong, chance) for argument in chosen if not argument.option]
        yield [*command.split(), *words, *(["--", *places] if places else [])], wrong is not None


def _word(argument: Argument, wrong: Argument | None, chance: random.Random) -> str:
    return chance.choice(argument.wrong if argument is wrong else argument.right)
