"""Functions of the user: read with the configuration, and imported where a stage runs."""

import shutil
import sys
from pathlib import Path

import pytest

from ngrpo.config import load_config, validate
from ngrpo.config.code import UserCode, with_digests, without_code
from ngrpo.config.located import locate
from ngrpo.config.source_files import foreign_imports
from ngrpo.errors import ConfigError, UserCodeError
from ngrpo.user_code import load
from ngrpo_kfp.pipelines.planning.user_imports import missing_imports, require_imports


class Ready(UserCode):
    ready = ("correctness", "format")


def write(folder: Path, **files: str) -> Path:
    """Write files, `__` for `/`, and return the folder."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('/init', '/__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def reference(folder: Path, function: str, section=UserCode) -> UserCode:
    return validate(section, locate({"function": function}, folder))


def refused(folder: Path, function: str, section=UserCode) -> str:
    with pytest.raises(ConfigError) as failure:
        reference(folder, function, section)
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith(f"configuration: function={function!r}: ")
    return message


def test_a_file_travels_with_what_it_imports_from_beside_it(tmp_path, monkeypatch):
    write(
        tmp_path / "mine",
        rewards="import json, helper\nfrom texts import clean\ndef f():\n    from texts.deep.more import g\n",
        helper="import other",
        other="",
        unused="",
        texts__init="from .deep import h",
        texts__clean="",
        texts__deep__init="from .. import clean\nfrom . import more\nh = 1",
        texts__deep__more="g = 1",
    )
    code = reference(tmp_path, "mine/rewards.py:f")
    assert code.function == "rewards.py:f"
    assert list(code.code) == [
        "helper.py",
        "other.py",
        "rewards.py",
        "texts/__init__.py",
        "texts/clean.py",
        "texts/deep/__init__.py",
        "texts/deep/more.py",
    ]
    # Nothing but the text counts, and the whole is valid where no such file is.
    write(tmp_path / "elsewhere", rewards="", helper="")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert validate(UserCode, code.model_dump(mode="json")) == code
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert reference(tmp_path, "moved/rewards.py:f") == code


def test_line_ends_and_a_byte_order_mark_are_not_content(tmp_path):
    (tmp_path / "a.py").write_bytes("\ufefff = 1\r\ng = 2\r\n".encode())
    assert reference(tmp_path, "a.py:f").code == {"a.py": "f = 1\ng = 2\n"}


@pytest.mark.parametrize(
    ("files", "function", "said"),
    [
        ({}, "rewards.py:f", "no such file: 'rewards.py' is relative to"),
        ({"a": ""}, "b/a.py:f", "no such file"),
        ({"a": "def f(:\n"}, "a.py:f", "a.py, line 1: not Python: invalid syntax"),
        ({"a": "import b\nf = 1", "b": "x = 1\ny ="}, "a.py:f", "b.py, line 2: not Python"),
        ({"a": "def length(): ..."}, "a.py:lenght", "a.py defines no 'lenght'; did you mean 'length'?"),
        ({"a": "def f():\n    def g(): ..."}, "a.py:g", "a.py defines no 'g': define it there, at the top level"),
        ({"s__a": "from ..common import f", "common": "f = 1"}, "s/a.py:f", "imports ..common, which lies outside"),
        ({"s__a": "from common import f", "common": "f = 1"}, "s/a.py:f", "imports common, which lies outside"),
        ({"a": "from .common import f"}, "a.py:f", "imports .common, and there is no such file in"),
        ({"a": "f = 1 #" + "x" * 100_000}, "a.py:f", "more than 100,000 characters of code"),
        ({"a": "import b\nf=1#" + "x" * 50_000, "b": "#" + "x" * 50_000}, "a.py:f", "put it into a package"),
        ({"a.b": "f = 1"}, "a.b.py:f", "only letters, digits, '_' and '-' before .py"),
        ({"a": "f = 1"}, "a.py", "write file.py:NAME"),
        ({}, "package.module.function", "write file.py:NAME"),
        ({}, "a b:c", "write file.py:NAME"),
        ({}, "ngrpo.training.rewards:CorrectnessReward", "a module of ngrpo itself, whose code no key would cover"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, files, function, said):
    assert said in refused(write(tmp_path, **files), function)


def test_a_ready_one_is_spelled_right(tmp_path):
    assert reference(tmp_path, "format", Ready).code == {}
    assert "did you mean 'correctness'?" in refused(tmp_path, "corectness", Ready)


@pytest.mark.parametrize(
    "code",
    [{"../a.py": "", "a.py": "f = 1"}, {"/a.py": "", "a.py": "f = 1"}, {"a.py": "f = 1", "b.txt": ""}, {"a.py": 3}],
)
def test_code_of_unknown_origin_stays_in_its_folder(code):
    with pytest.raises(ConfigError):
        validate(UserCode, {"function": "a.py:f", "code": code})


def test_code_goes_with_a_file(tmp_path):
    with pytest.raises(ConfigError, match="code goes with a function of a file only"):
        validate(UserCode, {"function": "math:sqrt", "code": {"a.py": ""}})


@pytest.mark.parametrize(
    "definition",
    [
        "def f(): ...",
        "async def f(): ...",
        "class f: ...",
        "f = lambda: 1",
        "from math import sqrt as f",
        "try:\n    import math\nexcept ImportError:\n    f = 1",
        "if True:\n    pass\nelse:\n    def f(): ...",
        "from math import *",
        "with open('x') as f: ...",
    ],
)
def test_every_way_to_define_a_function_is_seen(tmp_path, definition):
    reference(write(tmp_path, a=definition), "a.py:f")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    body = "import helper\ndef f(): return helper.value()"
    one = reference(write(tmp_path / "one", rewards=body, helper="def value(): return 1"), "rewards.py:f")
    two = reference(write(tmp_path / "two", rewards=body, helper="def value(): return 2"), "rewards.py:f")
    before = set(sys.modules)
    work = tmp_path / "work"
    assert (load(one, work)(), load(two, work)(), load(one, work)()) == (1, 2, 1)
    assert load(one, work) is load(one, work)
    added = {name for name in sys.modules.keys() - before if not name.startswith("_ngrpo_user_code_")}
    assert not added & {"rewards", "helper"}


def test_every_way_to_import_what_is_beside_works(tmp_path):
    write(
        tmp_path,
        rewards=(
            "import json\nimport pack.sub.leaf\nimport pack.sub as short\nfrom pack import name, sub\nfrom space import inner\n"
            "from .helper import h\n"
            "def f():\n    from helper import h as late\n    import helper\n"
            "    return [json.dumps(1), pack.sub.leaf.x, short.leaf.x, name, sub.leaf.x, inner.y, h(), late(), helper.h()]"
        ),
        helper="def h(): return 'h'",
        pack__init="from .sub import leaf\nname = leaf.x + 1",
        pack__sub__init="import helper",
        pack__sub__leaf="from helper import h\nfrom ... import helper\nx = 1",
        space__inner="y = 'inner'",
    )
    assert load(reference(tmp_path, "rewards.py:f"), tmp_path / "work")() == ["1", 1, 1, 2, 1, "inner", "h", "h", "h"]


def test_what_is_beside_comes_before_what_is_installed(tmp_path):
    write(tmp_path, rewards="import yaml\nf = yaml.g", yaml="def g(): return 'mine'")
    assert load(reference(tmp_path, "rewards.py:f"), tmp_path / "work")() == "mine"
    assert getattr(sys.modules.get("yaml"), "g", None) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import not_there_at_all\ndef f(): ...",
            "imports not_there_at_all, which is not installed here: `pip install`",
        ),
        (
            "import importlib\nimportlib.import_module('helper')\ndef f(): ...",
            "imports helper by its name at run time, which finds installed modules only: write `import helper` for a file beside it",
        ),
        ("f = 3", "of type int, which cannot be called"),
        ("\n1 / 0\ndef f(): ...", "rewards.py, line 2: ZeroDivisionError: division by zero"),
        ("def f(): ...\ndel f", "rewards.py has no 'f'"),
        ("import sys\nsys.exit(0)\ndef f(): ...", "ends the process when it is imported"),
        ("raise BaseException('panic')\ndef f(): ...", "rewards.py, line 1: BaseException: panic"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(tmp_path, source, said):
    code = reference(write(tmp_path, rewards=source), "rewards.py:f")
    with pytest.raises(UserCodeError) as failure:
        load(code, tmp_path / "work")
    assert said in str(failure.value)
    assert str(failure.value).startswith("function 'rewards.py:f': ")
    assert "\n" not in str(failure.value)
    assert "_ngrpo_user_code" not in str(failure.value)


def test_a_file_that_failed_is_imported_from_where_it_is_now(tmp_path):
    code = reference(write(tmp_path, rewards="import not_there_at_all\ndef f(): ..."), "rewards.py:f")
    for work in ("gone", "here"):
        with pytest.raises(UserCodeError, match=r"rewards\.py imports not_there_at_all, which is not installed here"):
            load(code, tmp_path / work)
        shutil.rmtree(tmp_path / work)


def test_a_function_of_a_package(tmp_path):
    assert load(UserCode(function="os.path:basename"), tmp_path)("a/b") == "b"
    with pytest.raises(UserCodeError, match=r"there is no module not_there_at_all here"):
        load(UserCode(function="not_there_at_all.rewards:f"), tmp_path)
    with pytest.raises(UserCodeError, match=r"math has no 'squirt'"):
        load(UserCode(function="math:squirt"), tmp_path)


def test_sources_are_not_shown(tmp_path):
    tree = {"rewards": {"a": reference(write(tmp_path, a="f = 'a secret'"), "a.py:f").model_dump()}, "code": [1]}
    assert without_code(tree) == {"rewards": {"a": {"function": "a.py:f"}}, "code": [1]}
    short = with_digests(tree)
    assert "secret" not in str(short)
    assert short["rewards"]["a"]["code"]["a.py"].startswith("sha256:")
    assert short["code"] == [1]


def test_what_files_need_of_others(tmp_path):
    code = {
        "a.py": (
            "from __future__ import annotations\nimport os, b, numpy.linalg\nfrom typing import TYPE_CHECKING\n"
            "def f():\n    import inside\ntry:\n    import optional\nexcept ImportError:\n    import other\n"
            "if TYPE_CHECKING:\n    import only_types\n"
        ),
        "b.py": "from . import a\nimport yaml\nimport optional",
    }
    assert foreign_imports(code) == {"inside", "numpy", "optional", "yaml"}
    assert missing_imports(code, {"numpy", "pyyaml", "optional"}) == ["inside"]


def test_a_run_on_this_machine_needs_what_the_files_import(tmp_path):
    write(
        tmp_path, rewards="import json, numpy, helper, not_there_at_all\ndef f(completions, **kwargs): ...", helper=""
    )
    tiny = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
    table = "[training.rewards.mine]\nfunction = 'rewards.py:f'"
    (tmp_path / "mine.toml").write_text(f"{tiny.read_text()}\n{table}")
    config = load_config(tmp_path / "mine.toml")
    require_imports(config, ["prepare_data", "model_promotion"])
    with pytest.raises(ConfigError) as failure:
        require_imports(config, ["prepare_data", "ngrpo_training", "model_promotion"])
    assert str(failure.value) == (
        "training.rewards.mine: rewards.py:f imports not_there_at_all, which is not installed here: pip install it, or leave it out"
    )
