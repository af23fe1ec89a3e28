// The page: upload by dropping, watch what becomes of it, search. Text from outside is only ever set as text.

const POLL_MS = 1000;
const PAGE = 48;
const byId = (id) => document.getElementById(id);
const photos = byId("photos");

let nextPage = null; // token of the older photos
let isSearch = false; // whether the list shows hits instead of recent photos

async function call(path, options) {
  const response = await fetch(path, options);
  const body = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error([body.detail, body.remedy].filter(Boolean).join("\n"));
  return body;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// Runs what a click asked for; what goes wrong is shown.
async function attempt(action) {
  notice("");
  try {
    await action();
  } catch (error) {
    notice(error.message);
  }
}

function isFinished(image) {
  return image.status === "ready" || image.status === "failed";
}

function show(item, image, score) {
  item.dataset.id = image.id;
  item.dataset.finished = isFinished(image);
  item.className = image.status;
  item.querySelector(".name").textContent = image.filename ?? image.id;
  item.querySelector(".name").title = image.tags.join(", ");
  item.querySelector(".score").textContent = score === undefined ? "" : score.toFixed(3);
  item.querySelector(".state").textContent = image.error?.title ?? (image.status === "ready" ? "" : image.status);
  item.querySelector(".state").title = image.error?.detail ?? "";
  item.querySelector(".trace").href = `/images/${image.id}/trace`;
  item.querySelector(".similar").hidden = image.status !== "ready";
  item.querySelector(".retry").hidden = image.status !== "failed";
  const picture = item.querySelector("img");
  const frame = item.querySelector(".picture");
  if (image.thumbnails.small && picture.hidden) {
    // The main colour until the thumbnail is here, and not behind what a transparent one leaves open.
    frame.style.background = image.palette?.[0]?.hex ?? "";
    picture.onload = () => (frame.style.background = "");
    picture.src = image.thumbnails.small.url;
    picture.alt = image.filename ?? "";
    picture.hidden = false;
    item.querySelector("a").href = image.thumbnails.large.url;
  }
}

function card(image, score) {
  const item = byId("photo").content.firstElementChild.cloneNode(true);
  show(item, image, score);
  item.querySelector(".similar").onclick = () =>
    attempt(() => search(`Like ${image.filename ?? image.id}`, postJson("/v1/search", { image_id: image.id, limit: PAGE })));
  item.querySelector(".retry").onclick = () =>
    attempt(async () => show(item, await call(`/v1/images/${image.id}:retry`, { method: "POST" })));
  item.querySelector(".delete").onclick = () =>
    attempt(async () => {
      await call(`/v1/images/${image.id}`, { method: "DELETE" });
      item.remove();
    });
  return item;
}

function heading(title) {
  byId("title").textContent = title;
  byId("back").hidden = !isSearch;
  byId("more").hidden = isSearch || !nextPage;
  byId("nothing").hidden = photos.children.length > 0;
}

async function recent(token = null) {
  const query = new URLSearchParams({ limit: PAGE, ...(token && { page_token: token }) });
  const page = await call(`/v1/images?${query}`);
  isSearch = false;
  nextPage = page.next_page_token;
  const cards = page.images.map((image) => card(image));
  token ? photos.append(...cards) : photos.replaceChildren(...cards);
  heading("Recent photos");
}

function postJson(path, body) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

async function search(title, answer) {
  const { results } = await answer;
  isSearch = true;
  photos.replaceChildren(...results.map(({ image, score }) => card(image, score)));
  heading(title);
}

async function upload(files) {
  if (!files.length) return;
  const form = new FormData();
  for (const file of files) form.append("file", file);
  notice(`Uploading ${files.length} ${files.length === 1 ? "file" : "files"} …`);
  const { images } = await call("/v1/images", {
    method: "POST",
    headers: { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) },
    body: form,
  });
  const duplicates = images.filter((image) => image.duplicate).length;
  notice(duplicates ? `${duplicates} of them were here already.` : "");
  if (isSearch) return recent();
  photos.prepend(...images.reverse().map((image) => card(image)));
  heading("Recent photos");
}

// Asks again for every photo on the page whose work is not over.
async function follow() {
  for (const item of photos.querySelectorAll("[data-finished=false]")) {
    const response = await fetch(`/v1/images/${item.dataset.id}`);
    if (response.status === 404) item.remove();
    else if (response.ok) show(item, await response.json());
  }
}

async function system() {
  const { ledger, models, dispatcher } = await call("/v1/status");
  const active = models.find((model) => model.state === "active");
  const parts = [
    `${ledger.ready} ready`,
    ledger.in_flight && `${ledger.in_flight} in flight`,
    ledger.failed && `${ledger.failed} failed`,
    active ? `model ${active.id}` : "no model yet",
    !dispatcher.connected && "broker away: photos wait",
  ];
  byId("system").textContent = parts.filter(Boolean).join(" · ");
}

function figure(value, digits = 0) {
  return value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

// Asked for only while somebody looks.
async function queues() {
  if (!byId("queues").open) return;
  const { queues, dead_letters: dead, unknown } = await call("/v1/queues");
  const rows = queues.map((queue) => {
    const row = document.createElement("tr");
    row.className = queue.consumers === 0 ? "left" : queue.depth ? "busy" : "";
    const age = queue.oldest_age_s === null ? "–" : `${figure(queue.oldest_age_s, queue.oldest_age_s < 10 ? 2 : 0)} s`;
    const { name, depth, in_hand, rate_per_s, consumers, probe } = queue;
    for (const text of [name, figure(depth), age, figure(in_hand), figure(rate_per_s, 2), figure(consumers), probe?.state ?? "–"])
      row.insertCell().textContent = text;
    row.lastChild.title = probe?.text ?? "";
    row.lastChild.className = probe?.state ?? "";
    return row;
  });
  byId("queues").querySelector("tbody").replaceChildren(...rows);
  const letters = dead.supported ? `${figure(dead.kept)} dead letters wait for a person` : "This broker has no dead letters";
  byId("queues").querySelector("p").textContent = [letters, ...new Set(Object.values(unknown))].join(" · ");
}

async function poll() {
  try {
    await follow();
    await system();
    await queues();
  } catch {
    byId("system").textContent = "Darkroom does not answer.";
  }
  setTimeout(poll, POLL_MS);
}

byId("search").onsubmit = (event) => {
  event.preventDefault();
  const text = new FormData(event.target).get("text").trim();
  attempt(() => (text ? search(`“${text}”`, postJson("/v1/search", { text, limit: PAGE })) : recent()));
};
byId("query-picture").onchange = ({ target }) => {
  const form = new FormData();
  form.append("file", target.files[0]);
  form.append("limit", PAGE);
  const name = target.files[0].name;
  target.value = "";
  attempt(() => search(`Like ${name}`, call("/v1/search:image", { method: "POST", body: form })));
};
byId("queues").ontoggle = () => attempt(queues);
byId("queues").open = location.hash === "#queues";
byId("back").onclick = () => attempt(() => recent());
byId("more").onclick = () => attempt(() => recent(nextPage));

const drop = byId("drop");
byId("files").onchange = ({ target }) =>
  attempt(async () => {
    const files = [...target.files];
    target.value = "";
    await upload(files);
  });
drop.onkeydown = (event) => {
  if (event.key === "Enter" || event.key === " ") byId("files").click();
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  attempt(() => upload([...event.dataTransfer.files]));
});

attempt(() => recent());
poll();
