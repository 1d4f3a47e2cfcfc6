"use strict";

// The views of an inspection: #/ (the list), #/concept/7 and #/model. Data come as scripts that call `cocomixIndex` and
// `cocomixCards`. Texts of the model and its corpus only ever become `textContent`.

const ROW_HEIGHT = 44;
const SPARE_ROWS = 8;
const FILES_AT_ONCE = 8;

const share = (value) => (value === null ? "–" : `${Number((100 * value).toPrecision(3))}\u202f%`);
const plain = (value) => (value === null ? "–" : String(Number(value.toPrecision(3))).replace("-", "−"));

// Key, heading of a column, name in the menu, format, and what a card says of it.
const NUMBERS = [
  ["prediction_rate", "Predicted", "how often predicted", share, "of tokens have it active in the mixture"],
  ["label_rate", "Label", "how often a label", share, "of labelled tokens have it as label"],
  ["sae_rate", "Latent", "how often active in the autoencoder", share, "of tokens have its latent active in the teacher’s autoencoder"],
  ["precision", "Precision", "precision", share, "of the tokens where it is predicted have it as label"],
  ["recall", "Recall", "recall", share, "of the tokens that have it as label predict it"],
  ["mean_probability", "Probability", "mean probability", share, "the model’s own probability that it is a label, over all tokens"],
  ["evaluated_label_rate", "Label rate here", "label rate here", share, "what that probability should be: how often it is a label in the same text"],
  ["usual", "Usual", "usual activation", plain, "its usual activation, a raw logit: the unit of steering"],
  ["compress_norm", "Norm", "length in the compression", plain, "the length of its row of the compression"],
  ["measured_change", "Effect", "measured effect", share, "of the next token’s probability moves when it is set to its usual activation"],
];
const LISTED = ["prediction_rate", "label_rate", "recall"];
const SOURCES = {
  sae: "Where its latent is most active in the teacher’s autoencoder",
  label: "Where it is the strongest label",
  prediction: "Where the model predicts it most strongly",
};

const WHERE = { sae: "where its latent is active", label: "where it is a label", prediction: "where the model predicts it" };
const QUARTERS = [[4, "The strongest quarter of these"], [3, "The second"], [2, "The third"], [1, "The weakest"]];
const HISTOGRAMS = {
  sae: "Activations of its latent",
  label: "Scores of its labels",
  prediction: "Raw logits where it is predicted",
  logits: "Direct effects on logits",
};

let index = null; // columns by name
let numConcepts = 0;
let order = []; // concepts as listed
let chosen = 0; // place in `order`
let search = 0; // number of the current search
let listTop = 0;

const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const byId = (id) => document.getElementById(id);

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function link(hash, className, ...children) {
  const made = element("a", className, ...children);
  made.href = hash;
  return made;
}

// Corpus text with a sign for every newline and other control character; in a single token also for spaces and tabs.
const SIGNS = { "\n": "⏎", " ": "␣", "\t": "⇥" };

function visible(text, isToken = false) {
  const shown = document.createDocumentFragment();
  for (const part of text.split(isToken ? /([\u0000-\u0020])/ : /([\u0000-\u0008\u000a-\u001f])/)) {
    const code = part.charCodeAt(0);
    if (part.length === 1 && code <= 32 && (isToken || code !== 32 && code !== 9)) {
      shown.append(element("span", "sign", SIGNS[part] ?? `^${String.fromCharCode(64 + code)}`));
    } else {
      shown.append(part);
    }
  }
  return shown;
}

// ---- data

const files = new Map(); // number of a file -> promise of its cards
const arrivals = new Map();

function cocomixIndex(columns) {
  index = columns;
  numConcepts = columns.name.length;
  start();
}

function cocomixCards(number, cards) {
  arrivals.get(number)(cards);
  arrivals.delete(number);
}

function cardsOfFile(number) {
  if (!files.has(number)) {
    files.set(number, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${String(number).padStart(5, "0")}.js`;
      script.onerror = () => {
        files.delete(number);
        reject(new Error(`${script.src} can’t be read`));
      };
      arrivals.set(number, resolve);
      document.head.append(script);
    }));
  }
  return files.get(number);
}

async function cardOf(concept) {
  const cards = await cardsOfFile(Math.floor(concept / index.cards_per_file));
  return cards[concept % index.cards_per_file];
}

// ---- the list

function compare(key, descending) {
  if (key === "concept") return (a, b) => (descending ? b - a : a - b);
  const column = index[key];
  if (key === "name") return (a, b) => (descending ? -1 : 1) * column[a].localeCompare(column[b]) || a - b;
  return (a, b) => {
    const [x, y] = [column[a], column[b]];
    if (x === null || y === null) return (x === null) - (y === null) || a - b; // without the number: last either way
    return (descending ? y - x : x - y) || a - b;
  };
}

// `found` is a map from concepts to ranks; null: all.
function list(found) {
  const by = compare(byId("sort").value, byId("direction").textContent === "↓");
  order = found === null ? [...Array(numConcepts).keys()].sort(by)
    : [...found.keys()].sort((a, b) => found.get(a) - found.get(b) || by(a, b));
  byId("space").style.height = `${order.length * ROW_HEIGHT}px`;
  choose(Math.min(chosen, Math.max(order.length - 1, 0)), false);
}

function drawRows() {
  const rows = byId("rows");
  const first = Math.max(0, Math.floor(rows.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = Math.min(order.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW_HEIGHT) + SPARE_ROWS);
  const drawn = [];
  for (let place = first; place < last; place++) drawn.push(row(order[place], place));
  rows.replaceChildren(byId("space"), ...drawn);
}

function listedNumbers() {
  const sorted = byId("sort").value;
  const keys = LISTED.filter((key) => !isAbsent(key));
  const further = isAbsent("usual") ? "sae_rate" : "usual";
  const extra = NUMBERS.some(([key]) => key === sorted) && !keys.includes(sorted) ? sorted : further;
  return [...new Set([...keys, extra])].map((key) => NUMBERS.find(([other]) => other === key));
}

function isAbsent(key) {
  return index[key].every((value) => value === null);
}

function row(concept, place) {
  const made = link(`#/concept/${concept}`, "row", element("span", "id", String(concept)), element("span", "name", index.name[concept]),
    element("span", "tokens", ...index.tokens[concept].flatMap((token) => [visible(token, true), " "])));
  for (const [key, , , format] of listedNumbers()) made.append(element("span", valueClass(key), format(index[key][concept])));
  made.id = `row-${concept}`;
  made.tabIndex = -1;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(place === chosen));
  made.style.top = `${place * ROW_HEIGHT}px`;
  return made;
}

const valueClass = (key) => (key === phoneNumber() ? "value sorted" : "value");

// The one number for which a phone has room.
function phoneNumber() {
  const sorted = byId("sort").value;
  return NUMBERS.some(([key]) => key === sorted) ? sorted : firstNumber();
}

// What the list is sorted by at first.
const firstNumber = () => ["label_rate", "prediction_rate", "sae_rate"].find((key) => !isAbsent(key));

function drawHead() {
  const old = document.querySelector(".row.head");
  const head = element("div", "row head", element("span", "id", "Id"), element("span", "name", "Name"), element("span", "tokens", "Promotes"));
  for (const [key, heading] of listedNumbers()) head.append(element("span", valueClass(key), heading));
  head.setAttribute("aria-hidden", "true");
  if (old) old.replaceWith(head);
  else byId("rows").before(head);
}

function choose(place, follow = true) {
  chosen = Math.max(0, Math.min(place, order.length - 1));
  const rows = byId("rows");
  if (follow) {
    const top = chosen * ROW_HEIGHT;
    rows.scrollTop = Math.max(top + ROW_HEIGHT - rows.clientHeight, Math.min(rows.scrollTop, top));
  }
  drawRows();
  if (order.length) rows.setAttribute("aria-activedescendant", `row-${order[chosen]}`);
}

// ---- search: names and listed tokens at once, contexts as their files arrive

const RANKS = { name: 0, token: 1, context: 2 };

async function find() {
  const current = ++search;
  const text = byId("search").value.trim().toLowerCase();
  remember();
  drawHead();
  chosen = 0;
  byId("rows").scrollTop = 0;
  if (!text) {
    list(null);
    byId("status").textContent = counted(numConcepts, "concept");
    return;
  }
  const has = (other) => other.toLowerCase().includes(text);
  const found = new Map();
  if (/^\d+$/.test(text) && Number(text) < numConcepts) found.set(Number(text), -1);
  for (let concept = 0; concept < numConcepts; concept++) {
    if (found.has(concept)) continue;
    if (has(index.name[concept])) found.set(concept, RANKS.name);
    else if (index.tokens[concept].some(has)) found.set(concept, RANKS.token);
  }
  const say = (more) => {
    byId("status").textContent = `${found.size.toLocaleString("en")} of ${counted(numConcepts, "concept")}${more}`;
  };
  list(found);
  const numFiles = Math.ceil(numConcepts / index.cards_per_file);
  for (let start = 0; start < numFiles; start += FILES_AT_ONCE) {
    say(`, searching contexts: ${share(start / numFiles)}`);
    const numbers = Array.from({ length: Math.min(FILES_AT_ONCE, numFiles - start) }, (_, i) => start + i);
    let parts;
    try {
      parts = await Promise.all(numbers.map(cardsOfFile));
    } catch (error) {
      say(`; ${error.message}`);
      return;
    }
    if (current !== search) return;
    const before = found.size;
    parts.forEach((cards, i) => cards.forEach((card, j) => {
      const concept = numbers[i] * index.cards_per_file + j;
      if (!found.has(concept) && card.contexts.some((context) => has(context[5].join("")))) {
        found.set(concept, RANKS.context);
      }
    }));
    if (found.size !== before) list(found);
  }
  say("");
}

// ---- one concept

async function showConcept(concept) {
  const view = byId("concept");
  if (!Number.isInteger(concept) || concept < 0 || concept >= numConcepts) {
    view.replaceChildren(element("p", "", `There is no such concept; they go from 0 to ${numConcepts - 1}.`));
    return;
  }
  const hash = location.hash;
  let card;
  try {
    card = await cardOf(concept);
  } catch (error) {
    view.replaceChildren(element("p", "", error.message));
    return;
  }
  if (location.hash !== hash) return;
  const place = order.indexOf(concept);
  if (place >= 0) chosen = place;
  document.title = `${index.name[concept]} · concept ${concept}`;
  view.replaceChildren(pager(place), element("p", "kicker", `Concept ${concept}`), element("h2", "title", index.name[concept]),
    facts(concept, card), ...histograms(card), ...contexts(card), ...effects(card), ...neighbours(card));
  view.querySelector("h2").style.cssText = "border: 0; padding: 0; margin-top: 0";
  window.scrollTo(0, 0);
}

function pager(place) {
  const made = element("p", "pager", link("#/", "", "All concepts"));
  if (place > 0) made.append(link(`#/concept/${order[place - 1]}`, "previous", `← ${index.name[order[place - 1]]}`));
  if (place >= 0 && place < order.length - 1) made.append(link(`#/concept/${order[place + 1]}`, "next", `${index.name[order[place + 1]]} →`));
  return made;
}

function facts(concept, card) {
  const made = element("dl", "facts");
  for (const [key, heading, , format, note] of NUMBERS) {
    const value = index[key][concept];
    if (value === null && isAbsent(key)) continue;
    const counts = { prediction_rate: card.num_predicted, label_rate: card.num_labels };
    const times = counts[key] === undefined || counts[key] === null ? "" : ` (${counted(counts[key], "time")})`;
    made.append(element("div", "", element("dt", "", heading), element("dd", "number", format(value)), element("dd", "note", note + times)));
  }
  return made;
}

// The token is underlined; every token is shaded by its activation.
function excerpts(found) {
  return element("ol", "", ...found.map(([, , activation, marked, shades, parts]) => {
    const text = element("div", "text", ...parts.map((part, i) => {
      const piece = i === marked ? element("mark", "", visible(part || "…", true)) : element("span", "", visible(part));
      piece.style.setProperty("--shade", shades[i]);
      return piece;
    }));
    return element("li", "", text, element("span", "", activation.toFixed(2)));
  }));
}

function histograms(card) {
  return card.histograms.length ? [element("div", "histograms", ...card.histograms.map(histogram))] : [];
}

function histogram([of, start, width, counts]) {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const [end, largest, total] = [start + width * counts.length, Math.max(...counts), counts.reduce((a, b) => a + b)];
  const drawn = document.createElementNS(NAMESPACE, "svg");
  drawn.setAttribute("viewBox", `0 0 ${counts.length} 20`);
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", `${HISTOGRAMS[of]}, from ${plain(start)} to ${plain(end)}`);
  counts.forEach((count, i) => {
    if (!count) return;
    const [bar, height] = [document.createElementNS(NAMESPACE, "rect"), Math.max((20 * count) / largest, 0.4)];
    for (const [name, value] of Object.entries({ x: i, y: 20 - height, width: 1, height })) bar.setAttribute(name, value);
    if (start + width * (i + 0.5) < 0) bar.setAttribute("class", "below");
    drawn.append(bar);
  });
  return element("figure", "card", element("h3", "", HISTOGRAMS[of]), drawn,
    element("figcaption", "", element("span", "", plain(start)), element("span", "", counted(total, of === "logits" ? "token" : "occurrence")), element("span", "", plain(end))));
}

function contexts(card) {
  const made = [];
  for (const [source, title] of Object.entries(SOURCES)) {
    const own = card.contexts.filter((context) => context[0] === source && !context[1]);
    if (own.length) made.push(element("h3", "", title), element("div", "card", excerpts(own)));
  }
  const random = card.contexts.filter((context) => context[1]);
  if (random.length) {
    const quarters = QUARTERS.map(([quarter, title]) => [title, random.filter((context) => context[1] === quarter)]);
    made.push(element("h3", "", `At random: ${WHERE[random[0][0]]}`), element("div", "card", ...quarters.flatMap(([title, own]) =>
      own.length ? [element("p", "note", title), excerpts(own)] : [])));
  }
  return made.length ? [element("h2", "", "Contexts"), ...made] : [element("p", "note", "It occurs nowhere in the text that was read.")];
}

function effects(card) {
  const made = [];
  const add = (title, items, format) => {
    if (!items || !items.length) return;
    const largest = Math.max(...items.map(([, change]) => Math.abs(change)), 1e-12);
    made.push(element("div", "card", element("h3", "", title), element("ol", "", ...items.map(([token, change]) => {
      const bar = element("i");
      bar.style.width = `${(100 * Math.abs(change)) / largest}%`;
      return element("li", "", bar, element("div", "text", visible(token, true)), element("span", "", format(change)));
    }))));
  };
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(3)}`;
  const points = (value) => `${signed(100 * value)}\u202fpoints`;
  add("Promotes, by its weights", card.promoted, signed);
  add("Suppresses, by its weights", card.suppressed, signed);
  add("Promotes, measured", card.measured_promoted, points);
  add("Suppresses, measured", card.measured_suppressed, points);
  if (!made.length) return [];
  return [element("h2", "", "What it does to the next token"), element("p", "note",
    "By its weights: logits through what it writes and the output head. Measured: percentage points of the next token’s probability, when it "
    + `is set to its usual activation${card.measured_change === null || card.measured_promoted === null ? " (not measured for this concept)" : ""}.`),
  element("div", "effects", ...made)];
}

function neighbours(card) {
  const made = [element("h2", "", "Nearest concepts")];
  for (const [title, items] of [["By what they write", card.nearest], ["By when they are active", card.nearest_predicted]]) {
    made.push(element("h3", "", title), element("ul", "near", ...items.map(([concept, similarity]) => element("li", "",
      link(`#/concept/${concept}`, "", index.name[concept], element("span", "", similarity.toFixed(2)))))));
  }
  return made;
}

// ---- views, keys and addresses

function show() {
  const [, view = "", argument = ""] = location.hash.split("?")[0].split("/");
  if (!byId("list").hidden) listTop = byId("rows").scrollTop;
  for (const id of ["list", "concept", "model"]) byId(id).hidden = id !== (view || "list");
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.hash === `#/${view}` || (!view && anchor.hash === "#/")) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  document.title = document.querySelector("h1").textContent;
  if (view === "concept") showConcept(/^\d+$/.test(argument) ? Number(argument) : NaN);
  else if (view !== "model") {
    byId("list").hidden = false;
    remember();
    byId("rows").scrollTop = listTop;
    choose(chosen);
    byId("rows").focus({ preventScroll: true });
  }
}

// The search and the order stand in the list's own address.
function remember() {
  if (byId("list").hidden) return;
  const parts = new URLSearchParams();
  if (byId("search").value) parts.set("q", byId("search").value);
  if (byId("sort").value !== firstNumber()) parts.set("sort", byId("sort").value);
  if (byId("direction").textContent === "↑") parts.set("up", "1");
  const text = parts.toString();
  history.replaceState(null, "", text ? `#/?${text}` : "#/");
}

function recall() {
  const parts = new URLSearchParams(location.hash.split("?")[1] ?? "");
  byId("search").value = parts.get("q") ?? "";
  byId("sort").value = parts.get("sort") ?? firstNumber();
  if (!byId("sort").value) byId("sort").value = firstNumber();
  byId("direction").textContent = parts.get("up") ? "↑" : "↓";
}

function asked() {
  return ["search", "sort"].map((id) => byId(id).value).join("\n") + byId("direction").textContent;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inList = !byId("list").hidden;
  const isTyping = event.target === byId("search");
  const page = Math.max(1, Math.floor(byId("rows").clientHeight / ROW_HEIGHT) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
  if (event.key === "/" && !isTyping) {
    if (inList) byId("search").select(); // at once, or the next letters typed go elsewhere
    else {
      location.hash = "#/";
      setTimeout(() => byId("search").select());
    }
  } else if (event.key === "Escape") {
    if (!inList) location.hash = "#/";
    else if (isTyping && byId("search").value) {
      byId("search").value = "";
      find();
    } else byId("rows").focus();
  } else if (inList && event.target.tagName !== "SELECT" && event.key in moves) choose(chosen + moves[event.key]);
  else if (inList && !isTyping && event.target.tagName !== "SELECT" && (event.key === "Home" || event.key === "End")) choose(event.key === "Home" ? 0 : order.length - 1);
  else if (inList && event.key === "Enter" && (isTyping || event.target === byId("rows")) && order.length) location.hash = `#/concept/${order[chosen]}`;
  else if (!inList && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const other = document.querySelector(event.key === "ArrowLeft" ? ".pager .previous" : ".pager .next");
    if (!other || byId("concept").hidden) return;
    other.click();
  } else return;
  event.preventDefault();
}

function start() {
  const menu = byId("sort");
  menu.append(new Option("id", "concept"), new Option("name", "name"));
  for (const [key, , title] of NUMBERS) if (!isAbsent(key)) menu.append(new Option(title, key));
  recall();
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 120);
  });
  menu.addEventListener("change", () => {
    byId("direction").textContent = ["concept", "name"].includes(menu.value) ? "↑" : "↓";
    find();
  });
  byId("direction").addEventListener("click", () => {
    byId("direction").textContent = byId("direction").textContent === "↓" ? "↑" : "↓";
    find();
  });
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  byId("rows").addEventListener("scroll", drawRows, { passive: true });
  window.addEventListener("resize", drawRows);
  window.addEventListener("hashchange", () => {
    const former = asked();
    if (location.hash.startsWith("#/?")) recall(); // an address that was pasted or chosen
    if (asked() !== former) {
      byId("list").hidden = false;
      find();
    }
    show();
  });
  document.addEventListener("keydown", onKey);
  byId("list").hidden = /^#\/(concept|model)/.test(location.hash);
  find();
  show();
}
