// Data reaches the page through textContent only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const PAGE = 20;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const count = (number) => number.toLocaleString("en");
  const rows = data.rows.map(([id, pattern, kind, changes, input, gold, tags, answers]) =>
    ({ id, pattern, kind, changes, input, gold, tags, answers, text: null }));
  const searchable = (row) => {
    row.text ??= [row.id, row.input, row.gold, ...row.tags, ...row.answers.map((answer) => answer[0])].join("\n").toLowerCase();
    return row.text;
  };
  const shown = (pattern) => [...pattern].map((mark) => (mark === "1" ? "✓" : "✗")).join("");
  const lost = (since) => (row) => row.kind === "lost" && row.pattern.lastIndexOf("1") + 1 === since;

  const filters = [["everything", () => true], ["oscillating: two changes or more", (row) => row.changes >= 2]];
  data.versions.forEach((_, place) => filters.push([`broken since version ${place + 1}`, lost(place)]));
  const choices = filters.map(([label, test]) => [label, test, rows.filter(test).length]).filter((choice) => choice[2]);
  const option = (select, value, label) => {
    const node = make("option", "", label);
    node.value = value;
    select.append(node);
  };
  choices.forEach(([label, , number], index) => option(find("f-kind"), String(index), `${label} (${count(number)})`));
  const tally = new Map();
  rows.forEach((row) => tally.set(row.pattern, (tally.get(row.pattern) || 0) + 1));
  option(find("f-pattern"), "", "all");
  [...tally].sort((a, b) => b[1] - a[1]).slice(0, 200)
    .forEach(([pattern, number]) => option(find("f-pattern"), pattern, `${shown(pattern)} (${count(number)})`));

  const cells = (pattern) => {
    const box = make("span", "cells");
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", [...pattern].map((mark) => (mark === "1" ? "right" : "wrong")).join(", "));
    [...pattern].forEach((mark) => box.append(make("i", mark === "1" ? "right" : "wrong", mark === "1" ? "✓" : "✗")));
    return box;
  };
  const passage = (text, className) => make("div", `text ${className}`, text === "" ? "(empty)" : text);
  const stretches = (row) => {
    const found = [];
    row.answers.forEach(([text, score], place) => {
      const last = found.at(-1);
      if (last && last.text === text && last.score === score && last.mark === row.pattern[place]) last.to = place;
      else found.push({ from: place, to: place, text, score, mark: row.pattern[place] });
    });
    return found;
  };
  const answersOf = (row) => {
    const list = make("dl", "answers");
    stretches(row).forEach(({ from, to, text, score, mark }) => {
      const line = make("div");
      line.append(make("dt", "", from === to ? `${from + 1}` : `${from + 1} to ${to + 1}`));
      const said = make("dd", "text");
      const right = mark === "1";
      const words = data.judged ? (right ? "✓ right" : "✗ wrong") : (right ? "✓ at its best" : "✗ below");
      said.append(make("span", `mark ${right ? "right" : "wrong"}`, words), text === "" ? "(empty)" : text);
      if (score !== null && !(data.judged && (score === 0 || score === 1))) said.append(make("span", "score", `score ${score}`));
      line.append(said);
      list.append(line);
    });
    return list;
  };
  const itemOf = (row) => {
    const item = make("li", "item");
    const about = make("div", "about");
    about.append(cells(row.pattern), make("span", "", data.kinds[row.kind]));
    row.tags.forEach((tag) => about.append(make("span", "", tag)));
    about.append(make("span", "id", row.id));
    const asked = make("div");
    asked.append(make("h3", "", "Question"), passage(row.input, "input"), make("h3", "", "Gold"), passage(row.gold, "gold"));
    const answered = make("div");
    answered.append(make("h3", "", "Answers by version"), answersOf(row));
    item.append(about, asked, answered);
    return item;
  };

  let found = [];
  let page = 0;
  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    find("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(itemOf));
    find("count").textContent = `${count(found.length)} of ${count(rows.length)} instances match`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page >= pages - 1;
  };
  const update = () => {
    const test = choices.length ? choices[+find("f-kind").value][1] : () => true;
    const pattern = find("f-pattern").value;
    const text = find("f-text").value.trim().toLowerCase();
    found = rows.filter((row) => test(row) && (!pattern || row.pattern === pattern) && (!text || searchable(row).includes(text)));
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
