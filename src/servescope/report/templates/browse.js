"use strict";
// The list works without this. With it: it filters while one types, keeps itself up to date, and
// remembers the order in which runs were ticked: the first is the baseline.
(() => {
  const REFRESH_MS = 2000;
  const TYPING_MS = 150;
  const runs = document.getElementById("runs");
  const filter = document.getElementById("filter");
  const said = document.getElementById("ticked");
  const [swap, none, go] = ["swap", "none", "go"].map((id) => document.getElementById(id));
  const hint = said.textContent;
  let ticked = history.state?.ticked ?? []; // [key, name], in the order of ticking
  let latest = 0;
  let refreshing = 0;

  const boxes = () => [...runs.querySelectorAll("input[name=run]")];

  function show() {
    const keys = ticked.map(([key]) => key);
    for (const box of boxes()) box.checked = keys.includes(box.value);
    const names = ticked.map(([, name]) => name);
    const against = names.length > 1 ? `, against it: ${names.slice(1).join(", ")}` : "";
    said.textContent = names.length ? `Baseline: ${names[0]}${against}` : hint;
    swap.hidden = names.length !== 2;
    none.hidden = !names.length;
    go.disabled = names.length < 2;
    history.replaceState({ ticked }, "");
  }

  function tick(box) {
    ticked = ticked.filter(([key]) => key !== box.value);
    if (box.checked) ticked.push([box.value, box.closest("tr").querySelector("th").firstChild.textContent]);
    show();
  }

  // Where the keyboard is inside the list, so that it is there again in the next one.
  function place() {
    const at = document.activeElement;
    if (!runs.contains(at) || at === runs) return null;
    const row = at.closest("[data-run]");
    if (at.dataset.sort) return `[data-sort="${CSS.escape(at.dataset.sort)}"]`;
    return row ? `[data-run="${CSS.escape(row.dataset.run)}"] ${at.localName}` : ".scroll";
  }

  async function load(href) {
    const mine = ++latest;
    clearTimeout(refreshing);
    let text;
    try {
      const answer = await fetch(href);
      if (!answer.ok) throw new Error(answer.statusText);
      text = await answer.text();
    } catch {
      return; // the command has ended: what is shown stays
    }
    if (mine !== latest) return;
    const next = new DOMParser().parseFromString(text, "text/html").getElementById("runs");
    history.replaceState({ ticked }, "", href);
    if (next.innerHTML !== runs.dataset.shown) {
      const [focus, left] = [place(), runs.querySelector(".scroll")?.scrollLeft ?? 0];
      runs.replaceChildren(...document.importNode(next, true).childNodes);
      runs.dataset.shown = next.innerHTML;
      if (focus) runs.querySelector(focus)?.focus({ preventScroll: true });
      if (left) runs.querySelector(".scroll")?.scrollTo({ left });
    }
    runs.toggleAttribute("data-going", next.hasAttribute("data-going"));
    show();
    wait();
  }

  function wait() {
    clearTimeout(refreshing);
    if (runs.hasAttribute("data-going") && !document.hidden) {
      refreshing = setTimeout(() => load(location.href), REFRESH_MS);
    }
  }

  function asked() {
    const fields = [...new FormData(filter)].filter(([, value]) => value !== "");
    return fields.length ? `/?${new URLSearchParams(fields)}` : "/";
  }

  let typing = 0;
  filter.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => load(asked()), TYPING_MS);
  });
  filter.addEventListener("submit", (event) => {
    event.preventDefault();
    load(asked());
  });

  runs.addEventListener("change", (event) => {
    if (event.target.name === "run") tick(event.target);
  });
  runs.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-sort]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const order = new URL(link.href).searchParams;
    for (const name of ["sort", "down"]) {
      filter.elements[name]?.remove();
      if (!order.has(name)) continue;
      const field = Object.assign(document.createElement("input"), { type: "hidden", name });
      field.value = order.get(name);
      filter.append(field);
    }
    load(asked());
  });

  document.getElementById("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    location.assign(`/compare?${new URLSearchParams(ticked.map(([key]) => ["run", key]))}`);
  });
  swap.addEventListener("click", () => { ticked.reverse(); show(); });
  none.addEventListener("click", () => { ticked = []; show(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) load(location.href); });

  runs.dataset.shown = runs.innerHTML;
  show();
  wait();
})();
