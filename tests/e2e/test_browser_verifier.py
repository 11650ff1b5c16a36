"""The verifier in the browser, in a real Chromium: it refuses every forgery that needs no receipts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead
from label_service.log.verify import verify
from label_service.settings import Settings
from tests.campaigns.tamper_matrix import LAST, Case, edited, honest_case, judge, rotated, trials
from tests.support.browser import open_page
from tests.support.datasets import make_idx_dataset
from tests.support.services import RunningService, run_service

ROOT = Path(__file__).parents[2]

Check = Callable[[str, str], str]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with some entries, which serves the page."""
    folder = tmp_path_factory.mktemp("service")
    data = make_idx_dataset(folder / "data")
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    with run_service(Settings(data=data, other_data=True, database_url=url, port=0)) as running:
        _, token = running.open_run(budget=20)
        running.client.post("/v1/labels:query", json={"ids": [1, 2, 3]}, headers=token)
        running.client.get("/label/5")
        yield running


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The log that the tamper matrix forges."""
    return honest_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def page(browser: Browser, service: RunningService) -> Iterator[Page]:
    """The page that verifies."""
    with open_page(browser) as opened:
        opened.goto(f"{service.base_url}/verify")
        yield opened


def press(page: Page) -> str:
    """Press the button and return the verdict."""
    page.evaluate("document.querySelector('#outcome').replaceChildren()")
    page.get_by_role("button", name="Verify").click()
    return page.locator(".verdict").inner_text()


@pytest.fixture
def check(page: Page) -> Check:
    """Give the page a file and a key, press the button, and return the verdict."""

    def check_file(bundle: str, key: str) -> str:
        chosen = {"name": "evidence.json", "mimeType": "application/json", "buffer": bundle.encode("utf-8", "replace")}
        page.set_input_files("#file", chosen)
        page.fill("#key", key)
        return press(page)

    return check_file


def test_an_honest_log_is_verified_and_counted(check: Check, page: Page, case: Case) -> None:
    """The counts are those of `verify`, run by run."""
    verdict = check(case.evidence.model_dump_json(), case.key.vkey)
    assert verdict.startswith("Verified\n"), verdict
    account = verify(case.evidence, case.key).runs
    rows = [row.inner_text().split("\t") for row in page.locator("#counts tbody tr").all()]
    assert {row[0]: [int(number) for number in row[2:6]] for row in rows} == {
        name: [run.queries, run.replays, run.refusals, run.evaluations] for name, run in account.items()
    }
    assert {row[0]: row[6] for row in rows} == {
        name: "sealed" if run.sealed else "open" for name, run in account.items()
    }


def test_every_forgery_that_needs_no_receipts_is_refused(check: Check, case: Case) -> None:
    """The tamper matrix: the browser refuses what `verify` refuses, and names the same entry."""
    tried = 0
    for trial in trials(case):
        if trial.with_receipts:
            continue
        judged = judge(trial, case.key)
        assert judged.found == trial.provable
        verdict = check(trial.evidence.model_dump_json(), case.key.vkey)
        named = (trial.attack, trial.place, trial.holds_key, verdict)
        assert verdict.startswith("Not verified\n" if trial.provable else "Verified\n"), named
        if judged.sentence and judged.sentence.startswith("entry "):
            assert judged.sentence.partition(":")[0].capitalize() in verdict, (named, judged.sentence)
        tried += trial.provable
    assert tried >= 30


def test_a_replaced_key_is_followed_from_the_pinned_one(check: Check, case: Case) -> None:
    """If the old key has signed the new one; with either key, and with no other."""
    new, other = SigningKey.generate(case.key.name), SigningKey.generate(case.key.name)
    bundle = rotated(case, case.signing_key, new).model_dump_json()
    for key in (case.key, new.verifier):
        assert check(bundle, key.vkey).startswith("Verified\n")
    assert check(bundle, other.verifier.vkey).startswith("Not verified\n")
    late = TreeHead.sign(case.signing_key, LAST + 2, TreeHead.open(json.loads(bundle)["checkpoint"], new.verifier).root)
    verdict = check(json.dumps(json.loads(bundle) | {"checkpoint": late.note}), case.key.vkey)
    assert verdict.startswith("Not verified\n") and "replaced at entry 12" in verdict


def signed(case: Case, entries: list[str]) -> str:
    """Return a bundle of these entries, signed by the log's own key."""
    return case.forge(entries, signed=True).model_dump_json()


def change(case: Case, at: int, **fields: Any) -> str:
    return signed(case, edited(list(case.evidence.entries), at, **fields))


def detail(case: Case, at: int, **fields: Any) -> str:
    entry = json.loads(case.evidence.entries[at])
    return change(case, at, detail=entry["detail"] | fields)


def at(case: Case, **fields: Any) -> int:
    """Return the number of the first entry with these fields."""
    entries = [json.loads(entry) for entry in case.evidence.entries]
    return next(n for n, entry in enumerate(entries) if all(entry[name] == value for name, value in fields.items()))


def test_every_rule_of_the_log_is_checked_by_the_browser_too(check: Check, case: Case) -> None:
    """Entries that break one rule, signed by the key's own holder: both verifiers refuse them, at the same entry."""
    entries = list(case.evidence.entries)
    opened, revealed, evaluated = (
        at(case, op="run-opened", seq=1),
        at(case, outcome="revealed"),
        at(case, outcome="evaluated"),
    )
    refused = at(case, outcome="unknown-id")
    loose = json.dumps(json.loads(entries[revealed]))
    twice = entries[revealed].replace('"v":2', '"v":2,"v":2')
    forged = [
        change(case, revealed, log_id="log-other"),
        change(case, revealed, label_commitment="A" * 43 + "="),
        change(case, revealed, ts="2000-01-01T00:00:00.000000Z"),
        change(case, revealed, v=3),
        change(case, revealed, extra=1),
        change(case, revealed, ids=[1, 1]),
        change(case, revealed, ids=["1"]),
        change(case, revealed, ids=[1.5]),
        change(case, revealed, charged=True),
        change(case, revealed, charged=0),
        change(case, revealed, spent=10**20),
        change(case, revealed, op="gift"),
        change(case, revealed, op="toString"),
        change(case, revealed, outcome="opened"),
        change(case, revealed, outcome="replayed"),
        change(case, revealed, budget=7),
        change(case, revealed, run="run-unknown"),
        change(case, revealed, ids=[1, 2, 4, 5, 6, 7, 8, 9], charged=8, spent=8),
        change(case, refused, detail={}),
        change(case, refused, detail={"asked": 1, "asked_sha256": "x"}),
        detail(case, opened, evaluations_allowed=0),
        detail(case, opened, evaluation_budgets=[3]),
        detail(case, opened, test_commitment="other"),
        detail(case, opened, pool_size=201),
        detail(case, opened, pool_size=0),
        detail(case, opened, opened_with=1),
        detail(case, evaluated, correct=51),
        detail(case, evaluated, total=0),
        detail(case, evaluated, evaluation=2),
        signed(case, [*entries[:revealed], loose, *entries[revealed + 1 :]]),
        signed(case, [*entries[:revealed], twice, *entries[revealed + 1 :]]),
        signed(case, [*entries[:revealed], "[" * 50_000, *entries[revealed + 1 :]]),
        signed(case, [*entries[:revealed], "NaN", *entries[revealed + 1 :]]),
        signed(case, [*entries[:revealed], "", *entries[revealed + 1 :]]),
        signed(case, [*entries, entries[-1]]),
        signed(case, [*entries[:opened], entries[0], *entries[opened + 1 :]]),
    ]  # fmt: skip
    for number, bundle in enumerate(forged):
        with pytest.raises(VerificationError) as found:
            verify(case.evidence.model_validate_json(bundle), case.key)
        verdict = check(bundle, case.key.vkey)
        assert verdict.startswith("Not verified\n"), (number, verdict, str(found.value))
        assert "could not do it" not in verdict, (number, verdict)
        place = str(found.value).partition(":")[0]
        assert place.capitalize() in verdict, (number, verdict, str(found.value))


def test_bundles_that_are_none_are_refused_in_a_sentence(check: Check, case: Case) -> None:
    """Whatever the file holds, the page says `not verified`, and why."""
    honest = json.loads(case.evidence.model_dump_json())
    text = json.dumps(honest)
    other = SigningKey.generate(case.key.name)
    empty = TreeHead.sign(case.signing_key, 0, MerkleTree().root())
    bundles = [
        "", "no JSON", "[]", "null", "[" * 100_000, '{"bundle": 1}', text[:-1], text + "x",
        json.dumps(honest | {"bundle": 2}), json.dumps(honest | {"extra": 1}), json.dumps(honest | {"entries": [1]}),
        json.dumps(honest | {"checkpoint": 5}), json.dumps(honest | {"heads": [{"size": 1}]}),
        json.dumps(honest | {"heads": honest["heads"][::-1]}),
        json.dumps(honest | {"heads": [honest["heads"][0] | {"size": 2}, *honest["heads"][1:]]}),
        json.dumps(honest | {"pool_size": 5000}),
        json.dumps(honest | {"checkpoint": "x"}), json.dumps(honest | {"checkpoint": honest["checkpoint"] + "\n"}),
        json.dumps(honest | {"checkpoint": empty.note}),
        text.replace('"bundle": 1', '"bundle": 1, "bundle": 1'),
    ]  # fmt: skip
    for number, bundle in enumerate(bundles):
        verdict = check(bundle, case.key.vkey)
        assert verdict.startswith("Not verified\n"), (number, verdict)
        assert "could not do it" not in verdict, (number, verdict)
    for key in ("x", case.key.vkey[:-4], other.verifier.vkey, case.key.vkey.replace("+", "+0", 1)):
        assert check(text, key).startswith("Not verified\n")


def test_a_true_bundle_without_a_pinned_key_says_so(check: Check, case: Case) -> None:
    """A bundle proves nothing by a key that it brings itself."""
    verdict = check(case.evidence.model_dump_json(), "")
    assert verdict.startswith("Verified, with a key that nobody pinned\n")


def test_the_live_log_is_fetched_and_verified(page: Page, service: RunningService) -> None:
    """One button: entries and signed head are fetched, verified and counted; another key is refused."""
    page.get_by_label("This service's log, as it is now").check()
    page.fill("#key", service.service.log.verifier.vkey)
    verdict = press(page)
    assert verdict.startswith("Verified\n") and "4 queries" in verdict and "4 distinct labels" in verdict
    assert "own counts are the same" in page.locator(".steps").inner_text()
    page.fill("#key", SigningKey.generate(service.service.log.verifier.name).verifier.vkey)
    assert press(page).startswith("Not verified\n")


def test_a_live_log_of_several_pages_is_verified(browser: Browser, service: RunningService) -> None:
    """2,500 entries more, all by one client: the pages are put together under one head."""
    for number in range(2_500):
        service.client.get(f"/label/{number % 50}")
    with open_page(browser) as page:
        page.goto(f"{service.base_url}/verify")
        page.fill("#key", service.service.log.verifier.vkey)
        verdict = press(page)
        assert verdict.startswith("Verified\n") and f"{service.service.log.head.size:,} entries" in verdict


def changing(old: str, new: str) -> Callable[[Route], None]:
    """Return a handler that lets the service answer and changes the answer."""

    def answer(route: Route) -> None:
        true = route.fetch().text()
        assert old in true or "after=" in route.request.url
        route.fulfill(body=true.replace(old, new, 1), content_type="application/json")

    return answer


def test_a_file_dropped_on_the_page_is_verified(page: Page, case: Case) -> None:
    """A drop chooses the file and the way of verifying it, as the field for files does."""
    dropping = """(bundle) => {
        const given = new DataTransfer();
        given.items.add(new File([bundle], "dropped.json"));
        const event = new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
        document.getElementById("drop").dispatchEvent(event);
    }"""
    page.get_by_label("This service's log, as it is now").check()
    page.fill("#key", case.key.vkey)
    page.evaluate(dropping, case.evidence.model_dump_json())
    assert press(page).startswith("Verified\n")
    assert "dropped.json read." in page.locator(".steps").inner_text()
    page.evaluate(dropping, case.evidence.model_dump_json().replace("charged", "changed", 1))
    assert press(page).startswith("Not verified\n")


def test_a_service_that_miscounts_is_found(browser: Browser, service: RunningService) -> None:
    """A summary that is not the log's, or an entry changed on the way, is no verified log."""
    changes = [
        ("**/v1/log/summary", '"queries":', '"queries":1'),
        ("**/v1/log/evidence*", '\\"charged\\":3', '\\"charged\\":2'),
    ]
    for path, old, new in changes:
        with open_page(browser) as page:
            page.route(path, changing(old, new))
            page.goto(f"{service.base_url}/verify")
            assert press(page).startswith("Not verified\n")


def test_published_records_verify_in_the_browser(check: Check) -> None:
    """Logs of the first versions, too."""
    runs = sorted(ROOT.glob("records/*/runs/*/evidence.json"))
    assert runs
    for evidence in (runs[0], runs[-1]):
        key = (evidence.parent / "log-key.txt").read_text().strip()
        assert check(evidence.read_text(), key).startswith("Verified\n")


def test_the_browsers_verifier_shares_no_code_and_asks_nobody(service: RunningService) -> None:
    """It imports nothing and fetches nothing: a bundle and a key go in, an account or a sentence comes out."""
    source = service.client.get("/static/log_verifier.js").text
    assert "import " not in source and "fetch(" not in source and "http" not in source
    assert leaf_hash(b"") and "subtle.digest" in source and '"Ed25519"' in source
