// The controls above the table, and the chips that say what is filtered.
{
  const { head } = U;
  const MOST_TAGS = 200;
  const find = U.find;

  const fill = (select, entries) => entries.forEach(([value, label]) => {
    const option = U.make("option", "", label);
    option.value = value;
    select.append(option);
  });
  const counted = (entries, label) => entries.filter((entry) => entry.count).map((entry) => [entry.name, `${label(entry)} (${U.number(entry.count)})`]);
  fill(find("f-kind"), [["all", "all"], ...counted(head.kinds, (kind) => `${kind.mark} ${kind.label}`)]);
  if (find("f-effect")) fill(find("f-effect"), [["", "anything"], ...counted(head.effects, (effect) => effect.name)]);
  fill(find("f-sort"), U.sorts);

  // Slices: the most frequent values first; a search box where there are many.
  const picker = find("f-tags");
  const search = find("f-tag-search");
  const list = find("tag-list");
  const byCount = head.tags.map((tag, number) => number).sort((a, b) => head.tags[b].count - head.tags[a].count || a - b);
  picker.parentElement.hidden = head.tags.length === 0;
  search.hidden = head.tags.length <= 12;
  const drawTags = () => {
    const query = search.value.trim().toLowerCase();
    const fitting = byCount.filter((number) => head.tags[number].label.toLowerCase().includes(query));
    const shown = fitting.slice(0, MOST_TAGS).sort((a, b) => a - b);
    list.replaceChildren(...shown.map((number) => {
      const { label, count } = head.tags[number];
      const line = U.make("label");
      const box = U.make("input");
      box.type = "checkbox";
      box.checked = U.state.tags.includes(label);
      box.addEventListener("change", () => {
        const others = U.state.tags.filter((other) => other !== label);
        U.go({ tags: box.checked ? [...others, label] : others });
      });
      line.append(box, U.make("span", "name", label), U.make("span", "num", U.number(count)));
      return line;
    }));
    find("tag-more").textContent = fitting.length > MOST_TAGS ? `${U.number(fitting.length - MOST_TAGS)} more: search for them` : fitting.length ? "" : "No slice matches";
  };
  search.addEventListener("input", drawTags);
  picker.addEventListener("toggle", () => { if (picker.open) { drawTags(); if (!search.hidden) search.focus(); } });
  document.addEventListener("click", (event) => { if (picker.open && !picker.contains(event.target)) picker.open = false; });
  picker.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !picker.contains(event.relatedTarget)) picker.open = false;
  });
  picker.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    picker.open = false;
    picker.querySelector("summary").focus();
  });

  find("f-kind").addEventListener("change", () => U.go({ kind: find("f-kind").value }));
  if (find("f-effect")) find("f-effect").addEventListener("change", () => U.go({ effect: find("f-effect").value }));
  find("f-sort").addEventListener("change", () => U.go({ sort: find("f-sort").value, down: false }));
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  const text = find("f-text");
  let waiting = 0;
  let typing = false;
  text.addEventListener("input", () => {
    clearTimeout(waiting);
    // A word that is being typed is one step back, not one per letter.
    waiting = setTimeout(() => { U.go({ text: text.value }, typing); typing = true; }, 120);
  });
  text.addEventListener("blur", () => { typing = false; });

  const ranges = ({ panel, x0, x1, y0, y1 }) => {
    const span = (low, high) => `${U.brushNumber(low)} to ${U.brushNumber(high)}`.replaceAll("-", "−");
    return `old ${span(x0, x1)}, ${head.versions[panel + 1]} ${span(y0, y1)}`;
  };
  const active = () => {
    const { state } = U;
    const found = [];
    if (state.kind !== "all") found.push([head.kinds[U.kindCalled(state.kind)].label, { kind: "all" }]);
    if (state.effect) found.push([state.effect, { effect: "" }]);
    state.tags.forEach((label) => found.push([label, { tags: state.tags.filter((other) => other !== label) }]));
    if (state.text.trim()) found.push([`“${state.text.trim()}”`, { text: "" }]);
    if (state.brush) found.push([ranges(state.brush), { brush: null }]);
    return found;
  };
  U.filterNames = () => active().map(([label]) => label);
  const none = { kind: "all", effect: "", tags: [], text: "", brush: null };

  const drawChips = () => {
    const chips = active().map(([label, without], place) => {
      const chip = U.button("", "filter", () => {
        U.go(without);
        const left = find("chips").querySelectorAll("button");
        (left[Math.min(place, left.length - 1)] || text).focus();
      });
      const cross = U.make("span", "cross", "×");
      cross.setAttribute("aria-hidden", "true");
      chip.append(U.hidden("Remove filter: "), U.make("span", "name", label), cross);
      return chip;
    });
    if (chips.length > 1) chips.push(U.button("Clear all", "clear", () => { U.go(none); text.focus(); }));
    find("chips").replaceChildren(...chips);
  };

  find("copy-list").addEventListener("click", () => U.copy(U.listMarkdown(U.found, U.filterNames()), "Copied as Markdown"));

  U.drawFilters = () => {
    const { state } = U;
    find("f-kind").value = state.kind;
    if (find("f-effect")) find("f-effect").value = state.effect;
    find("f-sort").value = state.sort;
    // What is being typed is ahead of the state.
    if (document.activeElement !== text || !typing) text.value = state.text;
    find("tag-summary").textContent = state.tags.length === 0 ? "all" : state.tags.length === 1 ? state.tags[0] : `${state.tags.length} chosen`;
    if (picker.open) {
      list.querySelectorAll("label").forEach((line) => {
        line.querySelector("input").checked = state.tags.includes(line.querySelector(".name").textContent);
      });
    }
    drawChips();
    const loading = U.loaded < U.total ? `, unpacked ${U.number(U.loaded)} so far` : "";
    find("count").textContent = `${U.number(U.found.length)} of ${U.number(U.total)} instances match${loading}`;
    find("copy-list").disabled = U.found.length === 0;
  };
}
