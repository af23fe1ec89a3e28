// One photo's trace as a waterfall. Text from outside is only ever set as text.

const POLL_MS = 1500;
const byId = (id) => document.getElementById(id);
const imageId = location.pathname.split("/")[2];
const path = `/v1/images/${imageId}/trace`;

let shown = ""; // the answer that is on the page
let chosen = null; // id of the span whose details were asked for
let zoom = null; // id of the span that fills the width
const closed = new Set(); // ids of spans whose children are hidden

function element(name, { text, className, title, ...more } = {}, ...children) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (title) made.title = title;
  made.append(...children);
  return made;
}

function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function ago(moment) {
  const ms = Math.max(0, Date.now() - Date.parse(moment));
  return ms < 60_000 ? "less than a minute ago" : `${duration(Math.floor(ms / 60_000) * 60_000).replace(" 0 s", "")} ago`;
}

const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const what = (part) => (part.category === "gap" ? "between spans" : part.name);

// --- The sum ----------------------------------------------------------------------------------------------------

function facts(trace, isInFlight) {
  const { summary, spans } = trace;
  const waited = Object.entries(summary.waited_ms);
  const members = Math.max(0, ...spans.map((span) => span.members ?? 0));
  const orphans = spans.filter((span) => span.is_orphan).length;
  return [
    isInFlight && ["in flight", "open"],
    summary.errors && [count(summary.errors, "error"), "error"],
    summary.retries && [count(summary.retries, "retry", "retries"), "retry"],
    summary.redeliveries && [count(summary.redeliveries, "redelivery", "redeliveries"), "retry"],
    summary.dispatches > 1 && [`dispatched ${summary.dispatches} times`, "retry"],
    sum(waited.map(([, ms]) => ms)) > 0 && [`waited ${duration(sum(waited.map(([, ms]) => ms)))} in ${count(waited.length, "place")}`, "wait"],
    summary.held_back_ms && [`held back ${duration(summary.held_back_ms)} before a retry`, "wait"],
    members > 1 && [`embedded in a batch of ${members}`, "batch"],
    orphans && [`${count(orphans, "span")} whose parent is missing`, ""],
    [count(spans.length, "span"), ""],
  ].filter(Boolean);
}

function showParts(section, { parts, total_ms }) {
  const bar = section.querySelector(".parts");
  const sums = new Map();
  for (const part of parts) {
    const piece = element("span", { className: `part ${part.category}`, title: `${what(part)}: ${duration(part.duration_ms)}` });
    piece.dataset.service = part.category === "work" ? part.name : "";
    piece.style.flexGrow = part.duration_ms;
    bar.append(piece);
    const known = sums.get(what(part)) ?? { ...part, duration_ms: 0 };
    known.duration_ms += part.duration_ms;
    sums.set(what(part), known);
  }
  const sorted = [...sums.values()].sort((one, other) => other.duration_ms - one.duration_ms);
  bar.ariaLabel = sorted.map((part) => `${what(part)} ${duration(part.duration_ms)}`).join(", ");
  for (const part of sorted) {
    const swatch = element("span", { className: `swatch ${part.category}` });
    swatch.dataset.service = part.category === "work" ? part.name : "";
    const share = total_ms ? Math.round((100 * part.duration_ms) / total_ms) : 0;
    section.querySelector(".legend").append(
      element("li", {}, swatch, element("span", { text: what(part) }), element("b", { text: duration(part.duration_ms) }), element("small", { text: `${share} %` })),
    );
  }
}

// --- The waterfall ----------------------------------------------------------------------------------------------

function badges(span) {
  return [
    span.status === "error" && ["error", "error"],
    span.retry && [`retry ${span.retry}`, "retry"],
    span.is_redelivered && ["delivered again", "retry"],
    span.members > 1 && [`${span.members} photos`, "batch"],
    span.is_open && ["goes on", "open"],
    span.is_orphan && ["parent missing", ""],
    span.clock_shift_ms > 0 && [`clock ${duration(span.clock_shift_ms)} behind`, ""],
  ]
    .filter(Boolean)
    .map(([text, className]) => element("span", { text, className: `badge ${className}` }));
}

// Steps of 1, 2 or 5 of a power of ten, at most six in the width.
function tick(ms) {
  const power = 10 ** Math.floor(Math.log10(Math.max(ms, 0.001) / 6));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => ms / step <= 6);
}

function spread(section, trace) {
  const whole = { start_ms: 0, duration_ms: Math.max(trace.summary.total_ms, 0.001) };
  const { start_ms: from, duration_ms: width } = trace.spans.find((span) => span.id === zoom && span.duration_ms) ?? whole;
  const percent = (ms) => `${((100 * ms) / width).toFixed(4)}%`;
  const step = tick(width);
  const waterfall = section.querySelector(".waterfall");
  waterfall.classList.toggle("zoomed", from !== 0 || width !== whole.duration_ms);
  waterfall.style.setProperty("--tick", percent(step));
  const labels = [];
  for (let at = 0; at < width * 0.92; at += step) {
    const label = element("span", { text: at || from ? `${from ? "+" : ""}${duration(at)}` : "0" });
    label.style.left = percent(at);
    labels.push(label);
  }
  section.querySelector(".ticks").replaceChildren(...labels);
  const bars = waterfall.querySelectorAll(".bar");
  trace.spans.forEach((span, index) => {
    const bar = bars[index];
    bar.style.left = percent(span.start_ms - from);
    bar.style.width = percent(span.duration_ms);
  });
}

function rowOf(span, next) {
  const row = byId("row").content.firstElementChild.cloneNode(true);
  const hasChildren = next?.depth > span.depth;
  row.dataset.id = span.id;
  row.dataset.depth = span.depth;
  row.className = ["row", span.category, span.status, span.is_open && "open", span.attributes["darkroom.is_shared"] && "shared"].filter(Boolean).join(" ");
  row.ariaLevel = span.depth + 1;
  if (hasChildren) row.ariaExpanded = !closed.has(span.id);
  row.style.setProperty("--depth", span.depth);
  row.querySelector(".bar").dataset.service = span.service;
  const name = element("span", { text: span.name, className: "span", title: `${span.name} · ${span.service}` });
  const blob = span.attributes["darkroom.blob.key"]?.split("/").at(-1).replace(/^([0-9a-f]{8})[0-9a-f]{56}/, "$1…");
  if (blob) name.append(element("small", { text: ` ${blob}` }));
  row.querySelector(".what").append(name, ...badges(span));
  row.querySelector(".took").textContent = `${duration(span.duration_ms)}${span.is_open ? " …" : ""}`;
  row.querySelector(".twig").onclick = (event) => {
    event.stopPropagation();
    toggle(row, closed.has(span.id));
  };
  return row;
}

function rows() {
  return [...document.querySelectorAll(".row")];
}

function hideClosed() {
  let below = Infinity;
  for (const row of rows()) {
    const depth = Number(row.dataset.depth);
    if (depth <= below) below = Infinity;
    row.hidden = below < depth;
    if (!row.hidden && closed.has(row.dataset.id)) below = depth;
  }
}

function toggle(row, isOpen) {
  if (!row.ariaExpanded) return;
  isOpen ? closed.delete(row.dataset.id) : closed.add(row.dataset.id);
  row.ariaExpanded = isOpen;
  hideClosed();
}

// --- Details ----------------------------------------------------------------------------------------------------

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function pairs(entries, className) {
  return element("dl", { className }, ...entries.flatMap(([name, value]) => [
    element("dt", { text: name }),
    value instanceof Node ? element("dd", {}, value) : element("dd", { text: plain(value) }),
  ]));
}

function linkTo(link, spans) {
  const target = spans.find((span) => span.id === link.span_id);
  if (!target) return element("code", { text: `${link.trace_id}/${link.span_id}` });
  const button = element("button", { text: target.name, className: "quiet" });
  button.onclick = () => document.querySelector(`.row[data-id="${CSS.escape(target.id)}"]`).focus();
  return button;
}

const SORTS = { work: "work", wait: "waiting: nothing is done for the photo", batch: "shared work, in a trace of its own" };

function showDetails(span, trace) {
  const spans = trace.spans;
  const heading = element("h3", { text: span.name }, ...badges(span));
  const detail = [heading];
  if (span.message) detail.push(element("p", { className: "message", text: span.message }));
  detail.push(
    pairs([
      ["service", span.service],
      ["what", SORTS[span.category]],
      ["began", `${duration(span.start_ms)} after the call`],
      ["took", duration(span.duration_ms) + (span.is_open ? " until now" : "")],
    ]),
    pairs(Object.entries(span.attributes).sort(([one], [other]) => one.localeCompare(other)), "attributes"),
  );
  // A batch links to each of its members: those of other photos are only counted.
  const links = span.category === "batch" ? span.links.filter((link) => spans.some((other) => other.id === link.span_id)) : span.links;
  if (links.length) detail.push(element("h4", { text: "Linked" }), element("ul", {}, ...links.map((link) => element("li", {}, linkTo(link, spans)))));
  for (const event of span.events) {
    const { "exception.stacktrace": stack, ...rest } = event.attributes;
    detail.push(element("h4", { text: `${event.name} at ${duration(event.at_ms)}` }), pairs(Object.entries(rest), "attributes"));
    if (stack) detail.push(element("pre", { text: stack }));
  }
  byId("details").replaceChildren(...detail);
  byId("details").hidden = false;
}

function choose(row, trace) {
  for (const other of rows()) {
    other.tabIndex = other === row ? 0 : -1;
    other.ariaSelected = other === row;
  }
  showDetails(trace.spans.find((span) => span.id === row.dataset.id), trace);
}

function onKey(event, row, trace, section) {
  const visible = rows().filter((each) => !each.hidden);
  const at = visible.indexOf(row);
  const above = () => visible.slice(0, at).findLast((each) => each.dataset.depth < row.dataset.depth);
  const moves = {
    ArrowDown: () => visible[at + 1]?.focus(),
    ArrowUp: () => visible[at - 1]?.focus(),
    Home: () => visible[0].focus(),
    End: () => visible.at(-1).focus(),
    ArrowRight: () => (row.ariaExpanded === "false" ? toggle(row, true) : row.ariaExpanded && visible[at + 1]?.focus()),
    ArrowLeft: () => (row.ariaExpanded === "true" ? toggle(row, false) : above()?.focus()),
    Enter: () => toggle(row, row.ariaExpanded === "false"),
    z: () => zoomTo(row.dataset.id, section, trace),
    Escape: () => zoomTo(null, section, trace),
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
}

function zoomTo(id, section, trace) {
  zoom = id;
  spread(section, trace);
}

// --- The page ---------------------------------------------------------------------------------------------------

const ROLES = { upload: "This upload", original: "The work on the same bytes, which an earlier upload began" };

function sectionOf(trace, answer) {
  const section = byId("trace").content.firstElementChild.cloneNode(true);
  const isInFlight = !["ready", "failed"].includes(answer.status) && trace === answer.traces.at(-1);
  const role = section.querySelector(".role");
  role.textContent = ROLES[trace.role];
  role.hidden = answer.traces.length === 1 && trace.role === "upload";
  section.querySelector(".total strong").textContent = duration(trace.summary.total_ms);
  section.querySelector(".total span").textContent = isInFlight ? "so far" : "from the call to the end";
  section.querySelector(".facts").append(...facts(trace, isInFlight).map(([text, className]) => element("li", { text, className })));
  showParts(section, trace.summary);
  trace.spans.forEach((span, index) => {
    const row = rowOf(span, trace.spans[index + 1]);
    row.onclick = () => row.focus();
    row.ondblclick = () => zoomTo(span.id, section, trace);
    row.onfocus = () => {
      chosen = span.id;
      byId("details").classList.add("asked");
      choose(row, trace);
    };
    row.onkeydown = (event) => onKey(event, row, trace, section);
    section.querySelector(".waterfall").append(row);
  });
  spread(section, trace);
  return section;
}

function show(answer) {
  const hadFocus = document.activeElement?.classList.contains("row");
  byId("traces").replaceChildren(...answer.traces.map((trace) => sectionOf(trace, answer)));
  hideClosed();
  const spans = answer.traces.flatMap((trace) => trace.spans);
  // What went wrong is looked for first, then what goes on.
  const failed = spans.findLast((span) => span.status === "error");
  const open = spans.findLast((span) => span.is_open);
  const first = spans.find((span) => span.id === chosen) ?? failed ?? open ?? spans[0];
  const row = document.querySelector(`.row[data-id="${CSS.escape(first.id)}"]`);
  choose(row, answer.traces.find((trace) => trace.spans.includes(first)));
  if (hadFocus) row.focus({ preventScroll: true });
}

function say(title, detail, remedy) {
  byId("notice").hidden = !title;
  byId("notice").replaceChildren(...[
    title && element("strong", { text: title }),
    detail && element("p", { text: detail }),
    remedy && element("p", { text: remedy, className: "remedy" }),
  ].filter(Boolean));
}

function showPhoto(image) {
  byId("photo").hidden = false;
  byId("name").textContent = image.filename ?? image.id;
  document.title = `${image.filename ?? image.id} · trace · Darkroom`;
  byId("state").className = image.status;
  byId("state").textContent = [image.error?.title ?? image.status, image.lane, image.duplicate && "duplicate", ago(image.created_at)].filter(Boolean).join(" · ");
  byId("state").title = image.error?.detail ?? "";
  const picture = byId("thumbnail");
  if (image.thumbnails.small && picture.hidden) {
    picture.src = image.thumbnails.small.url;
    picture.hidden = false;
  }
}

async function refresh() {
  const [image, trace] = await Promise.all([fetch(`/v1/images/${imageId}`), fetch(path)]);
  if (image.ok) showPhoto(await image.json());
  const text = await trace.text();
  const answer = JSON.parse(text);
  if (!trace.ok) {
    say(answer.title, answer.detail, answer.remedy);
    return answer.type.endsWith("/trace-not-recorded");
  }
  say(answer.is_cut && "This is not all", answer.is_cut && "The trace has more spans than are shown here.");
  if (text !== shown) show(answer);
  shown = text;
  return answer.is_growing;
}

async function follow() {
  let isGrowing = true;
  try {
    isGrowing = await refresh();
  } catch {
    say("Darkroom does not answer", "The page goes on asking.");
  }
  document.body.dataset.drawn = true;
  if (isGrowing) setTimeout(follow, POLL_MS);
}

byId("raw").href = path;
follow();
