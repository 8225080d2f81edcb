// Text from the server and from people reaches the page only through textContent: nothing in it is ever read as markup.

const HEADINGS = { analyze_user: "The user", analyze_item: "The item", match: "How they fit", think: "Thoughts" };
const HISTORY = [{ title: "Alien (1979)", at: 1 }, { title: "Speed (1994)", at: 0.25, review: "All noise." }];
const ITEMS = [
  { title: "Aliens (1986)", average: 0.78, count: 284, categories: "Action, Sci-Fi" },
  { title: "Fargo (1996)", average: 0.8, count: 508, categories: "Crime, Drama" },
];

const $ = (selector, within = document) => within.querySelector(selector);
const clone = (id) => $(`#${id}`).content.cloneNode(true);
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const show = (node, shown) => { node.hidden = !shown; };
const number = (x, digits = 2) => String(Number(x.toFixed(digits)));
const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const say = (text) => { $("#live").textContent = text; };

let model; // what is served: /v1/model
const session = (() => { try { return sessionStorage; } catch { return null; } })(); // null where storing is forbidden
let key = session?.getItem("reczero-key") ?? null;

// --- asking the server -----------------------------------------------------------------------------------------------

class Problem extends Error {
  constructor(message, { retry = false, status = 0 } = {}) {
    super(message);
    Object.assign(this, { retry, status });
  }
}

async function ask(path, { body, signal } = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?", { retry: true });
  }
  if (response.ok) return response;
  const { status } = response;
  if (status === 401) {
    wantKey();
    throw new Problem("The server asks for a key.", { status, retry: true });
  }
  if (status === 429) {
    const seconds = Number(response.headers.get("Retry-After"));
    throw new Problem(`The server is busy. Try again in ${seconds ? counted(seconds, "second") : "a moment"}.`, { status, retry: true });
  }
  const told = await response.json().then(({ detail }) => String(detail), () => `it answered ${status}`);
  throw new Problem(status < 500 ? told : `The server could not answer: ${told}`, { status, retry: status >= 500 });
}

async function* events(response) {
  const decoder = new TextDecoder();
  let text = "";
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const of = (name) => block.split(/\r?\n/).find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (of("data")) yield [of("event"), JSON.parse(of("data"))];
    }
  }
}

// --- choosing from the data set --------------------------------------------------------------------------------------

let boxes = 0;

/** A combobox over what `path` finds. read: the answer's entries as {value, label, note}. chosen(): called on a change. */
class Combobox {
  constructor(root, label, path, read, chosen = () => {}) {
    root.append(clone("combobox"));
    Object.assign(this, { path, read, chosen, input: $("input", root), list: $("ul", root), found: [], active: -1, turn: 0 });
    $("span", root).textContent = label;
    this.list.id = `list-${++boxes}`;
    this.list.setAttribute("aria-label", label);
    this.input.setAttribute("aria-controls", this.list.id);
    this.input.placeholder = "Type to search";
    this.input.addEventListener("input", () => {
      this.take(null);
      this.search(this.input.value, 120);
    });
    this.input.addEventListener("keydown", (event) => this.press(event));
    this.input.addEventListener("click", () => {
      if (!this.list.hidden) return;
      if (this.value) this.input.select(); // typing replaces it
      this.search(this.value ? "" : this.input.value);
    });
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("blur", () => this.close());
    this.list.addEventListener("mousedown", (event) => event.preventDefault()); // or the input would lose the focus
    this.list.addEventListener("click", (event) => this.pick([...this.list.children].indexOf(event.target.closest("li"))));
    this.take(null);
  }

  get value() { return this.entry?.value ?? null; }

  take(entry) {
    const changed = entry?.value !== this.entry?.value;
    this.entry = entry;
    this.input.setCustomValidity(entry ? "" : "Choose one from the list.");
    if (entry) this.input.value = entry.label;
    if (changed) this.chosen(entry);
  }

  /** Resolves when what was found is shown, unless something newer was searched meanwhile. */
  search(text, wait = 0) {
    const turn = ++this.turn;
    this.searching = (async () => {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (turn !== this.turn) return;
      const found = await this.find(text).catch((problem) => problem);
      if (turn !== this.turn) return;
      this.found = found instanceof Error ? [] : found;
      const said = found instanceof Error ? found.message : found.length ? "" : "Nothing is found.";
      this.list.replaceChildren(...this.found.map((entry) => make("li", { role: "option", "aria-selected": "false" },
        make("span", { dir: "auto" }, entry.label), make("small", {}, entry.note))),
        ...(said ? [make("li", { role: "option", "aria-disabled": "true" }, said)] : []));
      [...this.list.children].forEach((option, place) => { option.id = `${this.list.id}-${place}`; });
      this.open(true);
      const now = this.found.findIndex(({ value }) => value === this.value);
      this.move(now < 0 && text ? 0 : now);
      say(said || `${this.found.length} found`);
    })();
    return this.searching;
  }

  async find(text) { return this.read(await (await ask(`${this.path}?q=${encodeURIComponent(text.trim())}`)).json()); }

  open(open) {
    show(this.list, open);
    this.input.setAttribute("aria-expanded", String(open));
    if (!open) this.move(-1);
  }

  close() {
    this.turn++; // what is still searched must not open it again
    this.searching = null;
    this.open(false);
  }

  move(place) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = this.found.length ? place : -1;
    const option = this.active < 0 ? null : this.list.children[this.active];
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.input.setAttribute("aria-activedescendant", option.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  pick(place) {
    if (!this.found[place]) return;
    this.take(this.found[place]);
    this.close();
  }

  async press(event) {
    if (event.isComposing) return;
    const open = !this.list.hidden;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (!open) return this.search(this.value ? "" : this.input.value);
      const count = this.found.length;
      this.move(this.active < 0 ? (step > 0 ? 0 : count - 1) : (this.active + step + count) % count);
    } else if (event.key === "Enter" && (open || (this.searching && !this.value))) {
      event.preventDefault();
      await this.searching; // a quick typist's Enter means the text as it stands
      this.pick(this.active);
    } else if (event.key === "Tab" && open) {
      this.pick(this.active);
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (open) return this.close();
      this.input.value = "";
      this.take(null);
    }
  }
}

const userBox = (root, chosen) => new Combobox(root, "User id", "v1/users", ({ users }) =>
  users.map(({ user_id, count }) => ({ value: user_id, label: user_id, note: counted(count, "rating") })), chosen);
const itemBox = (root) => new Combobox(root, "Title", "v1/items", ({ items }) =>
  items.map(({ item_id, title, count }) => ({ value: item_id, label: title, note: counted(count, "rating") })));

/** The switch between the data set and the handwritten way; without a data set there is nothing to switch. */
function ways(panel, name) {
  const turn = (way) => {
    for (const part of panel.querySelectorAll("[data-way]")) part.disabled = part.hidden = part.dataset.way !== way;
    panel.dataset.chosen = way;
  };
  turn(model.data ? "data" : "hand");
  if (!model.data) return;
  const part = clone("ways");
  $("legend", part).textContent = name;
  for (const radio of part.querySelectorAll("input")) {
    radio.name = name;
    radio.addEventListener("change", () => turn(radio.value));
  }
  $(".panel-head", panel).append(part);
}

// --- the user --------------------------------------------------------------------------------------------------------

const grid = ({ min, max, step }) =>
  Array.from({ length: Math.floor((max - min) / step + 1 + 1e-9) }, (_, place) => Number(number(min + place * step, 6)));

/** The rating that stands at this share of the scale. */
const rated = (share) => {
  const all = grid(model.scale);
  return all[Math.round(share * (all.length - 1))];
};

function ratingInput(value) {
  const { min, max, step } = model.scale;
  const all = grid(model.scale);
  if (all.length > 21) return make("input", { name: "rating", type: "number", required: "", min, max, step, value });
  const select = make("select", { name: "rating" }, ...all.map((one) => make("option", { value: one }, number(one))));
  select.value = String(value);
  return select;
}

function addRow({ title = "", at = 0.75, review = "" } = {}) {
  const part = clone("row"), row = $("li", part);
  $("[name=title]", row).value = title;
  $("[name=review]", row).value = review;
  $(".rating", row).append(ratingInput(rated(at)));
  $(".remove", row).addEventListener("click", () => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    rowsChanged();
    (next ? $(".remove", next) : $("#user .add")).focus();
  });
  $("#user .rows").append(part);
  rowsChanged();
  return row;
}

function rowsChanged() {
  const rows = [...$("#user .rows").children];
  rows.forEach((row, place) => $(".remove", row).setAttribute("aria-label", `Remove rating ${place + 1}`));
  show($("#user .none"), !rows.length);
}

let user; // the combobox, where there is a data set

async function showPast(entry) {
  const past = $("#user .past");
  show(past, false);
  if (!entry) return;
  let text, entries = [];
  try {
    const { average, count, history } = await (await ask(`v1/users/${encodeURIComponent(entry.value)}`)).json();
    if (user.entry !== entry) return;
    text = `${counted(count, "rating")}${average === null ? "" : `, ${number(average)} on average`}. The newest:`;
    entries = history.reverse().slice(0, 5);
  } catch (problem) {
    if (user.entry !== entry) return;
    text = problem.message;
  }
  $("p", past).textContent = text;
  $("ul", past).replaceChildren(...entries.map(({ title, rating }) =>
    make("li", {}, make("span", { dir: "auto" }, title), make("b", {}, number(rating)))));
  show(past, true);
}

function askedUser() {
  if ($("#user").dataset.chosen === "data") return { user_id: user.value };
  return { history: [...$("#user .rows").children].map((row) => {
    const review = $("[name=review]", row).value.trim();
    return { title: $("[name=title]", row).value.trim(), rating: Number($("[name=rating]", row).value), ...(review && { review }) };
  }) };
}

// --- the items -------------------------------------------------------------------------------------------------------

const items = []; // one, or two to compare: {panel, box}

function addItem() {
  const part = clone("item"), panel = $("section", part), place = items.length;
  const name = place ? "Second item" : "Item";
  const heading = $("h2", panel);
  heading.id = `item-${place}`;
  heading.textContent = name;
  panel.setAttribute("aria-labelledby", heading.id);
  ways(panel, name);
  const field = (called) => $(`[name=${called}]`, panel);
  const { min, max } = model.scale, example = ITEMS[place];
  field("title").value = example.title;
  field("average").value = number(min + example.average * (max - min), 1);
  Object.assign(field("average"), { min, max });
  field("count").value = example.count;
  field("categories").value = example.categories;
  const item = { panel, box: model.data ? itemBox($(".combobox", panel)) : null };
  const button = $(".second", panel);
  button.textContent = place ? "Remove the second item" : "Compare with a second item";
  button.addEventListener("click", () => {
    if (place) {
      items.pop();
      panel.remove();
      show($("#items .second"), true);
      $("#items .second").focus();
    } else {
      show(button, false);
      const { panel: second, box } = addItem();
      (box?.input ?? $("[name=title]", second)).focus();
    }
  });
  items.push(item);
  $("#items").append(part);
  return item;
}

function askedItem({ panel, box }) {
  if (panel.dataset.chosen === "data") return { title: box.entry.label, body: { item_id: box.value } };
  const value = (called) => $(`[name=${called}]`, panel).value.trim();
  const categories = value("categories").split(",").map((text) => text.trim()).filter(Boolean);
  const item = { title: value("title"), ...(categories.length && { categories }),
    ...(value("average") && { average: Number(value("average")) }), ...(value("count") && { count: Number(value("count")) }) };
  return { title: item.title, body: { item } };
}

/** What the form asks, one for each item: {title, who, body}; null, and the browser shows where, if something is missing. */
function asked() {
  for (const { panel } of items) $("[name=average]", panel).required = $("[name=count]", panel).value !== "";
  if (!$("#ask").reportValidity()) return null;
  const whose = askedUser();
  const who = whose.history ? `for ${counted(whose.history.length, "rating")} by hand` : `for user ${whose.user_id}`;
  return items.map(askedItem).map(({ title, body }) => ({ title, who, body: { ...whose, ...body, stream: true } }));
}

// --- predictions -----------------------------------------------------------------------------------------------------

const chart = (prediction) => {
  const all = grid(prediction.scale);
  const most = Math.max(...prediction.distribution, 1e-9);
  const percent = (place) => `${number(100 * prediction.distribution[place], 0)}%`;
  const told = all.map((rating, place) => `${number(rating)}: ${percent(place)}`).join(", ");
  const dense = all.length > 11;
  const line = make("div", { class: dense ? "chances many" : "chances", role: "img", "aria-label": `How probable each rating is: ${told}` });
  all.forEach((rating, place) => {
    const bar = make("i");
    bar.style.height = `${(62 * prediction.distribution[place] / most).toFixed(1)}px`;
    const labelled = !dense || [0, all.length - 1].includes(place) || rating === prediction.rating;
    line.append(make("span", { class: rating === prediction.rating ? "said" : "", title: `${number(rating)}: ${percent(place)}` },
      dense ? "" : percent(place), bar, labelled ? number(rating) : "\u00a0"));
  });
  return line;
};

const score = (prediction) => prediction?.expected ?? prediction?.rating ?? null;

/** One prediction, from its request to its rating. */
class Card {
  constructor({ title, who, body }) {
    const part = clone("card");
    Object.assign(this, { title, body, node: $("article", part) });
    $("h3", this.node).textContent = title;
    $(".who", this.node).textContent = who;
    $(".problem button", this.node).addEventListener("click", () => run(cards.filter(({ prediction }) => !prediction)));
  }

  name(text) { return cards.length > 1 ? `${this.title}: ${text}` : text; }

  async run(signal) {
    const began = performance.now();
    this.prediction = null;
    this.written = {};
    this.best(false);
    show($(".problem", this.node), false);
    show($(".verdict", this.node), false);
    show($(".body", this.node), true);
    this.steps(true);
    try {
      for await (const [kind, data] of events(await ask("v1/predict", { body: this.body, signal }))) {
        if (kind === "section") {
          this.written[data.name] = data.text;
          this.steps(true);
          say(this.name(`${HEADINGS[data.name] ?? data.name} is written.`));
        } else if (kind === "prediction") {
          this.done(data, (performance.now() - began) / 1000);
        } else if (kind === "error") {
          throw new Problem(`The server could not answer: ${data.detail}`, { retry: true });
        }
      }
      if (!this.prediction) throw new Problem("The answer broke off before its rating.", { retry: true });
    } catch (error) {
      if (!this.prediction) this.fail(error);
    }
  }

  /** The sections that are written; while it runs also, as blanks, those to come. */
  steps(running) {
    const names = [...new Set([...(running ? model.sections : []), ...Object.keys(this.written)])];
    const steps = $(".steps", this.node);
    const had = steps.querySelectorAll(".written").length;
    let current = running;
    steps.replaceChildren(...names.map((name, place) => {
      const done = name in this.written;
      const state = done ? (place < had ? "step" : "step written") : current ? "step coming current" : "step coming";
      if (!done) current = false;
      const text = done ? make("p", { dir: "auto" }, this.written[name]) : make("i", { "aria-hidden": "true" });
      return make("div", { class: state }, make("h4", {}, HEADINGS[name] ?? name.replaceAll("_", " ")), text);
    }));
  }

  done(prediction, seconds) {
    this.prediction = prediction;
    this.written = { ...this.written, ...prediction.reasoning };
    this.steps(false);
    const { rating, expected, distribution, tokens, scale, parsed, fault } = prediction;
    const verdict = $(".verdict", this.node);
    const facts = [...(expected === null ? [] : [`expected ${number(expected)}`]), counted(tokens, "token"), `${seconds.toFixed(1)} s`];
    const line = parsed
      ? make("p", { class: "number" }, make("b", {}, number(rating)), `of ${number(scale.max)}`)
      : make("p", { class: "number none" }, make("b", {}, "No valid rating"));
    verdict.replaceChildren(line, ...(distribution ? [chart(prediction)] : []), make("p", { class: "note" }, facts.join(" · ")));
    if (!parsed) {
      const left = Object.keys(this.written).length ? "What could be read of it is shown." : "Nothing of it could be read.";
      verdict.append(make("p", { class: "note" }, `The answer is malformed: ${fault}. ${left}`));
    }
    show(verdict, true);
    const told = parsed ? `Rating ${number(rating)} of ${number(scale.max)}` : "The answer is malformed; there is no rating";
    say(this.name(`${told}${expected === null ? "" : `, expected ${number(expected)}`}.`));
  }

  fail(error) {
    const cancelled = error.name === "AbortError";
    const text = cancelled ? "Cancelled." : error instanceof Problem ? error.message
      : "The server went away before the answer was complete.";
    this.steps(false);
    show($(".body", this.node), Object.keys(this.written).length);
    $(".problem p", this.node).textContent = text;
    $(".problem", this.node).classList.toggle("calm", cancelled);
    show($(".problem button", this.node), cancelled || !(error instanceof Problem) || error.retry);
    show($(".problem", this.node), true);
    say(this.name(text));
  }

  best(best) {
    this.node.classList.toggle("best", best);
    show($(".tag", this.node), best);
  }
}

let cards = [];
let running = null; // an AbortController

async function run(some) {
  if (running || !some.length) return;
  running = new AbortController();
  const began = performance.now();
  const tick = () => { $("#clock").textContent = `Working … ${Math.floor((performance.now() - began) / 1000)} s`; };
  tick();
  const clock = setInterval(tick, 1000);
  const retried = $("#results").contains(document.activeElement);
  $("#predict").setAttribute("aria-disabled", "true");
  show($("#cancel"), true);
  show($(".preferred"), false);
  for (const card of cards) card.best(false);
  if (retried) $("#cancel").focus({ preventScroll: true }); // the Retry that was pressed goes away
  say("Predicting …");
  await Promise.all(some.map((card) => card.run(running.signal)));
  running = null;
  clearInterval(clock);
  $("#clock").textContent = "";
  $("#predict").removeAttribute("aria-disabled");
  if (document.activeElement === $("#cancel")) $("#predict").focus({ preventScroll: true });
  show($("#cancel"), false);
  compare();
}

function compare() {
  if (cards.length < 2 || !cards.every(({ prediction }) => prediction)) return;
  const [first, second] = cards.map(({ prediction }) => score(prediction));
  const line = $(".preferred");
  if (first === null || second === null) line.textContent = "They cannot be compared: a rating is missing.";
  else if (number(first, 4) === number(second, 4)) line.textContent = `Neither is preferred: both are expected to get ${number(first)}.`;
  else {
    const [best, other] = first > second ? cards : [cards[1], cards[0]];
    const digits = number(first) === number(second) ? 4 : 2;
    const [more, less] = [best, other].map(({ prediction }) => number(score(prediction), digits));
    line.replaceChildren(make("b", { dir: "auto" }, best.title), ` is preferred: expected ${more}, against ${less}.`);
    best.best(true);
  }
  show(line, true);
  say(line.textContent);
}

function predict(event) {
  event.preventDefault();
  const jobs = running ? null : asked();
  if (!jobs) return;
  cards = jobs.map((job) => new Card(job));
  $(".cards").replaceChildren(...cards.map(({ node }) => node));
  $(".cards").classList.toggle("two", cards.length > 1);
  show($("#results"), true);
  run(cards);
  const top = $("#results").getBoundingClientRect().top;
  if (top > 0.6 * innerHeight) $("#actions").scrollIntoView(); // Cancel, and the sections as they come
}

// --- the same from a shell -------------------------------------------------------------------------------------------

/** Bash and its kin take everything between single quotes as it is, save the quote itself. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** JSON without characters that a terminal might obey or hide: those that JSON leaves unescaped. */
const plain = (body) => JSON.stringify(body)
  .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

const curl = (body) => [
  `curl -sSN ${quoted(new URL("v1/predict", document.baseURI).href)}`,
  `-H 'Content-Type: application/json'`,
  ...(key ? [`-H "Authorization: Bearer $RECZERO_API_KEY"`] : []),
  `-d ${quoted(plain(body))}`,
].join(" \\\n  ");

async function copy() {
  const jobs = asked();
  if (!jobs) return;
  const text = jobs.map(({ body }) => curl(body)).join("\n");
  const box = $("#by-hand"), area = $("textarea", box), button = $("#curl");
  try {
    await navigator.clipboard.writeText(text);
    show(box, false);
    button.textContent = "Copied ✓";
    say("Copied as curl.");
    setTimeout(() => { button.textContent = "Copy as curl"; }, 2000);
  } catch {
    area.value = text;
    show(box, true);
    area.focus();
    area.select();
  }
}

// --- beginning -------------------------------------------------------------------------------------------------------

function wantKey() {
  const form = $("#key"), tried = key !== null;
  if (!form.hidden) return; // the other of two streams has asked
  key = null;
  session?.removeItem("reczero-key");
  show($(".fault", form), tried);
  $("input", form).value = "";
  show(form, true);
  $("input", form).focus();
  say(tried ? "The server does not know this key." : "This server asks for a key.");
}

async function start() {
  show($("#trouble"), false);
  try {
    model = await (await ask("v1/model")).json();
  } catch (problem) {
    $("#trouble p").textContent = problem.message;
    show($("#trouble"), problem.status !== 401);
    return;
  }
  const { min, max, step } = model.scale;
  document.title = `${model.model} · reczero`;
  $("#kicker").textContent = `reczero ${model.version}`;
  $("#model").textContent = model.model;
  $("#data").textContent = model.data ?? "none: users and items by hand";
  $("#scale").textContent = `${number(min)} to ${number(max)}${step === 1 ? "" : `, by ${number(step)}`}`;
  show($("#facts"), true);
  ways($("#user"), "User");
  HISTORY.forEach(addRow);
  addItem();
  show($("#ask"), true);
  if (!model.data) return;
  user = userBox($("#user .combobox"), showPast);
  for (const box of [user, items[0].box]) { // so that the first click predicts
    box.find("").then(([first]) => { if (first && !box.input.value) box.take(first); }, (problem) => say(problem.message));
  }
}

$("#key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("#key input").value;
  session?.setItem("reczero-key", key);
  show($("#key"), false);
  if (model) run(cards.filter(({ prediction }) => !prediction));
  else start();
});
$("#trouble button").addEventListener("click", start);
$("#ask").addEventListener("submit", predict);
$("#ask").addEventListener("input", () => show($("#by-hand"), false)); // it would show what was asked before
$("#cancel").addEventListener("click", () => running?.abort());
$("#curl").addEventListener("click", copy);
$("#user .add").addEventListener("click", () => $("[name=title]", addRow()).focus());
start();
