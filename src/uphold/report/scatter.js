// The scatter plots: every instance of the file on a canvas over the drawing's axes, and a rectangle that filters.
{
  const { head, find } = U;
  const SIDE = [400, 394];
  const NEAR = 9;
  const ORDER = ["both_wrong", "both_right", "tie", "positive", "negative"];
  const plots = [...document.querySelectorAll("figure[data-panel]")].map((figure) => {
    const canvas = U.make("canvas");
    canvas.setAttribute("aria-hidden", "true");
    figure.querySelector(".plot").append(canvas);
    figure.classList.add("live");
    const form = figure.querySelector("form");
    form.hidden = false;
    return { figure, canvas, form, panel: +figure.dataset.panel, drag: null };
  });

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clamp = (value) => Math.min(1, Math.max(0, value));
  // From data to the drawing's units and back; values outside the frame lie on its edge.
  const mapping = (plot) => {
    const frame = head.panels[plot.panel];
    const scale = plot.canvas.clientWidth / SIDE[0];
    const span = frame.high - frame.low;
    return {
      scale,
      x: (value) => (frame.left + frame.size * clamp((value - frame.low) / span)) * scale,
      y: (value) => (frame.top + frame.size * (1 - clamp((value - frame.low) / span))) * scale,
      valueX: (pixel) => frame.low + span * ((pixel / scale - frame.left) / frame.size),
      valueY: (pixel) => frame.low + span * (1 - (pixel / scale - frame.top) / frame.size),
      edge: (value, low) => (low ? (value <= frame.low ? -1e9 : value) : (value >= frame.high ? 1e9 : value)),
    };
  };

  const mark = (kind, x, y, s, path) => {
    if (kind === "negative") { path.moveTo(x - 3.8 * s, y - 3.1 * s); path.lineTo(x + 3.8 * s, y - 3.1 * s); path.lineTo(x, y + 3.8 * s); path.closePath(); }
    else if (kind === "positive") { path.moveTo(x - 3.8 * s, y + 3.1 * s); path.lineTo(x + 3.8 * s, y + 3.1 * s); path.lineTo(x, y - 3.8 * s); path.closePath(); }
    else { path.moveTo(x - 2.4 * s, y - 2.4 * s); path.lineTo(x + 2.4 * s, y + 2.4 * s); path.moveTo(x + 2.4 * s, y - 2.4 * s); path.lineTo(x - 2.4 * s, y + 2.4 * s); }
  };

  const dots = (pen, size, places) => places.forEach(([x, y]) => pen.fillRect(x - 1.9 * size, y - 1.9 * size, 3.8 * size, 3.8 * size));

  // After a repair a mark's kind is that of old against repaired.
  const AFTER = { fixed: "both_right", "still broken": "negative", "newly broken": "negative", "gain kept": "positive", "gain lost": "both_wrong", "extra gain": "positive" };
  const kindAt = (plot, index) => {
    const kind = head.kinds[U.kind[index]].name;
    const effect = U.effect[index] < 0 ? "" : head.effects[U.effect[index]].name;
    return plot.panel === 1 && AFTER[effect] ? AFTER[effect] : kind;
  };

  const draw = (plot) => {
    const { canvas } = plot;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !U.marked) return;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    const to = mapping(plot);
    const [xs, ys] = U.points[plot.panel];
    // Thousands of marks need smaller ones.
    const size = to.scale * (U.total > 20000 ? 0.55 : U.total > 5000 ? 0.75 : 1);
    const paths = new Map();
    for (let index = 0; index < U.loaded; index += 1) {
      if (Number.isNaN(xs[index])) continue;
      const kind = kindAt(plot, index);
      const key = `${U.marked[index]}${kind}`;
      const [x, y] = [to.x(xs[index]), to.y(ys[index])];
      // Unchanged ones one by one, so that many on one spot look like many.
      const single = kind === "both_right" || kind === "tie";
      if (!paths.has(key)) paths.set(key, single ? [] : new Path2D());
      if (single) paths.get(key).push([x, y]);
      else mark(kind, x, y, size, paths.get(key));
    }
    const filtered = U.marked.includes(0);
    for (const chosen of [0, 1]) {
      ORDER.forEach((kind) => {
        const path = paths.get(`${chosen}${kind}`);
        if (!path) return;
        const tint = colour(`--${kind === "tie" ? "both-right" : kind.replace("_", "-")}`);
        const calm = kind.startsWith("both") || kind === "tie";
        pen.globalAlpha = filtered && !chosen ? 0.1 : calm && !filtered ? 0.42 : 0.78;
        if (Array.isArray(path)) { pen.fillStyle = tint; dots(pen, size, path); }
        else if (kind === "both_wrong") { pen.strokeStyle = tint; pen.lineWidth = 1.1 * size; pen.stroke(path); }
        else { pen.fillStyle = tint; pen.fill(path); }
      });
    }
    pen.globalAlpha = 1;
    const box = plot.drag || (U.state.brush && U.state.brush.panel === plot.panel ? corners(U.state.brush, to) : null);
    if (box) rectangle(pen, box);
  };
  const corners = (brush, to) => ({ x0: to.x(brush.x0), x1: to.x(brush.x1), y0: to.y(brush.y1), y1: to.y(brush.y0) });
  const rectangle = (pen, { x0, x1, y0, y1 }) => {
    const [x, y, width, height] = [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
    pen.fillStyle = colour("--link");
    pen.globalAlpha = 0.1;
    pen.fillRect(x, y, width, height);
    pen.globalAlpha = 1;
    pen.strokeStyle = colour("--link");
    pen.lineWidth = 1.5;
    pen.strokeRect(x, y, width, height);
  };

  const nearest = (plot, x, y) => {
    const to = mapping(plot);
    const [xs, ys] = U.points[plot.panel];
    let [best, distance] = [-1, NEAR * NEAR];
    for (let index = 0; index < U.loaded; index += 1) {
      // What the filters leave out is drawn faintly and cannot be hit.
      if (Number.isNaN(xs[index]) || !U.marked[index]) continue;
      const away = (to.x(xs[index]) - x) ** 2 + (to.y(ys[index]) - y) ** 2;
      if (away < distance) [best, distance] = [index, away];
    }
    return best;
  };

  const at = (plot, event) => {
    const box = plot.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  plots.forEach((plot) => {
    const { canvas, form, panel } = plot;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const [x, y] = at(plot, event);
      plot.drag = { x0: x, x1: x, y0: y, y1: y };
      // A finger scrolls the page; it picks single points, and the fields below take ranges.
      plot.touch = event.pointerType === "touch";
      if (!plot.touch) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(plot, event);
      if (!plot.drag || plot.touch) return;
      Object.assign(plot.drag, { x1: x, y1: y });
      requestAnimationFrame(() => draw(plot));
    });
    canvas.addEventListener("pointercancel", () => { plot.drag = null; draw(plot); });
    canvas.addEventListener("pointerup", () => {
      const { drag } = plot;
      plot.drag = null;
      if (!drag) return;
      if (Math.hypot(drag.x1 - drag.x0, drag.y1 - drag.y0) < 5) {
        const index = nearest(plot, drag.x0, drag.y0);
        if (index >= 0) U.go({ open: U.idOf(index) });
        else if (U.state.brush) U.go({ brush: null });
        return;
      }
      const to = mapping(plot);
      const xs = [to.valueX(drag.x0), to.valueX(drag.x1)].sort((a, b) => a - b);
      const ys = [to.valueY(drag.y0), to.valueY(drag.y1)].sort((a, b) => a - b);
      U.go({ brush: { panel, x0: to.edge(xs[0], true), x1: to.edge(xs[1], false), y0: to.edge(ys[0], true), y1: to.edge(ys[1], false) } });
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => {
      const value = (name, otherwise) => { const field = form.elements[name]; return field.value === "" ? otherwise : +field.value; };
      const brush = { panel, x0: value("x0", -1e9), x1: value("x1", 1e9), y0: value("y0", -1e9), y1: value("y1", 1e9) };
      const open = [brush.x0, brush.y0].every((v) => v === -1e9) && [brush.x1, brush.y1].every((v) => v === 1e9);
      U.go({ brush: open ? null : brush });
    });
    new ResizeObserver(() => draw(plot)).observe(canvas);
  });
  document.addEventListener("themechange", () => plots.forEach(draw));

  let waiting = false;
  U.drawScatter = () => {
    plots.forEach(({ form, panel }) => {
      const brush = U.state.brush && U.state.brush.panel === panel ? U.state.brush : null;
      ["x0", "x1", "y0", "y1"].forEach((name) => {
        const value = brush && Math.abs(brush[name]) < 1e9 ? U.brushNumber(brush[name]) : "";
        if (form.elements[name] !== document.activeElement || value === "") form.elements[name].value = value;
      });
    });
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; plots.forEach(draw); });
  };
  if (find("scatter-hint")) find("scatter-hint").hidden = false;
}
