"""The variables of `make run` and `make study`: read from words, refused in one sentence, passed on to the trainer."""

from pathlib import Path

import pytest

from scripts.errors import RunError
from scripts.options import FROM_MAKE, MakeRunOptions, StudyOptions, describe, read_options
from scripts.run import main
from trainer.options import ExperimentOptions


def test_every_option_of_an_experiment_reaches_the_trainer():
    """Each variable becomes the trainer's flag of the same name; data, out and port are for `make run` itself."""
    given = {"PROFILE": "smoke", "SEED": "3", "BUDGET": "40", "DEVICE": "cpu", "STRATEGY": "random", "TARGET": "0.9"}
    given |= {"PRETRAINED": "w/encoder.pt", "ROUNDS": "20,40", "CLASS_PRIOR": "estimated", "WORKING_SIZE": "48"}
    given |= {"FEATURES": "own.npy", "FEATURES_USE": "beside"}
    own = ["DATA=d", "OUT=o", "PORT=8123"]
    options = read_options(MakeRunOptions, [*own, *(f"{name}={value}" for name, value in given.items())])
    flags = options.trainer_flags()
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        f"--{name.lower().replace('_', '-')}": given[name] for name in given
    }
    assert {name.upper() for name in ExperimentOptions.model_fields} == set(given)
    assert (options.data, options.folder, options.port) == (Path("d"), Path("o"), 8123)


def test_no_words_are_the_defaults(monkeypatch):
    """Neither a stray PORT nor the trainer's variables in the environment count, and the trainer gets no flag."""
    for name in ("PORT", "TRAINER_SEED", "TRAINER_PROFILE", "TRAINER_DATA"):
        monkeypatch.setenv(name, "7")
    for words in ([], [FROM_MAKE, ""], ["SEED=", "VENV=.venv"]):
        options = read_options(MakeRunOptions, words)
        assert options == MakeRunOptions()
        assert options.trainer_flags() == []


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "runs/auto-seed1"),
        (["PROFILE=smoke", "SEED=3"], "runs/smoke-seed3"),
        (
            ["BUDGET=40", "STRATEGY=random", "TARGET=0.9", "DATA=my/ji"],
            "runs/auto-seed1-40-random-target0.9-on-ji",
        ),
        (["OUT=o", "SEED=3"], "o"),
    ],
)
def test_results_of_other_options_have_another_folder(words, folder):
    """Without OUT the folder's name says what differs from the default."""
    assert read_options(MakeRunOptions, words).folder == Path(folder)


def test_a_study_has_its_seeds_in_one_word():
    """As make hands them over."""
    options = read_options(StudyOptions, [FROM_MAKE, r"SEEDS=4\ 5 STUDY=ablations TAKE_FROM=my\ record JOBS=2"])
    assert (options.study, options.seeds, options.take_from, options.jobs) == (
        "ablations",
        (4, 5),
        Path("my record"),
        2,
    )


@pytest.mark.parametrize(
    ("kind", "word", "reason"),
    [
        (MakeRunOptions, "SED=3", "there is no variable SED; the known ones are PROFILE, SEED, BUDGET, "),
        (MakeRunOptions, "seed=3", "there is no variable seed; "),
        (MakeRunOptions, "--seed", "there is no variable --seed; "),
        (MakeRunOptions, "SEED=three", "SEED=three cannot be used: Input should be a valid integer"),
        (MakeRunOptions, "BUDGET=0", "BUDGET=0 cannot be used: "),
        (MakeRunOptions, "TARGET=90", "TARGET=90 cannot be used: "),
        (StudyOptions, "SEEDS=1 two", "SEEDS=1 two cannot be used: "),
        (StudyOptions, "JOBS=0", "JOBS=0 cannot be used: "),
        (StudyOptions, "PROFILE=smoke", "there is no variable PROFILE; the known ones are STUDY, SEEDS, DATA, "),
    ],
)
def test_a_word_that_means_nothing_is_refused(kind, word, reason):
    """One sentence and exit code 2; a typing error is not silently ignored."""
    with pytest.raises(RunError) as refused:
        read_options(kind, [word])
    assert str(refused.value).startswith(reason)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_make_run_says_so_and_begins_nothing(tmp_path, monkeypatch, capsys):
    """The command itself: the sentence on standard error, and no folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["SED=3"]) == 2
    assert capsys.readouterr().err.startswith("make run: there is no variable SED; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [MakeRunOptions, StudyOptions])
def test_every_variable_is_described(kind):
    """`make help` shows each with its default and what it means."""
    lines = [line for line in describe(kind).splitlines() if not line.startswith("     ")]
    assert [line.strip().partition("=")[0].lower() for line in lines] == list(kind.model_fields)
    assert all(field.description for field in kind.model_fields.values())


def test_a_plug_in_names_a_folder_of_results_and_not_a_path():
    """Slashes and colons of a strategy do not reach the folder's name; other rounds have a folder of their own."""
    options = MakeRunOptions(strategy="../mine.py", rounds="20,40", profile="smoke")
    assert options.folder == Path("runs/smoke-seed1-rounds20,40-mine-py")
