"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tables: a click on a heading sorts, numbers before words, the other way on the second click.
  const number = (text) => {
    const match = text.trim().match(/^[+-]?\d[\d.]*(e[+-]?\d+)?/i);
    return match ? parseFloat(match[0]) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b, "en", { numeric: true });
    return x - y;
  };
  for (const table of all("table.sortable")) {
    const headings = all("thead th", table);
    headings.forEach((heading, at) => one("button", heading).addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => {
        const texts = [a.cells[at].textContent, b.cells[at].textContent];
        const words = isNaN(number(texts[0])) - isNaN(number(texts[1]));
        return at && words ? words : (down ? -1 : 1) * compare(...texts); // what is no number stays at the end
      });
      body.append(...sorted);
    }));
    const find = one("input[type=search]", table.closest(".tabled"));
    if (find) find.addEventListener("input", () => {
      const word = find.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(word);
    });
  }

  // What scrolls sideways says so.
  const watch = () => {
    for (const box of all(".tabled .scroll")) {
      const hint = one(".hint", box.closest(".tabled"));
      hint.hidden = box.scrollWidth <= box.clientWidth + 1;
      box.classList.toggle("scrolled", box.scrollLeft > 2);
    }
  };
  for (const box of all(".tabled .scroll")) box.addEventListener("scroll", watch, { passive: true });
  addEventListener("resize", watch);
  addEventListener("load", watch);
  watch();

  // Small images are shown in their own pixels.
  const pixels = (image) => image.classList.toggle("pixels", image.naturalWidth > 0 && image.naturalWidth <= 128);
  document.addEventListener("load", (event) => { if (event.target.tagName === "IMG") pixels(event.target); }, true);
  const pictures = all(".images img");
  pictures.filter((image) => image.complete).forEach(pixels);
  const whole = (image) => image.dataset.whole || image.src;
  const show = (target, image) => {
    target.src = image.src; // at once, and whole when it is there
    target.alt = image.alt;
    if (image.dataset.whole) {
      const better = new Image();
      better.onload = () => { if (target.alt === image.alt) target.src = better.src; };
      better.src = image.dataset.whole;
    }
  };

  // An image at its full size.
  const viewer = one("#viewer");
  let seen = null;
  const open = (image) => {
    seen = image;
    const [plan, prompt] = [image.closest("tr").cells[0].textContent, image.closest("td").cellIndex];
    one("#viewer-title").textContent = plan;
    one(".prompt", viewer).textContent = image.closest("table").tHead.rows[0].cells[prompt].textContent;
    show(one("img", viewer), image);
    if (!viewer.open) viewer.showModal();
  };
  const turn = (plans, prompts) => {
    const cell = seen.closest("td"), row = cell.parentElement;
    const rows = [...row.parentElement.rows].filter((other) => !other.hidden);
    const next = rows[(rows.indexOf(row) + plans + rows.length) % rows.length];
    const images = all("img", next), at = all("img", row).indexOf(seen);
    open(images[(at + prompts + images.length) % images.length]);
  };
  pictures.forEach((image) => image.closest("button").addEventListener("click", () => open(image)));
  one(".close", viewer).addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  for (const button of all("[data-move]", viewer)) button.addEventListener("click", () => turn(0, +button.dataset.move));
  for (const button of all("[data-step]", viewer)) button.addEventListener("click", () => turn(+button.dataset.step, 0));
  viewer.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (way) { turn(...way); event.preventDefault(); }
  });

  const data = one("script#sweep-data");
  if (!data) return;
  const plans = JSON.parse(data.textContent);
  const points = all(".point");

  // One chart at a time, and the methods that are asked for.
  const charts = all(".chart");
  const metric = () => (one("input[name=metric]:checked") || {}).value;
  const choose_chart = () => charts.forEach((chart) => { chart.hidden = metric() && chart.id !== `chart-${metric()}`; });
  all("input[name=metric]").forEach((radio) => radio.addEventListener("change", choose_chart));
  choose_chart();
  const methods = all(".methods input");
  const filter = () => {
    const shown = new Set(methods.filter((box) => box.checked).map((box) => box.value));
    for (const part of all("[data-family]")) {
      if (part.tagName === "TR") part.hidden = !shown.has(part.dataset.family);
      else part.style.display = shown.has(part.dataset.family) ? "" : "none";
    }
    for (const line of all(".fewer")) line.style.display = shown.has("0") ? "" : "none";
    watch();
  };
  methods.forEach((box) => box.addEventListener("change", filter));
  filter(); // a browser that goes back keeps the boxes

  // The plan that is chosen: its numbers, and its images beside others.
  const panel = one(".panel"), prompt = one("#panel-prompt"), other = one("#panel-other");
  const frame = one(".compare"), range = one("#compare-range");
  let chosen = null;
  const image_of = (id) => pictures.find((image) => image.dataset.plan === id && image.dataset.prompt === prompt.value);
  const cell = (tag, value, range) => {
    const made = document.createElement(tag);
    made.append(value);
    if (tag === "th") made.scope = "row";
    if (range) made.append(Object.assign(document.createElement("small"), { textContent: range }));
    return made;
  };
  const line = ([name, ...scores]) => {
    const row = document.createElement("tr");
    row.append(cell("th", name), ...scores.map((text) => cell("td", ...text.split(/ (?=\[)/))));
    return row;
  };
  const split = () => frame.style.setProperty("--at", `${range.value}%`);
  const trio = () => { // the plan, the model as it is, and what is nearest in cost, at once
    const shown = [[chosen, plans.rows[chosen].label], ...plans.rows[chosen].beside];
    const figures = shown.filter(([id]) => image_of(id)).map(([id, text]) => {
      const figure = document.createElement("figure"), button = document.createElement("button");
      const image = document.createElement("img"), caption = document.createElement("figcaption");
      button.type = "button";
      button.className = "picture";
      show(image, image_of(id));
      button.append(image);
      button.addEventListener("click", () => open(image_of(id)));
      caption.textContent = text;
      figure.append(button, caption);
      return figure;
    });
    one(".trio").replaceChildren(...figures);
    one(".trio").hidden = !figures.length;
  };
  const put_beside = () => {
    trio();
    const pair = [image_of(chosen), image_of(other.value)];
    one(".beside").hidden = !pair[0] || !pair[1];
    if (!pair[0] || !pair[1]) return;
    show(one("#compare-over"), pair[0]);
    show(one("#compare-under"), pair[1]);
    one("#compare-left").textContent = `◀ ${plans.rows[chosen].label}`;
    one("#compare-right").textContent = `${plans.rows[other.value].label} ▶`;
    one("#panel-prompt-text").textContent = `“${pair[0].closest("table").tHead.rows[0].cells[+prompt.value + 1].textContent}”`;
  };
  const choose = (id) => {
    chosen = id;
    const plan = plans.rows[id];
    panel.hidden = false;
    one("#panel-title").textContent = plan.label;
    one("#panel-cost").textContent = plan.cost;
    one("#panel-scores").replaceChildren(...plan.scores.map(line));
    const kept = other.selectedIndex;
    other.replaceChildren(...plan.beside.map(([key, text]) => new Option(text, key)));
    if (kept > 0 && kept < other.length) other.selectedIndex = kept;
    for (const point of points) {
      const own = point.dataset.id === id;
      point.setAttribute("aria-pressed", own);
      point.tabIndex = own ? 0 : -1;
    }
    for (const svg of all(".chart svg")) { // one stop of the keyboard a chart
      if (!one(".point[tabindex='0']", svg)) (one(".point", svg) || svg).tabIndex = 0;
    }
    for (const row of all("#configurations tbody tr")) {
      const button = one("[data-select]", row); // real images have none
      row.classList.toggle("chosen", Boolean(button) && button.dataset.select === id);
    }
    put_beside();
  };
  const narrow = matchMedia("(max-width: 62rem)");
  const pick = (id) => {
    choose(id);
    if (narrow.matches) panel.scrollIntoView({ block: "start" });
  };
  all("[data-select]").forEach((button) => button.addEventListener("click", () => {
    choose(button.dataset.select);
    one("#front").scrollIntoView({ block: "start" });
  }));
  prompt.addEventListener("change", put_beside);
  other.addEventListener("change", put_beside);
  range.addEventListener("input", split);
  frame.addEventListener("pointerdown", (event) => frame.setPointerCapture(event.pointerId));
  frame.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    const box = frame.getBoundingClientRect();
    range.value = Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    split();
  });
  one("#compare-left").addEventListener("click", () => open(image_of(chosen)));
  one("#compare-right").addEventListener("click", () => open(image_of(other.value)));

  // Points: what they are where the pointer or the keyboard is, a click or Enter chooses, arrows go on by cost.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const point_at = (point) => {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const box = one(".mark", point).getBoundingClientRect(), width = tip.offsetWidth;
    const left = Math.min(Math.max(4, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 4);
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${box.top + scrollY - tip.offsetHeight - 12}px`;
  };
  const leave = () => { tip.hidden = true; };
  for (const point of points) {
    point.addEventListener("pointerenter", () => point_at(point));
    point.addEventListener("pointerleave", leave);
    point.addEventListener("focus", () => point_at(point));
    point.addEventListener("blur", leave);
    point.addEventListener("click", () => pick(point.dataset.id));
    point.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") { pick(point.dataset.id); event.preventDefault(); }
      if (event.key === "Escape") leave();
      if (!way) return;
      event.preventDefault();
      const near = all(".point", point.closest("svg")).filter((one) => one.style.display !== "none");
      const next = near[(near.indexOf(point) + way + near.length) % near.length];
      choose(next.dataset.id);
      next.focus();
    });
  }
  choose(plans.start);
})();
