// Keeps a page as new as the log. The service says how long the log is; this fetches the page again and exchanges the
// parts marked data-live. It also gives the commands their Copy buttons. Without script, reloading does the same.

const SHORTEST_MS = 2000; // between two fetches of the page
const RETRY_MS = 30000; // after the service had no room for another watcher
const status = document.querySelector(".live");
let shown = Number(document.body.dataset.size);
let wanted = shown;
let timer = null;
let fetched = 0;

function commands() {
  // The service does not know the name and the scheme under which a proxy shows it; the browser does.
  const { base, root } = document.body.dataset;
  for (const code of document.querySelectorAll("[data-command]")) {
    code.textContent = code.textContent.replaceAll(base, location.origin + root);
    const button = code.closest(".command").querySelector("[data-copy]");
    if (!navigator.clipboard) continue; // only pages over https and on localhost have one
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
}

function keys(part) {
  return new Set([...part.querySelectorAll("[data-key]")].map((row) => row.dataset.key));
}

function exchange(page) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(part.id);
    if (!next || next.innerHTML === part.innerHTML) continue;
    const before = keys(part);
    for (const row of next.querySelectorAll("[data-key]")) row.classList.toggle("new", !before.has(row.dataset.key));
    // Where the reader is stays as it is: the focus, what is unfolded, and how far a table is scrolled.
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const unfolded = [...part.querySelectorAll("details")].map((details) => details.open);
    const scrolled = [...part.querySelectorAll(".wide")].map((wide) => wide.scrollLeft);
    part.replaceChildren(...next.childNodes);
    part.querySelectorAll("details").forEach((details, n) => (details.open = unfolded[n] ?? false));
    part.querySelectorAll(".wide").forEach((wide, n) => (wide.scrollLeft = scrolled[n] ?? 0));
    if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

async function renew() {
  timer = null;
  if (document.hidden) return; // when the page is looked at again
  fetched = Date.now();
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const size = Number(page.body.dataset.size);
  exchange(page);
  const added = size - shown;
  if (added > 0) status.textContent = `${added.toLocaleString("en")} new ${added === 1 ? "entry" : "entries"}`;
  shown = size;
  if (wanted > shown) schedule();
}

function schedule() {
  timer ??= setTimeout(renew, Math.max(0, fetched + SHORTEST_MS - Date.now()));
}

function watch() {
  const events = new EventSource(`${document.body.dataset.events}?seen=${shown}`);
  events.addEventListener("open", () => {
    status.dataset.state = "on";
    status.textContent ||= "live";
  });
  events.addEventListener("size", (event) => {
    wanted = JSON.parse(event.data).size;
    if (wanted !== shown) schedule();
  });
  events.addEventListener("error", () => {
    status.dataset.state = "off";
    status.textContent = "";
    if (events.readyState === EventSource.CLOSED) setTimeout(watch, RETRY_MS);
  });
}

commands();
if (document.body.dataset.events) {
  watch();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && wanted !== shown) schedule();
  });
}
