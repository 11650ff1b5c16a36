"""Links resolve, commands exist, and published numbers are those of the records."""

import json
import os
import re
import shlex
import subprocess

import pytest
import yaml
from typer.main import get_command

from label_service.cli import app as service_app
from scripts import counts
from scripts.errors import RunError
from scripts.options import LeaderboardOptions, MakeRunOptions, StudyOptions, read_options
from scripts.results_page import CURVE, CURVE_RECORD, PAGE, fill, published_curve
from scripts.study import published, tables
from scripts.study.records import read_results
from tests.docs import PAGES, ROOT, commands, read, rows
from trainer.cli import app as trainer_app
from trainer.records.progress import duration
from trainer.records.run_records import read_result

VARIABLES = {"run": MakeRunOptions, "study": StudyOptions, "leaderboard": LeaderboardOptions}
PROGRAMS = {"label_service": service_app, "trainer": trainer_app}
COMMANDS = sorted({command for page in PAGES for command in commands(read(page))})
LEARNING_CURVE = "records/2026-11-25_learning-curve"


def anchors(text):
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_heading(page):
    """No relative link of any page is dead."""
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not heading or heading in anchors(target.read_text(encoding="utf-8")), link


def test_index_leads_to_every_page():
    """A page that the index does not name is a page that nobody finds."""
    links = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#]+)", read("docs/README.md"))}
    assert {path for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"} <= links


def test_the_curve_in_the_reports_is_that_of_the_record():
    """`make results` writes it; a newer record must not leave an older curve in the reports."""
    assert read(CURVE) == published_curve(ROOT / CURVE_RECORD)


def test_readme_is_short_and_its_picture_small():
    """What a stranger reads and loads first."""
    assert len(read("README.md").splitlines()) <= 200
    assert (ROOT / "docs/pictures/report.png").stat().st_size <= 300_000


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_documentation_exists(command):
    """Bash can parse it; the program, make or compose knows its options, targets and variables."""
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        program = get_command(PROGRAMS[words[2]])
        with program.make_context(words[2], [words[3]]) as context:
            _, stage, rest = program.resolve_command(context, [*words[3:]])
            stage.make_context(words[3], list(rest), parent=context).close()
    elif words[0] == "make":
        # No variable of a make that runs these tests comes in.
        bare = {"PATH": os.environ["PATH"]}
        made = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, env=bare, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        targets = [word for word in words[1:] if "=" not in word]
        if targets[0] in VARIABLES:
            read_options(VARIABLES[targets[0]], [word for word in words[1:] if "=" in word])
    elif words[:2] == ["docker", "compose"]:
        services = yaml.safe_load(read("docker-compose.yml"))["services"].values()
        profiles = [profile for service in services for profile in service.get("profiles", [])]
        assert words[2:] == ["up"] or (words[2::2] == ["--profile", "up"] and words[3] in profiles)


def test_variables_of_make_run_are_its_options():
    """The table of variables has each declared one and no other."""
    described = {row[0].strip("`=") for row in rows("docs/running.md", "Variables")}
    assert {name.upper() for name in MakeRunOptions.model_fields} == described


def test_variables_of_the_containers_are_in_the_compose_file():
    """Each variable of the table is one that compose passes on."""
    names = re.findall(r"`([A-Z_]+)`", " ".join(row[0] for row in rows("docs/containers.md", "Settings")))
    assert len(names) > 5
    assert all(f"${{{name}:-" in read("docker-compose.yml") for name in names)


def test_tables_of_results_are_those_of_the_records():
    """`make results` would change nothing, and every record is on the page: none was thrown away."""
    page = read(PAGE)
    assert fill(page, ROOT) == page
    records = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("records/*/record.json")}
    assert records == set(re.findall(r"<!-- table 1 of (\S+) -->", page))


def test_a_changed_number_would_be_noticed():
    """The twin: one digit of a table is changed, and the page is no longer what the records make."""
    page = read(PAGE)
    assert fill(page.replace("90.53 ±", "91.53 ±"), ROOT) == page


def check_pages(root):
    """Compare the pages of a folder with all records, as `make verify-records` does; return what each was found on."""
    return {
        path.parent.name: published.check(root, path.parent, read_results(path.parent))
        for path in sorted(ROOT.glob("records/*/record.json"))
    }


def test_numbers_of_the_pages_are_those_of_the_records():
    """Every record is on the page of results, and the README stands on two of them."""
    found = check_pages(ROOT)
    assert all("docs/results.md" in pages for pages in found.values())
    assert [name for name, pages in found.items() if "README.md" in pages] == [
        "2026-11-25_default-run",
        "2026-11-25_learning-curve",
    ]


def own_numbers():
    """Yield place and text of each decimal number of the README, but for those of other people's rows."""
    for line in re.finditer(r"^.*$", read("README.md"), re.MULTILINE):
        if line[0].startswith("|") and "](records/" not in line[0]:
            continue
        for number in re.finditer(r"(?<![\d./-])\d+\.\d+(?=%| ±|\*\*| \|)", line[0]):
            yield line.start() + number.start(), number[0]


@pytest.mark.parametrize(("place", "number"), list(own_numbers()))
def test_a_changed_number_of_the_readme_is_noticed(tmp_path, place, number):
    """An attacker's edit of any number of ours, by a little and by a lot."""
    text = read("README.md")
    for changed in (f"{float(number) + 2:.{len(number.partition('.')[2])}f}", number[:-1] + str(9 - int(number[-1]))):
        (tmp_path / "README.md").write_text(text[:place] + changed + text[place + len(number) :])
        with pytest.raises(RunError, match=r"README\.md"):
            check_pages(tmp_path)


CHANGES = {
    "minutes of another profile": ("27 to 28 min, two CPU cores, profile `curve`", "profile `curve`", "profile `cpu`"),
    "minutes": ("27 to 28 min", "27", "20"),
    "number of labels": ("from 400 of its", "400", "300"),
    "number of runs": ("the mean of five runs", "five", "ten"),
    "number of seeds": ("default, 5 seeds", "5", "9"),
    "no longer a mean": ("**A mean of 90.5%", "A mean of 90.5%", "More than 90.0%"),
    "no headline": ("**A mean of 90.5%", "A mean of", "Up to"),
    "minutes of a run": ("90.11%, 30 min", "30", "10"),
    "an accuracy of no record": ("One part does not help", "One part", "Up to 95% is possible. One part"),
    "a row in other words": ("27 to 28 min", "27 to 28 min", "quick"),
}


@pytest.mark.parametrize(("where", "old", "new"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_word_of_the_readme_is_noticed(tmp_path, where, old, new):
    """What the numbers are of."""
    text = read("README.md")
    assert where in text
    (tmp_path / "README.md").write_text(text.replace(where, where.replace(old, new), 1))
    with pytest.raises(RunError, match=r"README\.md"):
        check_pages(tmp_path)


def test_a_changed_number_of_the_results_is_noticed(tmp_path):
    """In a table, and in the text beside it."""
    text = read(PAGE)
    (tmp_path / "docs").mkdir()
    for old, new in (("| 90.53 ± 0.49 (5) |", "| 92.53 ± 0.49 (5) |"), ("mean is 89.92 to", "mean is 90.02 to")):
        assert old in text
        (tmp_path / PAGE).write_text(text.replace(old, new))
        with pytest.raises(RunError, match=r"docs/results\.md"):
            check_pages(tmp_path)


def test_more_than_90_percent_is_claimed_of_a_mean_only():
    """The 95% interval of the default's mean begins below 90, so a single run may be below; nothing may say more."""
    default = read_results(ROOT / LEARNING_CURVE).arms[0]
    assert tables.interval(list(default.percent_at(400).values()))[0] < 90
    pages = [*PAGES, "Makefile", "pyproject.toml", "docker-compose.yml"]
    pages += [path.relative_to(ROOT).as_posix() for room in ("label_service", "trainer", "scripts")
              for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    for page in pages:
        for sentence in re.split(r"(?<=[.:]) |\n\n", re.sub(r"\s*\n(?! *\n)", " ", read(page))):
            claim = re.search(r"\b(above|over|more than|exceeds|beyond) 90\b(?!\.\d)", sentence, re.IGNORECASE)
            assert not claim or "mean" in sentence, f"{page}: {sentence}"


def test_half_an_hour_is_what_a_run_of_the_default_profile_took():
    """The README's words for the time are of profile `cpu`, the default, and not of a part of another."""
    arm = read_results(ROOT / "records/2026-11-25_default-run").arms[0]
    assert (arm.profile, round(arm.runs[0].points[-1].seconds / 60)) == ("cpu", 30)
    assert read("README.md").count("half an hour") == 2


def test_closing_tables_are_those_of_the_records_run():
    """The guide's table has the accuracy and times of the recorded run, and the README's is a part of it."""
    (whole,), (part,) = (
        re.findall(r"```text\n(.*?)```", read(page), re.DOTALL) for page in ("docs/running.md", "README.md")
    )
    result = read_result(ROOT / "records/2026-11-25_default-run/runs/uncertain-clusters-seed41")
    shown = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in whole.splitlines() if line.startswith("  "))
    assert shown["test accuracy, by the log"] == counts.format_accuracy(result.evaluation)
    assert {name: shown[name] for name in result.stage_seconds} == {
        name: duration(seconds) for name, seconds in result.stage_seconds.items()
    }
    assert set(part.splitlines()) <= set(whole.splitlines())


def test_the_default_run_predicts_what_the_curve_has_at_its_budget():
    """By the hash of the predictions in two signed logs, one of which charged 400 labels and no more."""
    hashes = set()
    for record, charged, budget in (("records/2026-11-25_default-run", 400, None), (LEARNING_CURVE, 1000, 400)):
        bundle = json.loads(read(f"{record}/runs/uncertain-clusters-seed41/evidence.json"))
        entries = [json.loads(entry) for entry in bundle["entries"]]
        assert sum(entry["charged"] for entry in entries) == charged
        details = [entry["detail"] for entry in entries if entry["op"] == "evaluation"]
        hashes |= {detail["predictions_sha256"] for detail in details if detail["evaluated_budget"] == budget}
    assert len(hashes) == 1
