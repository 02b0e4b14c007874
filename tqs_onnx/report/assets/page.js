"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = () => window.innerWidth < 620;

  function colour(name) {
    const [, role, alpha] = name.split(":");
    const hex = getComputedStyle(root).getPropertyValue("--" + role).trim();
    if (alpha === undefined) return hex;
    const part = (i) => parseInt(hex.slice(i, i + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
  }
  function themed(value) {
    if (typeof value === "string") return value.startsWith("var:") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
    return value;
  }
  function laid(layout, log) {
    const ink = colour("var:ink"), line = colour("var:line");
    const axis = (own) => ({
      gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...own,
      title: { ...(own || {}).title, standoff: 8 },
    });
    const yaxis = axis(layout.yaxis);
    if (log) { yaxis.type = "log"; delete yaxis.rangemode; delete yaxis.range; }
    return {
      height: 340, ...layout, xaxis: axis(layout.xaxis), yaxis,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      margin: { l: 54, r: 12, t: 8, b: 44 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: colour("var:surface"), bordercolor: line, font: { color: ink } },
      hovermode: layout.hovermode || "closest", dragmode: narrow() ? false : "zoom",
    };
  }
  function draw(figure) {
    const select = figure.querySelector("select");
    const chosen = figures[figure.dataset.chart][select ? select.selectedIndex : 0];
    const log = figure.querySelector(".log");
    const config = { responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d"], toImageButtonOptions: { format: "svg", filename: figure.dataset.chart } };
    Plotly.react(figure.querySelector(".plot"), themed(chosen.data), laid(themed(chosen.layout), log && log.checked), config);
  }
  const charts = [...document.querySelectorAll(".chart")];
  const drawAll = () => charts.forEach(draw);
  charts.forEach((figure) => {
    figure.querySelectorAll("select, .log").forEach((tool) => tool.addEventListener("change", () => draw(figure)));
  });

  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  function theme(dark) { root.dataset.theme = dark ? "dark" : "light"; drawAll(); }
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme !== "dark"));
  preferred.addEventListener("change", (event) => theme(event.matches));
  theme(preferred.matches);

  function sortBy(table, index, header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const number = header.classList.contains("number");
    const key = (row) => row.cells[index].dataset.value;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = number ? Number(x.replace("inf", "Infinity")) - Number(y.replace("inf", "Infinity")) : x.localeCompare(y);
      return descending ? -order : order;
    });
    body.append(...rows);
  }
  function csv(table) {
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const head = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    return [head, ...rows.map((row) => [...row.cells].map((cell) => cell.dataset.value))]
      .map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }
  document.querySelectorAll(".table").forEach((box) => {
    const table = box.querySelector("table");
    [...table.tHead.rows[0].cells].forEach((header, index) =>
      header.querySelector("button").addEventListener("click", () => sortBy(table, index, header)));
    const search = box.querySelector("input[type=search]");
    if (search) search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      box.querySelector(".count").textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
    });
    box.querySelector(".download").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
      link.download = `${box.dataset.table}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  });
})();
