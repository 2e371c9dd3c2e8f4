// One instance: its texts side by side with their differences, its options, and ways to pass it on.
{
  const { head, make, find } = U;
  const dialog = find("detail");
  const content = find("detail-content");
  let shown = -1;
  let pair = [0, 1];
  const showModal = U.modal(dialog);

  const passage = (text) => {
    const block = make("div", "text", text === "" ? "(empty)" : text);
    if (text === "") block.classList.add("muted");
    return block;
  };
  const part = (title, ...nodes) => {
    const section = make("section");
    section.append(make("h3", "", title), ...nodes);
    return section;
  };
  const whole = (answer) => (answer.output === null ? answer.text : answer.output);

  const panel = (answer, block) => {
    const box = make("div", `answer v-${answer.version}`);
    const title = make("h4");
    const dot = make("span", `chip v-${answer.version}`);
    dot.setAttribute("aria-hidden", "true");
    title.append(dot, U.capital(answer.version));
    if (answer.right !== null) title.append(" ", make("span", answer.right ? "judged right" : "judged wrong", answer.right ? "✓ right" : "✗ wrong"));
    box.append(title);
    const figures = U.numbers(answer);
    if (figures) box.append(make("p", "numbers", figures));
    if (answer.output !== null && answer.output.trim() !== answer.text.trim()) {
      const scored = make("p", "scored", "scored answer: ");
      scored.append(make("span", "text", answer.text === "" ? "(empty)" : answer.text));
      box.append(scored);
    }
    box.append(block);
    return box;
  };

  const answers = (row) => {
    const [left, right] = pair.map((which) => row.answers[which]);
    const [a, b] = [whole(left), whole(right)];
    const steps = U.diff(a, b);
    const mixed = steps.some(([sign, text]) => sign === 0 && text.trim()) && a !== b;
    const blocks = row.answers.map((answer, which) => {
      if (mixed && which === pair[0]) return U.diffSide(steps, -1);
      if (mixed && which === pair[1]) return U.diffSide(steps, 1);
      return passage(whole(answer));
    });
    const box = make("div", "answers");
    box.append(...row.answers.map((answer, which) => panel(answer, blocks[which])));
    const legend = make("p", "under legend-diff");
    const both = `${U.capital(left.version)} and ${right.version}`;
    if (mixed) legend.append(make("del", "", `only in ${left.version}`), " ", make("ins", "", `only in ${right.version}`));
    else legend.textContent = a === b ? `${both} say the same.` : `${both} have no words in common.`;
    const section = part("Answers");
    if (row.answers.length > 2) section.append(choice(row));
    section.append(box, legend);
    return section;
  };

  const choice = (row) => {
    const group = make("div", "switch");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Which answers to compare word by word");
    [[0, 1], [0, 2], [1, 2]].forEach((two) => {
      const button = U.button(two.map((which) => head.versions[which]).join(" – "), "", () => {
        pair = two;
        render(row);
        content.querySelector(".switch [aria-pressed=true]").focus();
      });
      button.setAttribute("aria-pressed", String(String(two) === String(pair)));
      group.append(button);
    });
    return group;
  };

  // Bars of log-likelihood: longer is likelier, on one scale for all versions of this instance.
  const options = (row) => {
    const all = row.answers.flatMap((answer) => answer.logprobs).filter((value) => value !== null);
    if (!row.options.length || !all.length) return null;
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const room = 0.08 * (high - low) || 1;
    const table = make("table", "options");
    const caption = make("caption", "unseen", "Log-likelihood of each option, in nats, by version");
    const top = make("tr");
    ["Option", ...head.versions].forEach((name) => { const th = make("th", "", U.capital(name)); th.scope = "col"; top.append(th); });
    const thead = make("thead");
    thead.append(top);
    const tbody = make("tbody");
    const best = row.answers.map((answer) => Math.max(...answer.logprobs.map((value) => value ?? -Infinity)));
    row.options.forEach((option, k) => {
      const line = make("tr", option === row.gold ? "gold" : "");
      const name = make("th");
      name.scope = "row";
      name.append(make("span", "text", option.trim() || "(empty)"));
      if (option === row.gold) name.append(" ", make("span", "is-gold", "gold"));
      line.append(name, ...row.answers.map((answer, which) => {
        const td = make("td");
        const value = answer.logprobs[k];
        if (value === undefined || value === null) { td.append(make("span", "muted", "–")); return td; }
        const bar = make("span", `likelihood v-${answer.version}`);
        bar.style.setProperty("--size", `${(100 * (value - low + room)) / (high - low + room)}%`);
        td.append(bar, make("span", "num", value.toFixed(2).replace("-", "−")));
        if (value === best[which]) { td.classList.add("best"); td.append(make("span", "likeliest", "likeliest")); }
        return td;
      }));
      tbody.append(line);
    });
    table.append(caption, thead, tbody);
    const scroll = make("div", "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Options");
    scroll.append(table);
    const note = row.hidden ? `${row.hidden} less likely options are not shown. ` : "";
    return part("Options", scroll, make("p", "under", `${note}Log-likelihood in nats; a longer bar is likelier. The scorer may divide by length before it picks.`));
  };

  const facts = (row) => {
    const list = make("div", "tags");
    row.tags.forEach((tag) => list.append(U.button(tag.label, "filter", () => U.go({ ...U.state, tags: [tag.label], kind: "all", effect: "", text: "", brush: null, open: "" }))));
    const id = make("p", "under");
    id.append("Instance ", make("code", "", row.id));
    return row.tags.length ? part("Slices", list, id) : part("Instance", id);
  };

  const render = (row) => {
    const parts = [part("Question", passage(row.input)), part("Gold", passage(row.gold)), answers(row), options(row), facts(row)];
    content.replaceChildren(...parts.filter((node) => node !== null));
    const place = U.found.indexOf(row.index);
    find("detail-title").replaceChildren(U.badge(row.kind), ...(row.effect ? [make("span", `effect ${row.effect.replaceAll(" ", "-")}`, row.effect)] : []));
    find("detail-place").textContent = place < 0 ? "not in the filtered list" : `${U.number(place + 1)} of ${U.number(U.found.length)}`;
    find("detail-previous").disabled = place <= 0;
    find("detail-next").disabled = place < 0 || place >= U.found.length - 1;
  };

  // Called whenever the state changes: open, change or close what is shown.
  U.drawDetail = () => {
    const { open } = U.state;
    if (!open) { shown = -1; if (dialog.open) dialog.close(); return; }
    const index = U.indexOf(open);
    if (index < 0) {
      if (U.loaded === U.total) U.say(`The instance ${open.slice(0, 40)} is not in this file`);
      return;
    }
    const place = U.found.indexOf(index);
    if (place >= 0 && U.active !== place) U.moveTo(place);
    const other = shown !== index;
    shown = index;
    if (other) pair = [0, 1];
    render(U.row(index));
    if (other) content.scrollTop = 0;
    if (!dialog.open) { showModal(); content.focus(); }
  };
  U.step = (by) => {
    const place = U.found.indexOf(shown) + by;
    if (shown < 0 || place < 0 || place >= U.found.length || U.found.indexOf(shown) < 0) return;
    U.go({ open: U.idOf(U.found[place]) }, true);
  };
  U.copyInstance = (index) => U.copy(U.instanceMarkdown(U.row(index)), "Copied as Markdown");
  U.shownInstance = () => shown;

  dialog.addEventListener("close", () => { if (U.state.open) U.go({ open: "" }); find("grid").focus({ preventScroll: true }); });
  find("detail-close").addEventListener("click", () => dialog.close());
  find("detail-previous").addEventListener("click", () => U.step(-1));
  find("detail-next").addEventListener("click", () => U.step(1));
  find("detail-copy").addEventListener("click", () => U.copyInstance(shown));
  find("detail-link").addEventListener("click", () => U.copy(location.href.replace(/#.*/, "") + U.permalink(U.idOf(shown)), "Link copied"));
}
