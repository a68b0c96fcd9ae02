"use strict";
(() => {
  const points = JSON.parse(document.getElementById("hover").textContent);
  const tip = document.getElementById("tip");

  function nearest(chart, event) {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 100;
    const y = event.clientY - box.top;
    let best = null;
    let least = Infinity;
    for (const point of points[chart.dataset.hover]) {
      const across = ((point.x - x) * box.width) / 100;
      const distance = point.y === undefined ? Math.abs(across) : Math.hypot(across, point.y - y);
      if (distance < least) { least = distance; best = point; }
    }
    return best && (best.y === undefined || least < 24) ? best : null;
  }

  function mark(chart, point) {
    const cross = chart.querySelector(".cross");
    const near = chart.querySelector(".near");
    for (const shape of [cross, near]) {
      if (shape) shape.setAttribute("visibility", point ? "visible" : "hidden");
    }
    if (!point) return;
    if (cross) for (const end of ["x1", "x2"]) cross.setAttribute(end, point.x + "%");
    if (near) { near.setAttribute("cx", point.x + "%"); near.setAttribute("cy", point.y); }
  }

  function show(chart, event) {
    const point = nearest(chart, event);
    mark(chart, point);
    tip.hidden = !point;
    if (!point) return;
    tip.replaceChildren(...point.lines.map((line) => {
      const p = document.createElement("p");
      p.textContent = line;
      return p;
    }));
    const wide = document.documentElement.clientWidth;
    const left = event.clientX + 16 + tip.offsetWidth > wide ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
    tip.style.left = Math.max(4, Math.min(left, wide - tip.offsetWidth - 4)) + window.scrollX + "px";
    tip.style.top = event.clientY + 14 + window.scrollY + "px";
  }

  function hide(chart) {
    mark(chart, null);
    tip.hidden = true;
  }

  for (const chart of document.querySelectorAll("[data-hover]")) {
    chart.addEventListener("pointermove", (event) => show(chart, event));
    chart.addEventListener("pointerdown", (event) => show(chart, event));
    chart.addEventListener("pointerleave", () => hide(chart));
    chart.addEventListener("pointercancel", () => hide(chart));
  }

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
})();
