"use strict";
(() => {
  // Okabe and Ito's colours, darker on white and lighter on black where they would be too faint.
  const PALETTE = {
    light: {
      ink: "#1a1f26", muted: "#59636f", rule: "#dfe3e8", paper: "#ffffff",
      bad: "#b3261e", limit: "#b3261e", good: "#00795c",
      waiting: "#b9bfc7", prefill: "#e08a00", decode: "#0a6eb4", failed: "#b3261e",
      kinds: ["#0a6eb4", "#d55e00", "#00795c", "#a8488a", "#8a6d00", "#3fa2d9", "#59636f", "#1a1f26"],
      scale: ["#46106b", "#31508a", "#1f7a8c", "#22a07b", "#7bb83a", "#c9a800"],
    },
    dark: {
      ink: "#e4e8ec", muted: "#9ba6b2", rule: "#2d353e", paper: "#14181d",
      bad: "#ff8a80", limit: "#ff8a80", good: "#3cc9a0",
      waiting: "#5d6873", prefill: "#f0a830", decode: "#5fb4f0", failed: "#ff8a80",
      kinds: ["#5fb4f0", "#ff9a52", "#3cc9a0", "#e39ac8", "#e8d44d", "#9ad4f5", "#9ba6b2", "#e4e8ec"],
      scale: ["#b184e8", "#7c93e6", "#4fb0c6", "#45c895", "#a3d95b", "#f2dc4e"],
    },
  };
  const HEIGHT_PX = 420;
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();
  let theme = dark.matches ? "dark" : "light";

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function between(colours, share) {
    const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
    const [low, high] = [channels(colours[Math.floor(at)]), channels(colours[Math.ceil(at)])];
    const mixed = low.map((value, k) => Math.round(value + (high[k] - value) * (at % 1)));
    return "#" + mixed.map((value) => value.toString(16).padStart(2, "0")).join("");
  }

  // A name such as "bad", a number (a kind), "scale:0.3" (a place in an order); "@0.2" is opacity.
  function colour(name, shades) {
    const [base, opacity] = String(name).split("@");
    let found = shades[base];
    if (base.startsWith("scale:")) found = between(shades.scale, Number(base.slice(6)));
    else if (/^\d+$/.test(base)) found = shades.kinds[Number(base) % shades.kinds.length];
    if (typeof found !== "string") found = shades.ink;
    return opacity ? `rgba(${channels(found).join(",")},${Number(opacity)})` : found;
  }

  function coloured(value, shades) {
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, shades));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => {
      if (!key.endsWith("colour")) return [key, coloured(inner, shades)];
      const made = Array.isArray(inner) ? inner.map((one) => colour(one, shades)) : colour(inner, shades);
      return [key.slice(0, -6) + "color", made];
    }));
  }

  function layoutOf(plot, shades, width) {
    const narrow = width < 560;
    const axis = {
      gridcolor: shades.rule, linecolor: shades.rule, zerolinecolor: shades.rule, tickcolor: shades.rule,
      automargin: true, showline: true, title: { standoff: 8, font: { size: 12, color: shades.muted } }, nticks: narrow ? 5 : 9,
    };
    const layout = coloured(plot.layout, shades);
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis/.test(k))])) {
      const own = layout[key] || {};
      layout[key] = { ...axis, ...own, title: { ...axis.title, ...own.title } };
    }
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      hoverlabel: { bgcolor: shades.paper, bordercolor: shades.muted, font: { color: shades.ink }, align: "left", namelength: 40 },
      ...layout,
      margin: { l: 48, r: 12, t: 12, b: 40, ...layout.margin },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", ...layout.legend },
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: shades.ink },
      width, height: layout.height || HEIGHT_PX, autosize: false,
    };
  }

  const dataOf = (figure) => JSON.parse(figure.querySelector("script").textContent);

  function draw(figure, shown = theme, width = 0) {
    const place = figure.querySelector(".plot");
    const plot = dataOf(figure);
    const wide = width || place.clientWidth;
    if (!wide) return; // not chosen: it is drawn when it is
    drawn.add(figure);
    const shades = PALETTE[shown];
    Plotly.react(place, coloured(plot.traces, shades), layoutOf(plot, shades, wide), {
      displaylogo: false, displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      toImageButtonOptions: { filename: figure.id, scale: 2 },
    });
    place.dataset.drawn = shown;
  }

  const figures = [...document.querySelectorAll("figure")];
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !drawn.has(target)) draw(target);
    }
  }, { rootMargin: "600px 0px" });
  figures.forEach((figure) => watch.observe(figure));

  function turn(to) {
    theme = to;
    root.dataset.theme = to;
    button.textContent = to === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${to === "dark" ? "light" : "dark"} colours`);
    drawn.forEach((figure) => draw(figure));
  }
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => turn(theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => turn(dark.matches ? "dark" : "light"));
  turn(theme);

  let lastWidth = root.clientWidth;
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => {
      if (root.clientWidth === lastWidth) return;
      lastWidth = root.clientWidth;
      drawn.forEach((figure) => draw(figure));
    }, 100);
  });

  // On paper everything is there, in light colours and as wide as the page.
  const PAPER_PX = 680;
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    figures.forEach((figure) => draw(figure, "light", PAPER_PX));
    document.querySelectorAll("details").forEach((part) => {
      part.dataset.was = part.open ? "open" : "";
      part.open = true;
    });
  });
  addEventListener("afterprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = part.dataset.was === "open"; });
    turn(theme);
  });

  for (const choice of document.querySelectorAll(".choice")) {
    choice.addEventListener("change", (event) => {
      for (const figure of choice.parentElement.querySelectorAll("figure")) {
        figure.classList.toggle("unchosen", figure.id !== event.target.value);
        if (figure.id === event.target.value) draw(figure);
      }
    });
  }

  for (const csv of document.querySelectorAll("button.csv")) {
    csv.addEventListener("click", () => {
      const figure = csv.closest("figure");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([dataOf(figure).csv], { type: "text/csv;charset=utf-8" }));
      link.download = `${figure.id}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  function compare(a, b, way) {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not there comes last, always
    const [x, y] = [Number(a), Number(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
    return way * order;
  }

  for (const head of document.querySelectorAll("thead th")) {
    const sort = document.createElement("button");
    sort.type = "button";
    sort.append(...head.childNodes);
    head.append(sort);
    sort.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const keyOf = (row) => row.cells[head.cellIndex].dataset.key;
      body.append(...[...body.rows].sort((a, b) => compare(keyOf(a), keyOf(b), up ? 1 : -1)));
    });
  }
})();
