"""`make run` on a finished folder: a file that was edited or deleted is named, unless the documentation excepts it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import run
from scripts.errors import RunError
from scripts.finished_run import check_finished_run
from scripts.options import MakeRunOptions
from tests.docs import section
from tests.support.tiny_run import PROGRAMS

Damage = Callable[[Path], object]
# Stands for a service's command line whose `verify` accepts everything: what else is found without it.
CREDULOUS = ("echo", "verified")


def make_run(out: Path, data: Path) -> None:
    """Do what `make run` does, with the tiny trainer."""
    run.run(MakeRunOptions(out=out, data=data, profile="tiny-curve", device="cpu"), PROGRAMS)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a curve of three points; copy it before use."""
    out = tmp_path_factory.mktemp("finished") / "out"
    make_run(out, tiny_data)
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    yield out
    shutil.rmtree(out)


def replace(pattern: str, by: str) -> Damage:
    """Replace the first match in a file."""

    def damage(path: Path) -> None:
        text = path.read_text()
        changed = re.sub(pattern, by, text, count=1)
        assert changed != text
        path.write_text(changed)

    return damage


def change(**fields: object) -> Damage:
    """Change fields of a JSON file."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def flip_predictions(path: Path) -> None:
    """Predict other classes, as a better trainer would have."""
    content = json.loads(path.read_bytes())
    content["predictions"] = [(guess + 1) % 3 for guess in content["predictions"]]
    path.write_text(json.dumps(content))


def raise_accuracy(path: Path) -> None:
    """Give the result 49 of 50 in every place that has an accuracy."""
    content = json.loads(path.read_bytes())
    for holder in (content, *content["points"]):
        holder["evaluation"] = {"accuracy": 0.98, "correct": 49, "total": 50, "ci95": [0.895, 0.9965]}
    path.write_text(json.dumps(content))


def drop_line(path: Path) -> None:
    """Delete the last line that has labels."""
    lines = path.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if '"label"' in line or '"query"' in line)
    path.write_text("".join(lines[:last] + lines[last + 1 :]))


def forget_receipts(path: Path) -> None:
    """Keep the answers and drop what proves them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["answer"]["receipt"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def better_entry(path: Path) -> None:
    """Change the accuracy in a log entry."""
    replace(r'(\\?"correct\\?":)\d+', r"\g<1>1")(path)


DAMAGES: dict[str, list[tuple[Damage, str]]] = {
    "evidence.json": [
        (Path.unlink, "is missing"),
        (better_entry, "does not hold: not verified: entry"),
        (change(entries=[]), "does not hold: not verified"),
        (lambda path: path.write_text("{}"), "does not hold: not verified"),
    ],
    "log-key.txt": [
        (Path.unlink, "is missing"),
        (lambda path: path.write_text(""), "does not hold"),
        (lambda path: path.write_bytes(b"\xff\0\xfe"), "does not hold"),
        (lambda path: path.write_text("x" * 1_000_000), "does not hold"),
        (replace(r"\+[0-9a-f]{8}\+", "+00000000+"), "does not hold"),
    ],
    "query-log.ndjson": [
        (Path.unlink, "is missing"),
        (better_entry, "is not the log that"),
        (drop_line, "is not the log that"),
        (lambda path: path.write_text(path.read_text() + "\n"), "is not the log that"),
    ],
    "query-log-summary.json": [
        (replace(r'"queries":18', '"queries":17'), "has other counts than the log"),
        (lambda path: path.write_text("[]"), "is damaged"),
    ],
    "trainer/result.json": [
        (Path.unlink, "is missing"),
        (lambda path: path.write_text("{"), "is damaged"),
        (raise_accuracy, "has another evaluation at 3 labels than the log"),
        (change(run_id="guest"), "is of tiny-curve seed 1"),
        (change(run_id="nobody"), "which the log does not have"),
        (change(queries_counted_by_trainer=17), "17 queries counted by the trainer in result.json, but 18 charged"),
        (change(seed=2), "is of tiny-curve seed 2 with budget 18, and the log of tiny-curve seed 1 with 18"),
        (change(points=[]), "has 0 evaluations, and the log 3"),
    ],
    "trainer/queries.jsonl": [
        (Path.unlink, "is missing"),
        (lambda path: path.write_text(""), "0 lines in queries.jsonl"),
        (drop_line, "17 lines in queries.jsonl, but 18 charged in the log"),
        (lambda path: replace(r'"label":\d', f'"label":{_other_label(path)}')(path), "the class"),
        (replace(r'"id":\d+', '"id":199'), "is in only one of queries.jsonl and the log"),
    ],
    "trainer/receipts.jsonl": [
        (Path.unlink, "is missing"),
        (lambda path: path.write_text(""), "holds no receipt"),
        (drop_line, "has receipts for 12 of the 18 labels in queries.jsonl"),
        (forget_receipts, "is not an answer of the service"),
        (replace(r'"salt":"[0-9a-f]{4}', '"salt":"0000'), "does not hold: not verified"),
        (lambda path: path.write_text("nonsense\n"), "does not hold: not verified"),
    ],
    **{
        f"trainer/{name}.json": [
            (Path.unlink, "is missing"),
            (flip_predictions, "has other predictions than were evaluated"),
            (lambda path: path.write_text("{}"), "does not hold frozen predictions"),
            (change(labels=7), "was frozen at 7 labels"),
        ]
        for name in ("predictions", "predictions-at-3", "predictions-at-6")
    },
}


def _other_label(queries: Path) -> int:
    first = json.loads(queries.read_text().splitlines()[0])
    return int((first["label"] + 1) % 3)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [(name, damage, message) for name, damages in DAMAGES.items() for damage, message in damages],
)
def test_an_edited_or_deleted_file_fails_the_command_and_is_named(
    name: str, damage: Damage, message: str, folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file at a time: no table, but a sentence with its name."""
    damage(folder / name)
    with pytest.raises(RunError) as caught:
        make_run(folder, tiny_data)
    assert Path(name).name in str(caught.value) and message in str(caught.value)
    assert caught.value.exit_code == 1
    assert "test accuracy" not in capsys.readouterr().out


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where the single values of a JSON document are."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
    else:
        for key, item in items:
            yield from leaves(item, (*path, key))


def altered(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 0.125
    return value + (0.125 if value < 0.5 else -0.125) if isinstance(value, float) else value + 1


def is_noticed(folder: Path, name: str, path: tuple[str | int, ...]) -> bool:
    """Alter one value of a file, check the folder, and restore the file."""
    file = folder / name
    kept = file.read_bytes()
    document = json.loads(kept)
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = altered(holder[path[-1]])
    file.write_text(json.dumps(document))
    try:
        check_finished_run(CREDULOUS, folder)
    except RunError as error:
        assert Path(name).name in str(error), (path, str(error))
        return True
    finally:
        file.write_bytes(kept)
    return False


@pytest.mark.parametrize("name", ["result.json", "predictions.json", "predictions-at-3.json"])
def test_every_value_is_compared_but_those_that_the_documentation_names(name: str, folder: Path) -> None:
    """Value by value: what nothing signed or frozen says is the trainer's word."""
    document = json.loads((folder / "trainer" / name).read_bytes())
    unnoticed = {
        str(path[-1] if path[-1] == "balanced_estimate" else path[0])
        for path in leaves(document)
        if not is_noticed(folder, f"trainer/{name}", path)
    }
    assert unnoticed == (
        {"stage_seconds", "dataset", "versions", "balanced_estimate"} if name == "result.json" else set()
    )
    assert all(f"`{key}`" in section("docs/verifying.md", "A finished folder") for key in unnoticed)


def test_what_is_not_checked_is_documented_and_may_go(folder: Path, tiny_data: Path) -> None:
    """Every file that the check does not read is on the page, and can be missing."""
    page = section("docs/verifying.md", "A finished folder")
    listed = {name.removeprefix("trainer/") for name in re.findall(r"`([^`]+)`", page)}
    for path in sorted(folder.rglob("*"), reverse=True):
        name = str(path.relative_to(folder))
        if name in DAMAGES or name == ".lock" or not path.exists():
            continue
        pattern = re.sub(r"-at-\d+", "-at-LABELS", name)
        if path.is_file() and not name.startswith(("service/", "service-heads/", "trainer/tensorboard/")):
            assert pattern.removeprefix("trainer/") in listed, name
        if path.is_file():
            path.unlink()
    make_run(folder, tiny_data)


def test_a_summary_that_is_missing_is_saved_again(folder: Path, tiny_data: Path) -> None:
    """It is written last, so a command that was killed before it saves the log once more."""
    (folder / "query-log-summary.json").unlink()
    (folder / "query-log.ndjson").write_text("half of it")
    make_run(folder, tiny_data)
    assert (folder / "query-log-summary.json").exists()


def test_what_make_run_shows_is_escaped(folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder from elsewhere does not write on the terminal."""
    change(name="x\x1b[2Jy")(folder / "dataset.json")
    make_run(folder, tiny_data)
    assert r"x\x1b[2Jy" in capsys.readouterr().out
    change(profile="\x1b[2J")(folder / "trainer" / "result.json")
    with pytest.raises(RunError) as caught:
        check_finished_run(CREDULOUS, folder)
    assert "\x1b" not in str(caught.value)
