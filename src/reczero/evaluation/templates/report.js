"use strict";
// Text from data reaches the page only through textContent: nothing in it is ever read as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 8;
  const $ = (id) => document.getElementById(id);
  const number = (x, digits = 2) => String(Number(x.toFixed(digits)));
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  const options = (select, pairs) => select.append(...pairs.map(([value, text]) => make("option", { value }, text)));

  // Tables: a button in every heading, the best first, then turned around; what has no number stands last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    let column = 0;
    for (const head of heads) {
      const at = column;
      column += head.colSpan;
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const order = now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.best ?? "ascending";
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => (at ? Number(row.cells[at].dataset.value ?? NaN) : row.cells[0].textContent);
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (at === 0) return sign * x.localeCompare(y, "en", { numeric: true });
          return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
      });
    }
  }
  // Paper cannot be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.numbers:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of folded) details.open = false; });

  if (!data.examples.length) return;
  options($("model"), data.models.map((name) => [name, name]));
  options($("quality"), [
    ["all", "all"],
    ["good", `good (off by ${number(data.good)} or less)`],
    ["bad", `bad (off by ${number(data.bad)} or more)`],
    ["failed", "no valid answer"],
  ]);
  const truths = [...new Set(data.examples.map((example) => example.truth))].sort((a, b) => a - b);
  options($("truth"), [["all", "all"], ...truths.map((value) => [String(value), number(value)])]);

  if ($("group")) {
    options($("group"), [["all", "all"]]);
    for (const kind of new Set(data.groups.map(([kind]) => kind))) {
      const some = make("optgroup", { label: kind });
      options(some, data.groups.flatMap(([of, group], index) => (of === kind ? [[String(index), group]] : [])));
      $("group").append(some);
    }
  }

  // How far off; a failure is as bad as can be, whatever it is scored as.
  const error = (example, model) => {
    const said = example.given[model].rating;
    return said === null ? Infinity : Math.abs(said - example.truth);
  };
  const quality = (off) => (off <= data.good + 1e-9 ? "good" : off >= data.bad - 1e-9 ? "bad" : "fair");
  const place = (value) => `left:${(100 * Math.min(1, Math.max(0, (value - data.min) / (data.max - data.min)))).toFixed(1)}%`;

  const track = (truth, said) => {
    const line = make("div", { class: "track", "aria-hidden": "true" });
    if (said !== null && said !== truth) {
      const share = (100 * Math.abs(said - truth)) / (data.max - data.min);
      line.append(make("i", { class: "gap", style: `${place(Math.min(said, truth))};width:${share.toFixed(1)}%` }));
      line.append(make("i", { class: "said", style: place(said) }));
    }
    line.append(make("i", { class: said === truth ? "true hit" : "true", style: place(truth) }));
    return line;
  };

  const bars = (chances) => {
    if (!chances) return null;
    const most = Math.max(...chances, 1e-9);
    const told = data.grid.map((rating, index) => `${number(rating)}: ${number(100 * chances[index], 1)} %`);
    const line = make("div", { class: "chances", role: "img", "aria-label": `probabilities ${told.join(", ")}` });
    data.grid.forEach((rating, index) => line.append(make("span", { title: told[index] },
      make("i", { style: `height:${(28 * chances[index] / most).toFixed(1)}px` }), number(rating))));
    return line;
  };

  const about = (example) => {
    const parts = [];
    if (example.timestamp !== null) parts.push(new Date(1000 * example.timestamp).toISOString().slice(0, 10));
    const past = (who, average, count) =>
      average === null ? `${who} has no earlier ratings` : `${who}: ${number(average)} on average over ${count ?? "?"} earlier`;
    parts.push(past("user", example.user_avg, example.user_count), past("item", example.item_avg, example.item_count));
    const user = example.user_id === null ? [] : ["user ", make("bdi", {}, example.user_id), " · "];
    return make("p", { class: "about" }, ...user, parts.join(" · "));
  };

  const card = (example, model) => {
    const given = example.given[model];
    const off = error(example, model);
    const verdict = given.rating === null
      ? make("p", {}, make("span", {}, "no valid answer"), make("b", { class: "error" }, data.fallback === null ? "failed" : `scored as ${number(data.fallback)}`))
      : make("p", {}, make("span", {}, "predicted ", make("b", {}, number(given.rating))), make("span", {}, "true ", make("b", {}, number(example.truth))),
        make("b", { class: "error" }, off === 0 ? "right on" : `off by ${number(off)}`));
    const truth = given.rating === null ? make("p", {}, make("span", {}, "true ", make("b", {}, number(example.truth)))) : null;
    const steps = make("dl", { class: "steps" });
    const written = Object.entries(given.reasoning);
    for (const [key, text] of written) steps.append(make("dt", {}, data.sections[key] ?? key), make("dd", { dir: "auto" }, text));
    if (written.length && given.rating !== null) steps.append(make("dt", {}, "Rating"), make("dd", {}, make("b", {}, number(given.rating))));
    const fold = (summary, text, open) => {
      const node = make("details", open ? { open: "" } : {}, make("summary", {}, summary), make("pre", { dir: "auto" }, text));
      return node;
    };
    const others = data.models.filter((name) => name !== model).map((name) => {
      const said = example.given[name].rating;
      return `${name} said ${said === null ? "nothing valid" : number(said)}`;
    });
    return make("article", { class: `card ${quality(off)}` },
      make("div", { class: "card-head" },
        make("div", {}, make("h3", { dir: "auto" }, example.title ?? "untitled"), about(example)),
        make("div", { class: "verdict" }, verdict, truth, track(example.truth, given.rating), bars(given.distribution))),
      written.length ? steps : null,
      given.text && (!written.length || given.rating === null) ? fold("Answer as written", given.text, true) : null,
      others.length ? make("p", { class: "others" }, others.join(" · ")) : null,
      example.prompt && (data.prompt_of === null || data.prompt_of === model) ? fold("Prompt", example.prompt, false) : null);
  };

  let matching = [];
  let shown = 0;
  const more = () => {
    const model = $("model").value;
    $("cards").append(...matching.slice(shown, shown + PAGE).map((example) => card(example, model)));
    shown = Math.min(matching.length, shown + PAGE);
    $("more").hidden = shown >= matching.length;
    $("count").textContent = matching.length ? `${matching.length} match, ${shown} shown` : "No example matches.";
  };
  const update = () => {
    const model = $("model").value;
    const wanted = $("quality").value;
    const truth = $("truth").value;
    const group = $("group") ? $("group").value : "all";
    const words = $("search").value.trim().toLowerCase();
    matching = data.examples.filter((example) => {
      const off = error(example, model);
      if (wanted === "failed" ? off !== Infinity : wanted !== "all" && quality(off) !== wanted) return false;
      if (truth !== "all" && String(example.truth) !== truth) return false;
      if (group !== "all" && !example.in.includes(Number(group))) return false;
      return !words || (example.title ?? "").toLowerCase().includes(words);
    });
    const order = $("order").value;
    const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1); // Infinity - Infinity would be NaN
    if (order !== "given") matching.sort((a, b) => (order === "worst" ? -1 : 1) * compare(error(a, model), error(b, model)));
    $("cards").replaceChildren();
    shown = 0;
    more();
  };
  for (const id of ["model", "quality", "truth", "group", "order"]) $(id)?.addEventListener("change", update);
  $("search").addEventListener("input", update);
  $("more").addEventListener("click", more);
  update();
})();
