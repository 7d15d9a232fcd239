"use strict";

const MOST_AT_ONCE = 30;

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Plots. */

function inScheme(layout) {
  const { color, backgroundColor, fontFamily } = getComputedStyle(document.body);
  const line = getComputedStyle(document.querySelector("header")).borderBottomColor;
  const axis = (of) => ({ ...of, gridcolor: line, linecolor: line, tickcolor: line });
  return {
    ...layout,
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color, family: fontFamily, size: 13 },
    hoverlabel: { bgcolor: backgroundColor, bordercolor: line, font: { color } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: color },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
}

function config() {
  return {
    responsive: true,
    displaylogo: false,
    displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false, // which is on where nothing is said
  };
}

function draw(place, content) {
  const { data, layout, labels, width } = content.figures[place.dataset.plot];
  const texts = content.labels[labels];
  for (const trace of data) if (trace.places && !trace.text) trace.text = trace.places.map((at) => texts[at]);
  place.style.minWidth = width ? `${width}px` : "";
  return Plotly.react(place, data, inScheme(layout), config());
}

function showPicture(place) {
  for (const picture of place.querySelectorAll("img")) picture.hidden = picture.dataset.name !== place.dataset.plot;
}

async function startPlots(content) {
  const places = [...document.querySelectorAll(".plot")];
  let show = showPicture;
  if (document.getElementById("library")) {
    const program = element("script");
    program.textContent = await unpacked("library");
    document.head.append(program);
    show = (place) => draw(place, content);
    const redraw = () => places.forEach(show);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    document.querySelector(".scheme").addEventListener("change", redraw);
  }
  for (const place of places) {
    await show(place);
    place.closest("figure").querySelector("select")?.addEventListener("change", (event) => {
      place.dataset.plot = event.target.value;
      show(place);
    });
  }
}

/* Queries. */

const ORDERS = {
  "largest gains": (a, b) => b - a,
  "largest losses": (a, b) => a - b,
  "largest differences": (a, b) => Math.abs(b) - Math.abs(a),
};

function picker(title, names, chosen, listen) {
  const label = element("label", "", `${title} `);
  const select = element("select");
  names.forEach((name, at) => select.append(new Option(name, at, at === chosen, at === chosen)));
  select.addEventListener("change", () => listen(Number(select.value)));
  label.append(select);
  return label;
}

function startBrowser(place, { systems, measure, queries }) {
  const against = Math.max(0, systems.indexOf("dense"));
  const state = { one: systems.length - 1, other: against, order: 0, sought: "", shown: MOST_AT_ONCE };
  if (systems[1] === "against") Object.assign(state, { one: 0, other: 1 });
  const haystacks = queries.map((query) =>
    [query.id, query.text, query.domain, ...query.documents.flatMap(({ id, text }) => [id, text])].join(" ").toLowerCase()
  );
  const controls = element("div", "controls");
  const count = element("span", "note");
  count.setAttribute("aria-live", "polite");
  const list = element("div");
  const set = (name) => (value) => {
    Object.assign(state, { [name]: value, shown: MOST_AT_ONCE });
    fill();
  };
  const search = element("input");
  Object.assign(search, { type: "search", placeholder: "search queries, documents, domains" });
  search.setAttribute("aria-label", "search");
  search.addEventListener("input", () => set("sought")(search.value.toLowerCase()));
  controls.append(
    picker("", systems, state.one, set("one")),
    picker("against", systems, state.other, set("other")),
    picker("order", Object.keys(ORDERS), 0, set("order")),
    search,
    count
  );
  place.append(controls, list);

  function fill() {
    const words = state.sought.split(/\s+/).filter(Boolean);
    const found = queries
      .map((query, at) => ({ query, at, change: query.scores[state.one] - query.scores[state.other] }))
      .filter(({ at }) => words.every((word) => haystacks[at].includes(word)));
    const order = Object.values(ORDERS)[state.order];
    found.sort((a, b) => order(a.change, b.change) || a.at - b.at);
    count.textContent = `${found.length} of ${queries.length}`;
    list.replaceChildren(...found.slice(0, state.shown).map(({ query, change }) => row(query, change)));
    if (found.length > state.shown) {
      const more = element("button", "", "more");
      more.addEventListener("click", () => {
        state.shown += MOST_AT_ONCE;
        fill();
      });
      list.append(more);
    }
  }

  function row(query, change) {
    const made = element("details", "query");
    const head = element("summary");
    const kind = change > 0 ? "gain" : change < 0 ? "loss" : "";
    const sign = change > 0 ? "+" : change < 0 ? "−" : "";
    const scores = `${measure} ${query.scores[state.other].toFixed(3)} to ${query.scores[state.one].toFixed(3)}`;
    head.append(
      element("span", `change ${kind}`, `${sign}${Math.abs(change).toFixed(3)}`),
      element("span", "asked", query.text),
      element("span", "scores", [scores, query.domain, query.id].filter(Boolean).join(" · "))
    );
    const chosen = [state.one, state.other];
    const ofThese = query.documents.filter(({ relevant, ranks }) => relevant || chosen.some((at) => ranks[at] === 1));
    made.append(head, ...ofThese.map((found) => told(found, chosen)));
    return made;
  }

  function told(found, chosen) {
    const made = element("div", "document");
    const text = element("p");
    const first = [...new Set(chosen)].filter((at) => found.ranks[at] === 1).map((at) => `first in ${systems[at]}`);
    text.append(element("span", "why", `${[...(found.relevant ? ["answers"] : []), ...first].join(", ")}: `));
    text.append(element("code", "", found.id), ` ${found.text}`);
    const ranks = systems.map((name, at) => `${name} ${found.ranks[at] ?? "–"}`).join(" · ");
    made.append(text, element("p", "ranks", `rank: ${ranks}`));
    return made;
  }

  fill();
}

/* All of it. */

document.querySelector(".scheme").addEventListener("change", (event) => {
  document.documentElement.dataset.scheme = event.target.value;
});

(async () => {
  const content = JSON.parse(await unpacked("content"));
  document.querySelectorAll(".browser").forEach((place, at) => startBrowser(place, content.browsers[at]));
  await startPlots(content);
  document.documentElement.dataset.ready = "";
})();
