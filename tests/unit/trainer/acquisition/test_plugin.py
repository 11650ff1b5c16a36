"""Query strategies from outside: loaded when asked for, known by their content, checked before anything is asked."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.trainer.acquisition.test_strategies import cold_state, generator, warm_state
from trainer.acquisition import STRATEGIES
from trainer.acquisition.plugin import identity_of, load_strategy
from trainer.errors import ConfigError, StrategyFailed

FIRST = "def select(state, batch, generator):\n    return state.free[:batch]\n"


def written(folder: Path, body: str, name: str = "mine.py") -> str:
    """Write a strategy whose function has this body, and return its path."""
    path = folder / name
    path.write_text(f"import torch, numpy, random\n\ndef select(state, batch, generator):\n    {body}\n")
    return str(path)


@pytest.mark.parametrize(
    "body",
    [
        "return state.free[:batch]",
        "return state.free[:batch].int()",
        "return state.free[:batch].numpy()",
        "return state.free[:batch].tolist()",
        "return (int(i) for i in state.free[:batch]) and tuple(state.free[:batch].tolist())",
    ],
    ids=["tensor", "int32", "array", "list", "tuple"],
)
def test_a_file_chooses_in_any_form_of_integers(body: str, tmp_path: Path) -> None:
    """Tensors, arrays, lists and tuples are all read as indices."""
    state = warm_state()
    picks = load_strategy(written(tmp_path, body)).choose(state, 5, generator())
    assert picks.dtype == torch.int64
    assert torch.equal(picks, state.free[:5])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 // 0", r"raised ZeroDivisionError: .* \(mine\.py, line 4\)"),
        ("raise SystemExit(3)", r"raised SystemExit: 3 \(mine\.py, line 4\)"),
        ("raise RuntimeError", r"raised RuntimeError \(mine\.py, line 4\)"),
        ("raise ValueError('x' * 999 + chr(10) + 'y')", r"raised ValueError: x{200}… \(mine\.py, line 4\)"),
        ("return None", "returned NoneType, where it must return the numbers of images"),
        ("return {'a': 1}", "returned dict, where"),
        ("return ['a'] * batch", "returned list, where"),
        ("return 3", r"returned an array of shape \(\)"),
        ("return state.free[:batch].reshape(1, -1)", r"returned an array of shape \(1, 5\)"),
        ("return torch.full((batch,), float('nan'))", r"returned numbers that are not finite \(NaN\)"),
        ("return state.free[:batch].float()", "returned torch.float32 numbers"),
        ("return ~state.labelled", "returned torch.bool values"),
        ("return state.free[:batch - 1]", "returned 4 images where 5 were asked for"),
        ("return state.free", "returned 40 images where 5 were asked for"),
        ("return []", "returned 0 images where 5 were asked for"),
        ("return state.free[:batch] * 0 + state.free[0]", "returned image [0-9]+ more than once"),
        ("return state.free[:batch] - 1000", "returned image -[0-9]+, and the pool has images 0 to 59"),
        ("return state.free[:batch] + 1000", "returned image 10[0-9]+, and the pool has images 0 to 59"),
        ("return state.labelled.nonzero().flatten()[:batch]", "returned image [0-9]+, whose label is paid for already"),
        ("state.beliefs.mul_(0); return state.free[:batch]", r"changed state\.beliefs, which it may only read"),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_name(body: str, words: str, tmp_path: Path) -> None:
    """Whatever it does, the error names the strategy and what is wrong with it."""
    name = written(tmp_path, body)
    with pytest.raises(StrategyFailed, match=words) as caught:
        load_strategy(name).choose(warm_state(), 5, generator())
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("def select(:", StrategyFailed, r"cannot be loaded: SyntaxError.*\(mine\.py, line 1\)"),
        ("import nothing_of_the_kind", StrategyFailed, "cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit", StrategyFailed, "cannot be loaded: SystemExit"),
        ("select = 3", ConfigError, "has no function select"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_sentence(
    source: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    """Before anything is asked."""
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(error, match=words):
        load_strategy(str(path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such", "there is no query strategy 'no-such'; choose one of badge"),
        ("./no-such.py", r"no-such\.py cannot be read"),
        ("no_such_package:select", "there is no module no_such_package"),
        ("no_such.package:select", r"there is no module no_such\.package"),
        (":select", "there is no query strategy ':select'"),
        ("sys:select", "there is no module sys"),
        ("json:no_function", "json has no function no_function"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_setting_that_is_wrong(name: str, words: str) -> None:
    """It is told from code that fails."""
    with pytest.raises(ConfigError, match=words):
        load_strategy(name)


def test_a_function_of_a_file_or_a_package_is_found_by_its_name(tmp_path: Path) -> None:
    """`mine.py:other` and `package.module:function`."""
    (tmp_path / "mine.py").write_text(FIRST.replace("select", "other"))
    state = warm_state()
    for name in (f"{tmp_path / 'mine.py'}:other", "trainer.acquisition.margin:select"):
        assert len(load_strategy(name).choose(state, 3, generator())) == 3
    margin = load_strategy("margin").choose(state, 3, generator())
    assert torch.equal(load_strategy("trainer.acquisition.margin:select").choose(state, 3, generator()), margin)


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    """As a script may."""
    (tmp_path / "beside_mine.py").write_text(FIRST)
    (tmp_path / "mine.py").write_text("from beside_mine import select\n")
    assert len(load_strategy(str(tmp_path / "mine.py")).choose(cold_state(), 3, generator())) == 3


def test_a_plug_in_is_known_by_its_content(tmp_path: Path) -> None:
    """One changed character is another version; a strategy of the package has none, its version is the trainer's."""
    name = written(tmp_path, "return state.free[:batch]")
    before = load_strategy(name)
    assert before.title == f"{name}@{identity_of(name)[:12]}"  # type: ignore[index]
    written(tmp_path, "return state.free[-batch:]")
    assert load_strategy(name).sha256 not in (None, before.sha256)
    assert load_strategy("margin").title == "margin"
    assert all(identity_of(name) is None for name in STRATEGIES)


def test_global_randomness_is_that_of_the_round_and_put_back(tmp_path: Path) -> None:
    """A careless plug-in chooses the same images in a resumed run, and does not change what the training draws."""
    body = "return numpy.random.permutation(state.free)[[random.randrange(20), 20 + int(torch.randint(20, ()))]]"
    strategy = load_strategy(written(tmp_path, body))
    before = (random.getstate()[1][:5], np.random.get_state()[1][:5].tolist(), torch.get_rng_state())
    first, again, other = (strategy.choose(warm_state(), 2, generator(seed)).tolist() for seed in (4, 4, 5))
    assert first == again != other
    after = (random.getstate()[1][:5], np.random.get_state()[1][:5].tolist(), torch.get_rng_state())
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_embeddings_are_computed_once_and_for_those_who_ask() -> None:
    """A strategy that does not look at them does not pay for them."""
    import dataclasses

    calls = []
    state = dataclasses.replace(warm_state(), embed=lambda: calls.append(1) or torch.eye(60))
    load_strategy("margin").choose(state, 3, generator())
    assert calls == []
    assert state.embeddings is state.embeddings
    assert calls == [1]


def test_no_plug_in_is_loaded_unless_it_is_asked_for() -> None:
    """The library of another strategy is not imported by the command line or by a strategy of this package."""
    code = (
        "import sys, trainer.cli\nfrom trainer.acquisition.plugin import load_strategy\nload_strategy('margin')\n"
        "print([name for name in ('skactiveml', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
