"use strict";
// Data reaches the page through textContent only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const PAGE = 20;
  const LONG = 240;

  const root = document.documentElement;
  const theme = find("theme");
  const darkNow = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = darkNow() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = darkNow() ? "light" : "dark"; nameTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const rows = data.rows.map(([id, kind, effect, input, gold, answers, tags], order) =>
    ({ id, kind, effect, input, gold, answers, tags, order, text: null }));
  const searchable = (row) => {
    if (row.text === null) {
      const answers = row.answers.map((answer) => answer[0] + "\n" + answer[4]).join("\n");
      row.text = [row.id, row.input, row.gold, answers].join("\n").toLowerCase();
    }
    return row.text;
  };

  const tally = (values) => {
    const counts = new Map();
    values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
    return counts;
  };
  const fill = (select, all, entries) => {
    const add = (value, label) => { const option = make("option", "", label); option.value = value; select.append(option); };
    add("", all);
    entries.forEach(([value, label, count]) => add(String(value), `${label} (${count.toLocaleString("en")})`));
  };
  const kindCounts = tally(rows.map((row) => row.kind));
  fill(find("f-kind"), "all", data.kinds.map((kind, i) => [i, `${kind.mark} ${kind.label}`, kindCounts.get(i) || 0]).filter((e) => e[2]));
  if (find("f-effect")) {
    const counts = tally(rows.map((row) => row.effect));
    fill(find("f-effect"), "anything", data.effects.map((name, i) => [i, name, counts.get(i) || 0]).filter((e) => e[2]));
  }
  const tagCounts = tally(rows.flatMap((row) => row.tags));
  const common = [...tagCounts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 300).sort((a, b) => a[0] - b[0]);
  fill(find("f-tag"), "all", common.map(([tag, count]) => [tag, data.tags[tag], count]));
  if (kindCounts.get(0)) find("f-kind").value = "0";

  const columns = [
    ["Flip", (row) => row.order],
    ["Question", (row) => row.input],
    ["Gold", (row) => row.gold],
    ...data.versions.map((name, i) => [`${name[0].toUpperCase()}${name.slice(1)} answer`, (row) => row.answers[i][0]]),
  ];
  let sorting = { column: 0, direction: 1 };
  let page = 0;
  let found = [];
  const head = document.querySelector(".instances thead");
  const body = document.querySelector(".instances tbody");
  const headers = make("tr");
  headers.setAttribute("role", "row");
  columns.forEach(([label], column) => {
    const cell = make("th");
    cell.scope = "col";
    cell.setAttribute("role", "columnheader");
    const button = make("button", "sort", label);
    button.type = "button";
    button.addEventListener("click", () => {
      sorting = { column, direction: sorting.column === column ? -sorting.direction : 1 };
      update();
    });
    cell.append(button);
    headers.append(cell);
  });
  head.append(headers);

  const cellOf = (label, className) => {
    const cell = make("td", className);
    cell.setAttribute("role", "cell");
    cell.dataset.label = label;
    return cell;
  };
  const passage = (cell, text, className) => {
    const block = make("div", `text ${className || ""}`, text === "" ? "(empty)" : text);
    if (text === "") block.classList.add("muted");
    cell.append(block);
    if (text.length > LONG || text.split("\n").length > 5) {
      block.classList.add("cut");
      const more = make("button", "more", "show all");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      more.addEventListener("click", () => {
        const open = block.classList.toggle("cut") === false;
        more.textContent = open ? "show less" : "show all";
        more.setAttribute("aria-expanded", String(open));
      });
      cell.append(more);
    }
  };
  const answerCell = (label, [text, right, score, margin, output]) => {
    const cell = cellOf(label, right === null ? "" : right ? "right" : "wrong");
    if (right !== null) cell.append(make("span", "judged", right ? "✓ right" : "✗ wrong"));
    passage(cell, text, "answer");
    const numbers = [];
    if (score !== null) numbers.push(`score ${score.toFixed(3)}`);
    if (margin !== null) numbers.push(`margin ${margin > 0 ? "+" : ""}${margin.toFixed(2)}`.replace("-", "−"));
    if (numbers.length) cell.append(make("div", "numbers", numbers.join(" · ")));
    if (output) {
      const details = make("details");
      details.append(make("summary", "", "full output"), make("div", "text", output));
      cell.append(details);
    }
    return cell;
  };
  const rowOf = (row) => {
    const line = make("tr", data.kinds[row.kind].name);
    line.setAttribute("role", "row");
    const kind = data.kinds[row.kind];
    const flip = cellOf(columns[0][0], "flip");
    flip.append(make("span", `badge ${kind.name}`, `${kind.mark} ${kind.label}`));
    if (row.effect >= 0) flip.append(make("span", `effect ${data.effects[row.effect].replaceAll(" ", "-")}`, data.effects[row.effect]));
    row.tags.forEach((tag) => flip.append(make("span", "tag", data.tags[tag])));
    flip.append(make("span", "id", row.id));
    const input = cellOf(columns[1][0], "input");
    passage(input, row.input);
    const gold = cellOf(columns[2][0], "gold");
    passage(gold, row.gold);
    line.append(flip, input, gold, ...row.answers.map((answer, i) => answerCell(columns[3 + i][0], answer)));
    return line;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const part = found.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...part.map(rowOf));
    find("count").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} instances match`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page >= pages - 1;
  };
  const update = () => {
    const kind = find("f-kind").value;
    const effect = find("f-effect") ? find("f-effect").value : "";
    const tag = find("f-tag").value;
    const text = find("f-text").value.trim().toLowerCase();
    const key = columns[sorting.column][1];
    found = rows.filter((row) =>
      (kind === "" || row.kind === +kind) && (effect === "" || row.effect === +effect) &&
      (tag === "" || row.tags.includes(+tag)) && (text === "" || searchable(row).includes(text)));
    found.sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      return sorting.direction * (left < right ? -1 : left > right ? 1 : 0) || a.order - b.order;
    });
    [...headers.children].forEach((cell, column) =>
      cell.setAttribute("aria-sort", column !== sorting.column ? "none" : sorting.direction > 0 ? "ascending" : "descending"));
    page = 0;
    show();
  };
  const turn = (step) => { page += step; show(); find("count").scrollIntoView({ block: "start" }); };
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  let waiting = 0;
  find("f-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
  document.querySelectorAll(".filters select").forEach((select) => select.addEventListener("change", update));
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  find("browser").hidden = false;
  update();
})();
