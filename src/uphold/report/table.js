// The table: only the rows in sight exist, whatever the number of instances.
{
  const { head, make, find } = U;
  const AROUND = 6;
  const grid = find("grid");
  const body = find("grid-body");
  const nodes = new Map();
  let height = 88;
  U.found = [];
  U.active = -1;

  const cell = (className) => {
    const node = make("div", `cell ${className}`);
    node.setAttribute("role", "gridcell");
    return node;
  };
  // The end of a prompt is where its question is; what stands before is often the same in all of them. A search is
  // answered with the place that it found.
  const excerpt = (text, most) => {
    const query = U.state.text.trim().toLowerCase();
    const at = query ? text.toLowerCase().indexOf(query) : -1;
    const node = make("span", "cut");
    if (at < 0) {
      node.textContent = text.length > most ? `… ${text.slice(-most).replace(/^\S*\s+/, "")}` : text.trim();
      return node;
    }
    const start = at + query.length <= most ? 0 : Math.max(0, at - Math.floor(most / 3));
    node.append(start ? `… ${text.slice(start, at)}` : text.slice(0, at).trimStart());
    node.append(make("mark", "", text.slice(at, at + query.length)), text.slice(at + query.length, start + 3 * most));
    return node;
  };
  const words = (text, most) => (text.trim() === "" ? make("span", "muted", text === "" ? "(empty)" : "(white space)") : excerpt(text, most));
  const judgement = (right) => {
    if (right === null) return "";
    const mark = make("span", right ? "judged right" : "judged wrong", right ? "✓" : "✗");
    mark.setAttribute("aria-hidden", "true");
    return mark;
  };
  U.numbers = (answer) => {
    const parts = [];
    if (answer.score !== null) parts.push(`score ${answer.score.toFixed(3)}`);
    if (answer.margin !== null) parts.push(`margin ${U.signed(answer.margin, 2)}`);
    return parts.join(" · ");
  };
  U.badge = (kind) => make("span", `badge ${kind.name}`, `${kind.mark} ${kind.label}`);

  const rowNode = (position) => {
    const row = U.row(U.found[position]);
    const node = make("div", "row");
    node.id = `row-${row.index}`;
    node.setAttribute("role", "row");
    node.setAttribute("aria-rowindex", String(position + 2));
    node.style.transform = `translateY(${position * height}px)`;
    const flip = cell("flip");
    flip.append(U.badge(row.kind));
    if (row.effect) flip.append(make("span", `effect ${row.effect.replaceAll(" ", "-")}`, row.effect));
    const tags = row.tags.filter((tag) => !tag.derived);
    if (tags.length) flip.append(make("span", "tag", tags.map((tag) => tag.label).join(" · ")));
    const input = cell("question");
    input.append(words(row.input, head.versions.length > 2 ? 105 : 125));
    const gold = cell("gold");
    gold.append(make("span", "key", "gold "), words(row.gold, 90));
    node.append(flip, input, gold, ...row.answers.map((answer) => {
      const said = cell("answer");
      said.append(make("span", "key", `${answer.version} `), judgement(answer.right));
      if (answer.right !== null) said.append(U.hidden(answer.right ? "right: " : "wrong: "));
      said.append(words(answer.text, 80));
      const figures = U.numbers(answer);
      if (figures) said.append(make("span", "numbers", figures));
      return said;
    }));
    node.addEventListener("click", () => {
      if (String(getSelection())) return;
      U.active = position;
      U.go({ open: row.id });
    });
    return node;
  };

  const draw = () => {
    const headHeight = find("grid-head").offsetHeight;
    const first = Math.max(0, Math.floor(grid.scrollTop / height) - AROUND);
    const last = Math.min(U.found.length, Math.ceil((grid.scrollTop + grid.clientHeight - headHeight) / height) + AROUND);
    for (const [position, node] of nodes) {
      if (position < first || position >= last) { node.remove(); nodes.delete(position); }
    }
    for (let position = first; position < last; position += 1) {
      if (!nodes.has(position)) {
        const node = rowNode(position);
        const next = nodes.get(position + 1);
        if (next) body.insertBefore(node, next); else body.append(node);
        nodes.set(position, node);
      }
      nodes.get(position).setAttribute("aria-selected", String(position === U.active));
    }
    const node = nodes.get(U.active);
    if (node) grid.setAttribute("aria-activedescendant", node.id); else grid.removeAttribute("aria-activedescendant");
  };

  const empty = () => {
    const line = make("div", "none");
    line.setAttribute("role", "row");
    const only = cell("");
    only.textContent = U.loaded < U.total ? "Unpacking the instances…" : "No instance matches these filters.";
    line.append(only);
    return line;
  };

  U.drawTable = (fresh) => {
    height = parseFloat(getComputedStyle(grid).getPropertyValue("--row"));
    nodes.clear();
    body.replaceChildren(...(U.found.length ? [] : [empty()]));
    body.style.height = `${Math.max(1, U.found.length) * height}px`;
    grid.style.setProperty("--content", `${find("grid-head").offsetHeight + Math.max(1.2, U.found.length) * height + 2}px`);
    grid.setAttribute("aria-rowcount", String(U.found.length + 1));
    if (fresh) grid.scrollTop = 0;
    heads.forEach(([name, column]) => {
      const own = name === U.state.sort;
      column.setAttribute("aria-sort", own ? (U.state.down ? "descending" : "ascending") : "none");
    });
    draw();
  };

  U.moveTo = (position) => {
    if (!U.found.length) return;
    U.active = Math.max(0, Math.min(U.found.length - 1, position));
    const headHeight = find("grid-head").offsetHeight;
    const [top, room] = [U.active * height, grid.clientHeight - headHeight];
    if (top < grid.scrollTop) grid.scrollTop = top;
    if (top + height > grid.scrollTop + room) grid.scrollTop = top + height - room;
    draw();
  };

  const titles = [["flip", "Flip"], ["question", "Question"], ["gold", "Gold"], ...head.versions.map((name) => [name, U.capital(name)])];
  const heads = titles.map(([name, title]) => {
    const column = make("div", `cell ${name}`);
    column.setAttribute("role", "columnheader");
    column.append(U.button(title, "sort", () => U.go({ sort: name, down: U.state.sort === name && !U.state.down })));
    return [name, column];
  });
  find("grid-head").firstElementChild.append(...heads.map(([, column]) => column));
  grid.classList.add(`versions-${head.versions.length}`);
  grid.classList.toggle("compact", head.compact);

  let waiting = false;
  grid.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  new ResizeObserver(() => {
    const now = parseFloat(getComputedStyle(grid).getPropertyValue("--row"));
    if (now !== height) U.drawTable(false); else draw();
  }).observe(grid);

  grid.addEventListener("keydown", (event) => {
    if (event.target !== grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(grid.clientHeight / height) - 1);
    const moves = { ArrowDown: U.active + 1, ArrowUp: U.active - 1, PageDown: U.active + page, PageUp: U.active - page, Home: 0, End: U.found.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    U.moveTo(moves[event.key]);
  });
  grid.addEventListener("focus", () => { if (U.active < 0 && U.found.length) U.moveTo(Math.floor(grid.scrollTop / height)); });
}
