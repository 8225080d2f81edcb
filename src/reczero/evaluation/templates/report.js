"use strict";
// Text from data reaches the page only through textContent: nothing in it is ever read as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.examples.length) return;
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

  options($("model"), data.models.map((name) => [name, name]));
  options($("quality"), [
    ["all", "all"],
    ["good", `good (off by ${number(data.good)} or less)`],
    ["bad", `bad (off by ${number(data.bad)} or more)`],
    ["failed", "no valid answer"],
  ]);
  const truths = [...new Set(data.examples.map((example) => example.truth))].sort((a, b) => a - b);
  options($("truth"), [["all", "all"], ...truths.map((value) => [String(value), number(value)])]);

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
        make("div", { class: "verdict" }, verdict, truth, track(example.truth, given.rating))),
      written.length ? steps : null,
      given.text && (!written.length || given.rating === null) ? fold("Answer as written", given.text, true) : null,
      others.length ? make("p", { class: "others" }, others.join(" · ")) : null,
      example.prompt ? fold("Prompt", example.prompt, false) : null);
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
    const words = $("search").value.trim().toLowerCase();
    matching = data.examples.filter((example) => {
      const off = error(example, model);
      if (wanted === "failed" ? off !== Infinity : wanted !== "all" && quality(off) !== wanted) return false;
      if (truth !== "all" && String(example.truth) !== truth) return false;
      return !words || (example.title ?? "").toLowerCase().includes(words);
    });
    const order = $("order").value;
    const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1); // Infinity - Infinity would be NaN
    if (order !== "given") matching.sort((a, b) => (order === "worst" ? -1 : 1) * compare(error(a, model), error(b, model)));
    $("cards").replaceChildren();
    shown = 0;
    more();
  };
  for (const id of ["model", "quality", "truth", "order"]) $(id).addEventListener("change", update);
  $("search").addEventListener("input", update);
  $("more").addEventListener("click", more);
  update();
})();
