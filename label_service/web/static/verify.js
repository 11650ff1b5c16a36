// The page that verifies: gets a bundle from this service or from a file, hands it to log_verifier.js, shows the verdict.

import { NotVerified, readBundle, verify } from "./log_verifier.js";

const PAGE = 1000; // entries that the service answers at once
const LARGEST_FILE = 512 * 1024 * 1024;
const form = document.getElementById("verify");
const outcome = document.getElementById("outcome");
const counts = document.getElementById("counts");
const file = document.getElementById("file");
const drop = document.getElementById("drop");
const key = document.getElementById("key");
const button = form.querySelector("button");
const number = (value) => value.toLocaleString("en");

/** Makes an element. Text is only ever set as text: names of runs are strangers' words. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The list of what was done, one line each; the last may still be going on. */
class Steps {
  constructor() {
    this.list = element("ul", { class: "steps" });
    this.current = null;
    outcome.replaceChildren(this.list);
    counts.replaceChildren();
  }

  say(sentence, done, of) {
    const going = of !== undefined;
    this.current ??= this.list.appendChild(element("li"));
    this.current.className = going ? "now" : "";
    this.current.textContent = going ? `${sentence}: ${number(done)} of ${number(of)}` : sentence;
    if (!going) this.current = null;
  }

  fail(sentence) {
    this.current?.remove();
    this.list.append(element("li", { class: "bad" }, sentence));
  }
}

async function ask(url) {
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) throw new NotVerified(`the service did not answer ${new URL(url, location.href).pathname}`);
  return answer.text();
}

/** Fetches the log under one signed head, page by page. */
async function fetchLog(steps) {
  let whole = null;
  let query = `limit=${PAGE}`;
  for (;;) {
    const page = readBundle(await ask(`${form.dataset.evidence}?${query}`));
    const { next, ...part } = page;
    if (!whole) whole = part;
    else {
      for (const name of ["key", "checkpoint", "pool_size"]) {
        if (part[name] !== whole[name]) throw new NotVerified(`the service's pages name more than one ${name}`);
      }
      for (const entry of part.entries) whole.entries.push(entry);
      for (const head of part.heads) whole.heads.push(head);
    }
    const size = Number(whole.checkpoint.split("\n")[1]);
    if (next === null) break;
    if (!(next >= whole.entries.length - 1)) throw new NotVerified("the service's pages do not go on");
    steps.say("Fetching entries", whole.entries.length, size);
    query = `limit=${PAGE}&after=${next}&size=${size}`;
  }
  steps.say(`${number(whole.entries.length)} entries and the signed head fetched.`);
  return whole;
}

async function readFile(steps) {
  const [chosen] = file.files;
  if (!chosen) throw new NotVerified("no file is chosen");
  if (chosen.size > LARGEST_FILE) throw new NotVerified("the file has more than 512 MiB");
  const bundle = readBundle(await chosen.text());
  steps.say(`${chosen.name} read.`);
  return bundle;
}

/** Compares the counts with those that the service itself gives, if the log has not grown since. */
async function compareSummary(account, steps) {
  const summary = readBundle(await ask(form.dataset.summary));
  if (summary.entries !== account.entries) return;
  const told = new Map(summary.runs.map((run) => [run.run_id, run]));
  const fits =
    told.size === account.runs.size &&
    summary.queries === account.queries &&
    summary.distinct_labels_revealed_to_anybody === account.labels.size &&
    [...account.runs].every(([id, run]) => {
      const other = told.get(id);
      return (
        other?.queries === run.labels.size &&
        other.replays === run.replays &&
        other.refusals === run.refusals &&
        other.evaluations === run.results.length
      );
    });
  if (!fits) throw new NotVerified("the counts that the service gives are not those of its log");
  steps.say("The service's own counts are the same.");
}

function showVerdict(good, title, ...sentences) {
  outcome.append(element("p", { class: `verdict ${good ? "good" : "bad"}` }, element("b", {}, title), ...sentences));
}

function showCounts({ runs }) {
  const columns = ["Run", "Name", "Queries", "Replays", "Refusals", "Evaluations", "State"];
  const head = element("tr", {}, ...columns.map((name, n) => element("th", { scope: "col", class: n > 1 && n < 6 ? "n" : "" }, name)));
  const body = element("tbody");
  for (const [id, run] of runs) {
    const numbers = [run.labels.size, run.replays, run.refusals, run.results.length];
    body.append(
      element(
        "tr",
        {},
        element("th", { scope: "row" }, id),
        element("td", { class: "name", dir: "auto" }, String(run.name ?? "")),
        ...numbers.map((value) => element("td", { class: "n" }, number(value))),
        element("td", {}, run.sealed ? "sealed" : run.results.length ? "evaluated" : "open"),
      ),
    );
  }
  const caption = element("caption", { class: "hidden" }, "Counts by run, from the verified entries");
  const table = element("table", {}, caption, element("thead", {}, head), body);
  counts.replaceChildren(
    element("h2", {}, "Counts by run"),
    element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Counts by run" }, table),
  );
}

async function run() {
  const live = form.elements.source.value === "live";
  const steps = new Steps();
  try {
    if (!globalThis.crypto?.subtle) {
      throw new NotVerified("the browser lends its cryptography to pages over https and on localhost alone, and this is neither");
    }
    const bundle = live ? await fetchLog(steps) : await readFile(steps);
    const pinned = key.value.trim();
    const { account, head } = await verify(bundle, pinned || bundle.key, (...said) => steps.say(...said));
    if (live) await compareSummary(account, steps);
    showVerdict(
      true,
      pinned ? "Verified" : "Verified, with a key that nobody pinned",
      `${number(head.size)} entries, ${number(account.queries)} queries, ${number(account.labels.size)} distinct labels revealed to anybody.`,
      pinned ? "" : ` The key is the ${live ? "service's" : "file's"} own word: paste the one that you kept, or anybody could have signed this.`,
    );
    showCounts(account);
  } catch (error) {
    // A sentence of ours says what does not hold. Anything else is a fault of this page or browser, and no verdict.
    const known = error instanceof NotVerified;
    const sentence = known ? error.message : `this browser could not do it (${error.name}: ${error.message})`;
    steps.fail(sentence[0].toUpperCase() + sentence.slice(1) + ".");
    showVerdict(false, "Not verified", sentence[0].toUpperCase() + sentence.slice(1) + ".");
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  await run();
  button.disabled = false;
  button.focus();
});

const choose = () => (form.elements.source.value = "file");
file.addEventListener("change", choose);
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) {
      file.files = event.dataTransfer.files;
      choose();
    }
  });
}
