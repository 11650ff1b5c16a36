// Verifies an evidence bundle with the browser's own SHA-256 and Ed25519, and with nothing else.
//
// This is the third verifier. The first two are `label_service/log/verify.py` and `trainer/oracle/witness.py`; none of
// the three shares code with another, so that they find each other's mistakes. From the bundle and the pinned key alone
// it finds edits, deletions, insertions, reordering, wrong counts and a swapped key. It cannot find what only receipts
// show: a history that the key's holder signed anew, or an older state under its own head.
//
// Sources: RFC 6962, section 2.1 (tree); C2SP signed-note and tlog-checkpoint (head); RFC 8032 (Ed25519).

/** Something does not hold; the message is one sentence. */
export class NotVerified extends Error {}

const ORIGIN_PREFIX = "labelmeter/";
const DEEPEST = 100;
const AT_ONCE = 2000; // hashes or signatures that the browser computes at a time
const text = new TextEncoder();

function must(holds, otherwise) {
  if (!holds) throw new NotVerified(otherwise);
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

/**
 * Reads JSON more strictly than JSON.parse: no field twice, whole numbers only. `canonical` also demands the one way in
 * which an entry is written: no white space, fields in order, ASCII. Objects come back without a prototype.
 */
class Reader {
  constructor(source, canonical) {
    Object.assign(this, { source, canonical, at: 0 });
  }

  whole() {
    const value = this.value(0);
    this.space();
    if (this.at !== this.source.length) this.fail();
    return value;
  }

  fail() {
    throw new NotVerified("it is not JSON as it must be written");
  }

  space() {
    if (!this.canonical) while (" \n\r\t".includes(this.source[this.at] || "x")) this.at++;
  }

  take(character) {
    this.space();
    if (this.source[this.at] !== character) return false;
    this.at++;
    return true;
  }

  value(depth) {
    if (depth > DEEPEST) this.fail();
    this.space();
    const first = this.source[this.at];
    if (first === "{") return this.object(depth);
    if (first === "[") return this.list(depth);
    if (first === '"') return this.string();
    for (const [word, value] of [["true", true], ["false", false], ["null", null]]) {
      if (this.source.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    return this.number();
  }

  object(depth) {
    const found = Object.create(null);
    let before = null;
    this.at++;
    if (this.take("}")) return found;
    do {
      this.space();
      if (this.source[this.at] !== '"') this.fail();
      const name = this.string();
      if (name in found || (this.canonical && before !== null && !(before < name))) this.fail();
      before = name;
      if (!this.take(":")) this.fail();
      found[name] = this.value(depth + 1);
    } while (this.take(","));
    if (!this.take("}")) this.fail();
    return found;
  }

  list(depth) {
    const found = [];
    this.at++;
    if (this.take("]")) return found;
    do found.push(this.value(depth + 1));
    while (this.take(","));
    if (!this.take("]")) this.fail();
    return found;
  }

  string() {
    let end = this.at;
    do {
      end = this.source.indexOf('"', end + 1);
      if (end < 0) this.fail();
    } while (this.isEscaped(end));
    const raw = this.source.slice(this.at, end + 1);
    let value;
    try {
      value = JSON.parse(raw);
    } catch {
      this.fail();
    }
    if (this.canonical && ascii(value) !== raw) this.fail();
    this.at = end + 1;
    return value;
  }

  isEscaped(end) {
    let first = end;
    while (this.source[first - 1] === "\\") first--;
    return (end - first) % 2 === 1;
  }

  number() {
    const [digits] = /^-?(0|[1-9][0-9]{0,30})(?![0-9.eE])/.exec(this.source.slice(this.at, this.at + 40)) || this.fail();
    if (digits === "-0") this.fail();
    this.at += digits.length;
    const value = Number(digits);
    // Larger ones than a count can be were asked for and refused, in logs of the first version.
    return Number.isSafeInteger(value) ? value : BigInt(digits);
  }
}

/** Writes a string as an entry has it: everything beyond ASCII escaped. */
function ascii(value) {
  return JSON.stringify(value).replace(/[\u0080-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** Reads the text of a bundle. */
export function readBundle(source) {
  try {
    return new Reader(source, false).whole();
  } catch (error) {
    if (error instanceof NotVerified) throw new NotVerified("this is not an evidence bundle");
    throw error;
  }
}

// ---- Hashes, tree and signatures ------------------------------------------------------------------------------------

function bytesOf(base64, what) {
  try {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    if (base64Of(bytes) === base64) return bytes;
  } catch {
    // said below
  }
  throw new NotVerified(`${what} is not base64`);
}

function base64Of(bytes) {
  return btoa(String.fromCharCode(...bytes));
}

function join(...parts) {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

async function sha256(bytes) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

const nodeOf = (left, right) => sha256(join([1], left, right));

/** The tree of RFC 6962: for each power of two, the hashes of all complete subtrees of that many leaves. */
class Tree {
  static async over(leaves) {
    const levels = [[]];
    for (let first = 0; first < leaves.length; first += AT_ONCE) {
      const some = leaves.slice(first, first + AT_ONCE);
      levels[0].push(...(await Promise.all(some.map((leaf) => sha256(join([0], leaf))))));
    }
    for (let level = levels[0]; level.length > 1; level = levels.at(-1)) {
      const next = [];
      for (let first = 0; first + 1 < level.length; first += 2 * AT_ONCE) {
        const pairs = [];
        for (let left = first; left + 1 < Math.min(level.length, first + 2 * AT_ONCE); left += 2) {
          pairs.push(nodeOf(level[left], level[left + 1]));
        }
        next.push(...(await Promise.all(pairs)));
      }
      levels.push(next);
    }
    return Object.assign(new Tree(), { levels });
  }

  /** The root over the first `size` leaves: the complete subtrees of which it is made, joined from the right. */
  async root(size) {
    let root = null;
    let end = size;
    for (let level = 0; end > 0; level++) {
      const width = 2 ** level;
      if (Math.floor(end / width) % 2 === 0) continue;
      const peak = this.levels[level][end / width - 1];
      root = root ? await nodeOf(peak, root) : peak;
      end -= width;
    }
    return root ?? sha256(new Uint8Array());
  }
}

/** A public key as one line, NAME+ID+KEY. */
export class Key {
  static async read(line) {
    const [, name, id, encoded] = /^([^+\s]+)\+([0-9a-f]{8})\+(\S+)$/.exec(line.trim()) || [];
    must(name, "the key is written NAME+ID+KEY, and this is not");
    const typed = bytesOf(encoded, "the key");
    must(typed[0] === 1 && typed.length === 33, "the key is not an Ed25519 key");
    const hash = await sha256(join(text.encode(name + "\n"), typed));
    const hex = [...hash.slice(0, 4)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    must(hex === id, "the key's id does not belong to its name and key; a character is wrong");
    const ed25519 = await crypto.subtle.importKey("raw", typed.slice(1), "Ed25519", false, ["verify"]);
    return Object.assign(new Key(), { line: line.trim(), name, id: hash.slice(0, 4), ed25519 });
  }

  /** Whether a signature (key id, then 64 bytes) is this key's signature of a text. */
  async signed(message, signature) {
    if (signature.length !== 68 || !this.id.every((byte, n) => byte === signature[n])) return false;
    return crypto.subtle.verify("Ed25519", this.ed25519, signature.slice(4), text.encode(message));
  }

  headText(size, root) {
    return `${this.name}\n${size}\n${base64Of(root)}\n`;
  }

  /** The text of a note that this key has signed; null if it has not. */
  async textOf(note) {
    must(typeof note === "string" && note.length <= 100000 && !/[\0-\x09\x0b-\x1f]/.test(note), "the head is no note");
    const gap = note.lastIndexOf("\n\n");
    must(gap > 0 && note.endsWith("\n"), "the head has no signature");
    const message = note.slice(0, gap + 1);
    let own = 0;
    for (const line of note.slice(gap + 2, -1).split("\n")) {
      const [, name, encoded] = /^\u2014 (\S+) (\S+)$/.exec(line) || [];
      must(name, "the head has a malformed signature line");
      const signature = bytesOf(encoded, "a signature");
      must(signature.length > 4, "the head has a malformed signature line");
      if (name !== this.name || !this.id.every((byte, n) => byte === signature[n])) continue;
      must(await this.signed(message, signature), `the signature of ${name} does not hold`);
      own++;
    }
    return own > 0 ? message : null;
  }

  /** Reads a checkpoint that this key has signed; null if it has not. */
  async open(note) {
    const message = await this.textOf(note);
    if (message === null) return null;
    const lines = message.split("\n");
    must(lines.length === 4, "a head has three lines: origin, size, root");
    must(lines[0] === this.name, `the head is of ${lines[0]}, not of ${this.name}`);
    must(/^(0|[1-9][0-9]{0,14})$/.test(lines[1]), "the head's size is not a number");
    const root = bytesOf(lines[2], "the head's root");
    must(root.length === 32, "the head's root is not 32 bytes long");
    return { size: Number(lines[1]), root };
  }
}

/**
 * The keys of a log, oldest first: `{ key, end }`, where `end` is the number of the entry that replaced the key. An entry
 * replaces the key if the old key has signed the new one; from this entry on only the new key signs.
 */
class Keys {
  constructor(list) {
    this.list = list;
  }

  /** Reads the entries that replace the key; without any, the pinned key is the only one. */
  static async of(entries, pinned) {
    const list = [];
    for (const [seq, source] of entries.entries()) {
      if (!source.includes('"op":"key-rotated"')) continue;
      try {
        const entry = readEntry(source);
        if (entry.op === "key-rotated") await Keys.replace(list, entry, seq, pinned.name);
      } catch (error) {
        if (!(error instanceof NotVerified)) throw error;
        throw new NotVerified(`entry ${seq}: ${error.message}`);
      }
    }
    return new Keys(list.length ? list : [{ key: pinned, end: Infinity }]);
  }

  static async replace(list, entry, seq, name) {
    const { clock, ...said } = entry.detail ?? {};
    const parts = ["new_key", "old_key", "statement"];
    const whole = same(Object.keys(said).sort(), parts) && parts.every((part) => isText(said[part]));
    must(whole, "what it says of the log's key is malformed");
    must(entry.run === "guest", "it replaces the log's key under a run");
    const [old, next] = [await Key.read(said.old_key), await Key.read(said.new_key)];
    must(!list.length || list.at(-1).key.line === said.old_key, "it replaces a key that is not the log's");
    must(old.line === said.old_key && next.line === said.new_key && old.name === name && next.name === name, "it replaces the key of another log");
    must(!list.some(({ key }) => key.line === next.line) && old.line !== next.line, "it replaces the log's key by one that was replaced before");
    const signed = await old.textOf(said.statement);
    must(signed === `labelmeter/key-rotation\n${seq}\n${next.line}\n`, "the log's key has not signed that this key replaces it");
    if (!list.length) list.push({ key: old });
    list.at(-1).end = seq;
    list.push({ key: next, end: Infinity });
  }

  get newest() {
    return this.list.at(-1).key;
  }

  /** The pinned key and those that replaced it. */
  from(pinned) {
    const start = this.list.findIndex(({ key }) => key.line === pinned.line);
    must(start >= 0, `the log has other keys than ${pinned.line} and those that replaced it`);
    return new Keys(this.list.slice(start));
  }

  /** Reads a head that one of the keys has signed while it was the log's. */
  async open(note) {
    for (const { key, end } of [...this.list].reverse()) {
      const head = await key.open(note);
      if (head === null) continue;
      must(head.size <= end, `a head over ${head.size} entries is signed by a key replaced at entry ${end}`);
      return head;
    }
    throw new NotVerified(`the head is not signed by ${this.newest.name} with this key`);
  }

  async signed(size, root, signature) {
    for (const { key, end } of this.list) {
      if (size <= end && (await key.signed(key.headText(size, root), signature))) return true;
    }
    return false;
  }
}

// ---- The rules of the log -------------------------------------------------------------------------------------------

const count = (value) => Number.isSafeInteger(value) && value >= 0;
const isText = (value) => typeof value === "string";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const plain = (_, value) => (typeof value === "bigint" ? `${value}n` : value);
const same = (one, other) => JSON.stringify(one, plain) === JSON.stringify(other, plain);

const TEXTS = ["ts", "log_id", "run", "op", "outcome", "request_id"];
const COUNTS = ["v", "seq", "charged", "spent", "budget"];
const OUTCOMES = {
  "run-opened": ["opened"],
  "run-sealed": ["sealed"],
  "budget-changed": ["changed"],
  "token-created": ["created"],
  "token-revoked": ["revoked"],
  "key-rotated": ["rotated"],
  query: ["revealed", "replayed"],
  evaluation: ["evaluated", "replayed"],
};
const DONE = new Set(Object.values(OUTCOMES).flat());
const NEEDED = { opened: "evaluations_allowed", changed: "previous_budget", created: "token_budget", evaluated: "evaluation" };

function readEntry(source) {
  const entry = new Reader(source, true).whole();
  must(isObject(entry), "it is no JSON object");
  must(entry.v === 1 || entry.v === 2, `it is of version ${String(entry.v)}, and this page knows up to 2`);
  const texts = entry.v === 2 ? [...TEXTS, "label_commitment"] : TEXTS;
  const fields = Object.keys(entry).filter((name) => name !== "detail");
  must(same(fields.sort(), [...texts, ...COUNTS, "ids"].sort()), "its fields are not those of an entry");
  must(texts.every((name) => isText(entry[name])), "a field that must be text is not");
  must(COUNTS.every((name) => count(entry[name])), "a field that must be a count is not");
  const { ids, op, outcome } = entry;
  const whole = (id) => typeof id === "number" || typeof id === "bigint";
  must(Array.isArray(ids) && ids.every(whole), "its ids are not integers");
  must(new Set(ids).size === ids.length, "it names an id twice");
  must(Object.hasOwn(OUTCOMES, op), `it is of an unknown kind, ${op}`);
  const refused = !DONE.has(outcome) && (op === "query" || op === "evaluation");
  must(refused || OUTCOMES[op].includes(outcome), "its kind and outcome do not match");
  checkDetail(entry, refused);
  return entry;
}

function checkDetail(entry, refused) {
  const detail = entry.detail ?? {};
  must(isObject(detail), "its detail is no object");
  const needed = NEEDED[entry.outcome];
  must(!needed || count(detail[needed]), `its detail lacks ${needed}`);
  must((detail.test_commitment ?? null) === null || isText(detail.test_commitment), "its commitment to the test labels is no text");
  must((detail.opened_with ?? null) === null || isText(detail.opened_with), "the name of the token that it was opened with is no text");
  if (entry.op === "token-created" || entry.op === "token-revoked") must(isText(detail.token), "it names no token");
  if (entry.op === "token-created") {
    const { expires, token_evaluations: allowed } = detail;
    must(expires === null || isText(expires), "its token's end is no time");
    must(allowed === null || count(allowed), "its token's evaluations are not a count");
  }
  const points = detail.evaluation_budgets ?? [];
  must(Array.isArray(points) && points.every(count), "its evaluation budgets are not counts");
  must(detail.pool_size === undefined || (count(detail.pool_size) && detail.pool_size > 0), "its pool size is not a count");
  must(detail.clock === undefined || isText(detail.clock), "what its clock said is no text");
  if (entry.outcome === "evaluated") {
    const { correct, total } = detail;
    must(count(correct) && count(total) && total > 0 && correct <= total, "its evaluation has no result");
  }
  if (refused && entry.op === "query") {
    const rest = Object.keys(detail).filter((name) => name !== "clock");
    const hashed = count(detail.asked) && detail.asked > 0 && /^[0-9a-f]{64}$/.test(detail.asked_sha256 ?? "");
    const named = entry.ids.length > 0 && rest.length === 0;
    must(named || (hashed && entry.ids.length === 0), "it does not say what it refused");
  }
}

/** What the entries add up to. Each must follow from those before it. */
class Account {
  constructor(logId) {
    Object.assign(this, { logId, runs: new Map(), tokens: new Map(), labels: new Set(), entries: 0, queries: 0, evaluations: 0 });
    Object.assign(this, { commitment: null, testCommitment: null, poolSize: null, newest: "" });
  }

  add(entry) {
    const detail = { ...(entry.detail ?? {}) };
    must(entry.seq === this.entries, `it is numbered ${entry.seq}`);
    must(entry.log_id === this.logId, "it is of another log");
    this.bind(entry, detail);
    must(!(entry.ts < this.newest) || this.testCommitment === null, "it is older than the entry before it");
    delete detail.clock;
    this.checkToken(entry, detail);
    this.newest = entry.ts;
    const run = this.run(entry, detail);
    must(entry.budget === run.budget, `it says a budget of ${entry.budget}, and the run's is ${run.budget}`);
    this.charge(run, entry);
    if (entry.outcome === "evaluated") this.evaluate(run, detail);
    else if (entry.op === "evaluation" && entry.outcome === "replayed") {
      const known = run.results.some((result) => same(result, detail));
      must(Object.keys(detail).length === 0 || known, "it repeats an evaluation that the run never made");
    }
    if (entry.op === "run-sealed") {
      must(!run.sealed, "the run was sealed before");
      run.sealed = true;
    }
    run.replays += entry.outcome === "replayed";
    run.refusals += !DONE.has(entry.outcome);
    run.entries++;
    this.entries++;
    this.addToToken(entry, detail, run);
  }

  /** What a team's token grants holds over all runs that were opened with it. */
  checkToken(entry, detail) {
    const { op } = entry;
    if (op === "token-created" || op === "token-revoked") {
      must(entry.run === "guest", "it makes or ends a token under a run");
      const token = this.tokens.get(detail.token);
      if (op === "token-created") must(!token && detail.token !== "registration", "it makes a token whose name was used");
      else must(token && !token.revoked, "it revokes a token that does not stand");
      return;
    }
    const opened = op === "run-opened";
    const name = (opened ? detail.opened_with : this.runs.get(entry.run)?.openedWith) ?? null;
    const evaluated = entry.outcome === "evaluated";
    if (name === null || name === "registration" || !(opened || entry.charged || evaluated)) return;
    const token = this.tokens.get(name);
    must(token, `its run is opened with the token ${name}, which was never made`);
    const ended = token.revoked || (token.expires !== null && !(this.newest < token.expires));
    must(!ended, `the token ${name} had ended`);
    must(token.queries + entry.charged <= token.budget, `it reveals more than the token ${name} grants`);
    const within = !evaluated || token.allowed === null || token.evaluations < token.allowed;
    must(within, `it evaluates more often than the token ${name} grants`);
  }

  addToToken(entry, detail, run) {
    if (entry.op === "token-created") {
      const grants = { budget: detail.token_budget, allowed: detail.token_evaluations, expires: detail.expires };
      this.tokens.set(detail.token, { ...grants, queries: 0, evaluations: 0, revoked: false });
    } else if (entry.op === "token-revoked") this.tokens.get(detail.token).revoked = true;
    else if (this.tokens.has(run.openedWith)) {
      const token = this.tokens.get(run.openedWith);
      token.queries += entry.charged;
      token.evaluations += entry.outcome === "evaluated";
    }
  }

  /** All entries name one answer key, one commitment to the test labels and one size of the pool. */
  bind(entry, detail) {
    const named = entry.label_commitment ?? null;
    must(this.commitment === null || named === this.commitment, "it binds another answer key");
    if (this.commitment === null && named !== null) {
      let hash = [];
      try {
        hash = bytesOf(named, "");
      } catch {
        // said next
      }
      must(hash.length === 32, "its commitment is no hash");
    }
    this.commitment = named;
    if (entry.op !== "run-opened") return;
    const test = detail.test_commitment ?? null;
    must(this.runs.size === 0 || test === this.testCommitment, "it binds other test labels or class names");
    this.testCommitment = test;
    const size = detail.pool_size ?? this.poolSize;
    must(this.poolSize === null || size === this.poolSize, "it names another size of the pool");
    this.poolSize = size;
  }

  run(entry, detail) {
    if (entry.op === "run-opened") {
      must(!this.runs.has(entry.run), `run ${entry.run} is opened a second time`);
      this.runs.set(entry.run, {
        name: detail.name,
        budget: entry.budget,
        allowed: detail.evaluations_allowed,
        points: detail.evaluation_budgets ?? [],
        openedWith: detail.opened_with ?? null,
        labels: new Set(),
        results: [],
        replays: 0,
        refusals: 0,
        entries: 0,
        sealed: false,
      });
    }
    const run = this.runs.get(entry.run);
    must(run, `run ${entry.run} was never opened`);
    if (entry.op === "budget-changed") {
      must(detail.previous_budget === run.budget, "the budget it changes is not the run's");
      run.budget = entry.budget;
    }
    return run;
  }

  charge(run, entry) {
    const answered = entry.op === "query" && DONE.has(entry.outcome);
    const fresh = answered ? entry.ids.filter((id) => !run.labels.has(id)) : [];
    must(entry.charged === fresh.length, `it charges ${entry.charged}, and ${fresh.length} of its ids are new to the run`);
    must(entry.outcome !== "revealed" || fresh.length > 0, "it reveals nothing new");
    must(entry.outcome === "revealed" || fresh.length === 0, "it repeats an answer, and charges for it");
    must(fresh.length === 0 || !(run.sealed || run.results.length), "it reveals new labels to an evaluated or sealed run");
    for (const id of fresh) {
      run.labels.add(id);
      this.labels.add(id);
    }
    const spent = run.labels.size;
    must(entry.spent === spent, `it says ${entry.spent} spent, and the entries make ${spent}`);
    must(fresh.length === 0 || spent <= run.budget, "it reveals more than the run's budget");
    this.queries += fresh.length;
  }

  evaluate(run, detail) {
    const point = detail.evaluated_budget ?? null;
    if (run.points.length) {
      must(run.points.includes(point), `it evaluates ${point} labels, a point that the run never declared`);
      const made = run.results.some((result) => result.evaluated_budget === point);
      must(!made, `it evaluates ${point} labels a second time`);
    }
    must(!run.sealed, "it evaluates a run that was sealed");
    run.results.push(detail);
    must(run.results.length <= run.allowed, "the run had no evaluation left");
    must(detail.evaluation === run.results.length, "its evaluation has the wrong number");
    this.evaluations++;
  }
}

// ---- A bundle -------------------------------------------------------------------------------------------------------

const FIELDS = ["bundle", "checkpoint", "entries", "heads", "key", "pool_size"];

function checkForm(bundle) {
  const wrong = "this is not an evidence bundle";
  must(isObject(bundle) && same(Object.keys(bundle).sort(), FIELDS) && bundle.bundle === 1, wrong);
  must(isText(bundle.key) && isText(bundle.checkpoint) && count(bundle.pool_size), wrong);
  must(Array.isArray(bundle.entries) && bundle.entries.every(isText) && Array.isArray(bundle.heads), wrong);
  for (const head of bundle.heads) {
    must(isObject(head) && same(Object.keys(head).sort(), ["signature", "size"]), wrong);
    must(count(head.size) && isText(head.signature), wrong);
  }
}

/**
 * Verifies a bundle.
 *
 * @param bundle - as `readBundle` returns it.
 * @param pinned - the key's line as it was pinned, not taken from the bundle.
 * @param step - called with a sentence for each thing that holds, and with (sentence, done, of) while one is computed.
 * @returns the account of the log, and the head.
 * @throws NotVerified - the first thing that does not hold, with the number of its entry where there is one.
 */
export async function verify(bundle, pinned, step = () => {}) {
  checkForm(bundle);
  const key = await Key.read(pinned);
  const keys = await Keys.of(bundle.entries, key);
  // The pinned key leads to the one that signed this head, and this head covers the entries that name all others.
  const followed = keys.from(key);
  const { newest } = followed;
  must(bundle.key === newest.line, `the bundle names the key ${bundle.key}, and ${newest.line} is pinned`);
  const head = await followed.open(bundle.checkpoint);
  step(`The head over ${head.size.toLocaleString("en")} entries is signed by the key.`);
  // An entry is ASCII. Other text can be no leaf that was signed.
  const leaves = bundle.entries.map((entry) => (/^[\0-\x7f]*$/.test(entry) ? text.encode(entry) : new Uint8Array()));
  const tree = await Tree.over(leaves);
  const comparison = new Comparison(leaves.length);
  await comparison.addHead(tree, head);
  await comparison.addEarlierHeads(tree, keys, bundle.heads, head.size, step);
  const account = new Account(key.name.startsWith(ORIGIN_PREFIX) ? key.name.slice(ORIGIN_PREFIX.length) : key.name);
  let broken = null;
  try {
    for (const entry of bundle.entries) account.add(readEntry(entry));
  } catch (error) {
    if (!(error instanceof NotVerified)) throw error;
    broken = { seq: account.entries, reason: error.message };
  }
  comparison.judge(broken);
  step("The tree over the entries has the root that was signed.");
  const heads = bundle.heads.length;
  if (heads) step(`${heads.toLocaleString("en")} earlier ${heads === 1 ? "head was" : "heads were"} signed over the same entries.`);
  const poolSize = account.poolSize;
  must(poolSize === null || poolSize === bundle.pool_size, `the bundle says that the pool has ${bundle.pool_size} labels, and the log says ${poolSize}`);
  step("Every entry follows from those before it by the rules of the log.");
  return { account, head };
}

/** Signed heads and the entries. A head that does not fit shows that an entry under it was changed, not which. */
class Comparison {
  constructor(size) {
    Object.assign(this, { size, differences: [], fitting: [0] });
  }

  async addHead(tree, head) {
    const { size } = this;
    if (head.size > size) {
      this.differ(size, `it is missing; the bundle has ${size} entries, and its head was signed over ${head.size}`);
    } else if (head.size < size) {
      this.differ(head.size, `it was added; the bundle has ${size} entries, and its head was signed over ${head.size}`);
    } else if (base64Of(await tree.root(size)) !== base64Of(head.root)) {
      this.differ(size - 1, "it is not the one that the head was signed over");
    }
  }

  async addEarlierHeads(tree, keys, heads, size, step) {
    const sizes = [0, ...heads.map((head) => head.size), size];
    const rising = sizes.every((value, n) => n === 0 || value > sizes[n - 1]);
    must(!heads.length || rising, "the earlier heads of the bundle are not in order below its own head");
    for (let first = 0; first < heads.length; first += AT_ONCE) {
      step("Checking the earlier heads", first, heads.length);
      await Promise.all(heads.slice(first, first + AT_ONCE).map((head) => this.addEarlierHead(tree, keys, head)));
    }
  }

  async addEarlierHead(tree, keys, head) {
    const signature = bytesOf(head.signature, "a head's signature");
    if (head.size > this.size) return; // the end of the log is missing, which `addHead` has found
    if (await keys.signed(head.size, await tree.root(head.size), signature)) this.fitting.push(head.size);
    else this.differ(head.size - 1, "it is not the one that a head was signed over");
  }

  differ(last, reason) {
    this.differences.push({ last, reason });
  }

  /** Fails with the first entry that does not hold, or the range of entries that it is in. */
  judge(broken) {
    const [first] = this.differences.sort((one, other) => one.last - other.last);
    if (broken && (!first || broken.seq < first.last)) throw new NotVerified(`entry ${broken.seq}: ${broken.reason}`);
    if (!first) return;
    const since = this.fitting.reduce((most, size) => (size <= first.last ? Math.max(most, size) : most), 0);
    const range = since < first.last ? `, or one of those up to ${first.last}` : "";
    throw new NotVerified(`entry ${since}${range}: ${first.reason}`);
  }
}
