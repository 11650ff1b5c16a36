"""`make run`'s orchestration, with stand-ins for the two programs: fast, and able to misbehave on demand."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]
FAKES = ROOT / "tests" / "support"
# Runs scripts.run as its own process, as make does, with the stand-ins in place of the two programs. A shell's
# background job hands down an ignored SIGINT; a user's terminal does not, and neither does this.
LAUNCH = f"""
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from scripts.run import Programs, main
service, trainer = {str(FAKES / "fake_service.py")!r}, {str(FAKES / "fake_trainer.py")!r}
sys.exit(main(sys.argv[1:], Programs((sys.executable, service), (sys.executable, trainer))))
"""


def start(folder, *options, **environment):
    """Start `make run` in `folder`, leading a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder, *options, **environment):
    """Run it to its end; return exit code, standard output, standard error."""
    process = start(folder, *options, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for_lines(path, count):
    """Wait until a file has that many lines."""
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, f"{path} never had {count} lines"
        time.sleep(0.02)


def ids_of(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def service_url(out):
    """Return the address that the run announced."""
    return next(word for word in out.split() if word.startswith("http://"))


def is_served(url):
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_run_ends_with_a_table_of_both_counts(tmp_path):
    """The whole path ends with exit code 0 and a table that has the counts, the accuracy and the places."""
    code, out, err = run(tmp_path)
    assert (code, err) == (0, "")
    table = dict(line.strip().split("  ", 1) for line in out.splitlines() if line.startswith("  "))
    assert table["queries counted by the trainer"].strip() == "10"
    assert table["queries of the run, by the log"].strip() == "10"
    assert table["labels revealed to anybody else"].strip() == "0"
    assert "90.62%  (95% interval 90.03% to 91.18%; 9,062 of 10,000)" in table["test accuracy, by the log"]
    assert "1 min 5 s" in table["wall time of the trainer"]
    folder = tmp_path / "runs" / "auto-seed1"
    assert (folder / "query-log.ndjson").read_text().count("\n") == 12
    assert not is_served(service_url(out))


def test_trainer_gets_the_images_folder_and_no_setting_of_the_service(tmp_path):
    """The operator's settings reach the service alone; the trainer gets the images' folder and the log's pinned key."""
    code, _, _ = run(tmp_path, "OUT=o", LABEL_SERVICE_GUEST_BUDGET="7")
    seen = json.loads((tmp_path / "o/trainer/seen.json").read_text())
    assert code == 0
    assert seen["of"] == "images"
    assert seen["log_key"] == "stand-in+0+key"
    assert not [name for name in seen["environment"] if name.startswith("LABEL_SERVICE_")]
    assert "LABEL_SERVICE_GUEST_BUDGET" in (tmp_path / "o/service/service.log").read_text()


def test_run_makes_a_token_for_its_own_trainer(tmp_path):
    """Service and trainer get one registration token, which only the owner can read, whatever the shell has set."""
    code, _, _ = run(tmp_path, "OUT=o", LABEL_SERVICE_REGISTRATION_TOKEN="old", TRAINER_REGISTRATION_TOKEN="old")
    file = tmp_path / "o/service/registration.token"
    token = file.read_text()
    assert (code, file.stat().st_mode & 0o777, len(token) > 40) == (0, 0o600, True)
    assert json.loads((tmp_path / "o/trainer/seen.json").read_text())["registration_token"] == token
    assert (
        f"registration token {hashlib.sha256(token.encode()).hexdigest()}"
        in (tmp_path / "o/service/service.log").read_text()
    )


def test_finished_run_prints_its_table_again_and_starts_nothing(tmp_path):
    """A second call on a finished folder exits with 0 and the same table, even where no service could start."""
    _, first, _ = run(tmp_path)
    code, again, _ = run(tmp_path, FAKE_SERVICE="die")
    assert code == 0
    assert "holds a finished run" in again
    assert [line for line in first.splitlines() if line.startswith("  ")] == [
        line for line in again.splitlines() if line.startswith("  ")
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("SEED=2", "seed 1, and seed 2 was asked for"),
        ("ROUNDS=5,7", "rounds 10, and rounds 5,7 was asked for"),
        ("STRATEGY=random", "strategy None, and strategy random was asked for"),
        ("TARGET=0.9", "target None, and target 0.9 was asked for"),
        ("CLASS_PRIOR=balanced", "class prior None, and class prior balanced was asked for"),
        ("WORKING_SIZE=64", "working size 32, and working size 64 was asked for"),
        ("FEATURES=o/log-key.txt", "features None, and features"),
        ("PRETRAINED=o/log-key.txt", "pretrained weights None, and pretrained weights"),
        ("PRETRAINED=none.pt", "none.pt cannot be read"),
    ],
)
def test_finished_run_is_not_shown_for_another_configuration(tmp_path, asked, says):
    """The result of one never answers for another; the same words, and fewer of them, are fine."""
    assert run(tmp_path, "OUT=o", "BUDGET=10")[0] == run(tmp_path, "OUT=o", "ROUNDS=010", "WORKING_SIZE=32")[0] == 0
    code, _, err = run(tmp_path, "OUT=o", asked)
    assert code == 2
    assert ("none.pt" in says) != (f"holds a finished run with {says}" in err)
    assert says in err and err.count("\n") == 1


def test_finished_run_is_not_shown_for_other_data(tmp_path):
    """Of a prepared folder the card says what it holds."""
    assert run(tmp_path, "OUT=o")[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset.json").write_text('{"name": "Other", "files": {"a": 1}}')
    code, _, err = run(tmp_path, "OUT=o", "DATA=other")
    assert code == 2
    assert "and other holds another data set (Other)" in err


def tamper_result(folder):
    path = folder / "trainer/result.json"
    path.write_text(path.read_text().replace('"queries_counted_by_trainer": 10', '"queries_counted_by_trainer": 9'))


def tamper_log(folder):
    path = folder / "query-log.ndjson"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def tamper_ids(folder):
    path = folder / "trainer/queries.jsonl"
    path.write_text(path.read_text().replace('"id": 3,', '"id": 33,'))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (tamper_result, "9 queries counted by the trainer in result.json, but 10 charged in the log"),
        (tamper_log, "o/query-log.ndjson is not the log that o/evidence.json holds"),
        (tamper_ids, "id 3 is in only one of queries.jsonl and the log"),
    ],
)
def test_counts_that_differ_fail_the_command_and_are_named(tmp_path, tamper, says):
    """The twin of the test above: a changed count in any of the three places is a failure that names the numbers."""
    assert run(tmp_path, "OUT=o")[0] == 0
    tamper(tmp_path / "o")
    code, out, err = run(tmp_path, "OUT=o")
    assert code == 1
    assert says in err
    assert "agree" not in out


def test_evidence_is_verified_under_the_key_pinned_before_the_first_query(tmp_path):
    """The closing table says what was verified; a bundle of another key fails the command."""
    code, out, _ = run(tmp_path, "OUT=o")
    assert code == 0
    assert "verified 12 entries (o/evidence.json)" in out
    assert (tmp_path / "o/log-key.txt").read_text() == "stand-in+0+key\n"
    bundle = tmp_path / "o/evidence.json"
    bundle.write_text(bundle.read_text().replace("+0+", "+1+"))
    code, out, err = run(tmp_path, "OUT=o")
    assert code == 1
    assert "does not hold: not verified: the bundle names another key. Do not trust this run." in err
    assert "agree" not in out


def test_evidence_of_another_log_than_the_one_counted_is_refused(tmp_path):
    """What is verified is what was counted, to the byte."""
    assert run(tmp_path, "OUT=o")[0] == 0
    log = tmp_path / "o/query-log.ndjson"
    log.write_text(log.read_text().replace('"op": "query"', '"op":  "query"'))
    code, _, err = run(tmp_path, "OUT=o")
    assert code == 1
    assert "is not the log that o/evidence.json holds" in err


def test_run_does_not_go_on_with_another_log(tmp_path):
    """The key pinned at the beginning is the key at every start."""
    assert run(tmp_path, "OUT=o", FAKE_TRAINER="fail")[0] == 65
    code, _, err = run(tmp_path, "OUT=o", FAKE_KEY="stand-in+2+key")
    assert code == 1
    assert "the log's key is not the one pinned in o/log-key.txt" in err


def test_taken_port_is_one_sentence_and_starts_nothing(tmp_path):
    """A port that another program has is refused before anything runs on it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = run(tmp_path, "OUT=o", f"PORT={port}")
    assert code == 1
    assert err.startswith(f"make run: Port {port} of 127.0.0.1 cannot be used")
    assert err.count("\n") == 1
    assert not (tmp_path / "o/trainer").exists()


def test_service_that_dies_is_noticed_at_once_with_its_last_words(tmp_path):
    """A service that ends before it is ready is not waited for, and what it printed is shown."""
    begin = time.monotonic()
    code, _, err = run(tmp_path, FAKE_SERVICE="die")
    assert code == 1
    assert "the database is on fire" in err
    assert time.monotonic() - begin < 20


def test_failed_trainer_passes_its_code_on_and_leaves_no_service(tmp_path):
    """The trainer's own sentence and exit code come through, and the service is stopped."""
    code, out, err = run(tmp_path, FAKE_TRAINER="fail")
    assert code == 65
    assert "the fifth image is upside down" in err
    # Nothing but a change of the data would help.
    assert "ended with exit code 65; the reason stands above." in err and "goes on" not in err
    assert not is_served(service_url(out))


def test_trainer_killed_by_a_signal_is_named_as_that(tmp_path):
    """A trainer that something else killed (out of memory, say) has printed no reason, so the signal is named."""
    process = start(tmp_path, "OUT=o", FAKE_TRAINER="slow")
    seen = tmp_path / "o/trainer/seen.json"
    wait_for_lines(tmp_path / "o/trainer/queries.jsonl", 1)
    os.kill(json.loads(seen.read_text())["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the trainer was killed by SIGKILL. The same command goes on from here." in err


def test_a_service_that_was_away_is_no_reason_to_change_anything(tmp_path):
    """After an exit code that time or room may mend, the advice is the same command."""
    code, _, err = run(tmp_path, FAKE_TRAINER="away")
    assert code == 69
    assert "ended with exit code 69; the reason stands above. The same command goes on from here." in err


def test_failed_run_goes_on_with_the_same_command(tmp_path):
    """After a failure the same command resumes: the same ten labels, none charged twice, one asked again."""
    assert run(tmp_path, "OUT=o", FAKE_TRAINER="fail")[0] == 65
    code, out, _ = run(tmp_path, "OUT=o")
    assert code == 0
    assert "going on from where it stopped" in out
    assert ids_of(tmp_path / "o/trainer/queries.jsonl") == list(range(10))
    entries = [json.loads(line) for line in (tmp_path / "o/query-log.ndjson").read_text().splitlines()]
    assert [entry["outcome"] for entry in entries].count("replayed") == 1
    assert sum(entry["charged"] for entry in entries) == 10


def test_run_killed_with_its_whole_group_goes_on_with_the_same_command(tmp_path):
    """kill -9 of everything in the middle of a run costs no label."""
    process = start(tmp_path, "OUT=o", FAKE_TRAINER="slow")
    wait_for_lines(tmp_path / "o/trainer/queries.jsonl", 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = run(tmp_path, "OUT=o")
    assert (code, err) == (0, "")
    assert ids_of(tmp_path / "o/trainer/queries.jsonl") == list(range(10))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent was killed")
def test_killed_run_takes_service_and_trainer_with_it(tmp_path):
    """kill -9 of the command alone leaves neither program behind to hold the database."""
    process = start(tmp_path, "OUT=o", FAKE_TRAINER="slow")
    wait_for_lines(tmp_path / "o/trainer/queries.jsonl", 2)
    process.kill()
    out, _ = process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while is_served(service_url(out)):
        assert time.monotonic() < deadline, "the service outlived the command"
        time.sleep(0.05)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_stops_its_service_and_says_how_to_go_on(tmp_path, stop):
    """Ctrl-C, or a polite kill, ends the programs in order and with one sentence."""
    process = start(tmp_path, "OUT=o", FAKE_TRAINER="slow")
    wait_for_lines(tmp_path / "o/trainer/queries.jsonl", 2)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in err
    assert not is_served(service_url(out))


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    """Two runs never share a database."""
    process = start(tmp_path, "OUT=o", FAKE_TRAINER="slow")
    wait_for_lines(tmp_path / "o/trainer/queries.jsonl", 1)
    code, _, err = run(tmp_path, "OUT=o")
    assert code == 2
    assert "Another make run is at work in o" in err
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_own_data_is_parted_into_a_copy_and_left_alone(tmp_path):
    """A folder of the user's own files is read only: the parted copy lies in the results, and the table names it."""
    mine = tmp_path / "kanji"
    mine.mkdir()
    (mine / "train.idx").write_bytes(b"pixels")
    code, out, _ = run(tmp_path, "DATA=kanji")
    assert code == 0
    assert [path.name for path in mine.iterdir()] == ["train.idx"]
    assert (tmp_path / "runs/auto-seed1-on-kanji/data/images").is_dir()
    assert "kanji" in next(line for line in out.splitlines() if line.strip().startswith("data set"))


def test_results_of_one_data_set_are_not_continued_with_another(tmp_path):
    """A database seeded from one data set never answers for the images of another."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.idx").write_bytes(name.encode())
        (tmp_path / name / "images").mkdir()
        (tmp_path / name / "labels").mkdir()
        card = {"name": name, "files": {"train.idx": name}, "redraw_seed": None}
        (tmp_path / name / "dataset.json").write_text(json.dumps(card))
    assert run(tmp_path, "OUT=o", "DATA=one", FAKE_TRAINER="fail")[0] == 65
    code, _, err = run(tmp_path, "OUT=o", "DATA=two")
    assert code == 2
    assert "o was begun with one, and two holds another data set" in err


@pytest.mark.parametrize(("said", "meant"), [({}, "training"), ({"redrawn_from": "all"}, "all")])
def test_a_redrawn_folder_is_prepared_as_its_card_says(tmp_path, said, meant):
    """`prepare`, which verifies the folder, is asked for the split that it holds; old cards mean training images."""
    for part in ("images", "labels"):
        (tmp_path / "split" / part).mkdir(parents=True)
    (tmp_path / "split/dataset.json").write_text(json.dumps({"name": "s", "files": {}, "redraw_seed": 7} | said))
    code, out, _ = run(tmp_path, "DATA=split")
    assert code == 0
    assert f"re-drawn under 7 from {meant}" in out


@pytest.mark.parametrize("empty", [True, False])
def test_missing_or_empty_data_folder_is_one_sentence(tmp_path, empty):
    """A wrong DATA is a sentence that says what to do, and nothing is fetched in its place."""
    if empty:
        (tmp_path / "nothing").mkdir()
    code, _, err = run(tmp_path, "DATA=nothing")
    assert code == 2
    assert err.startswith("make run: The data nothing are missing or empty")
    assert err.count("\n") == 1
