// Keys, links and the first drawing.
{
  const { find } = U;
  const help = find("help");
  let keysOn = true;
  const showHelp = U.modal(help);
  find("help-open").addEventListener("click", showHelp);
  find("help-close").addEventListener("click", () => help.close());
  find("keys-on").addEventListener("change", () => { keysOn = find("keys-on").checked; });

  U.apply = (kept = false) => {
    const before = U.active >= 0 ? U.found[U.active] : -1;
    const filters = JSON.stringify({ ...U.state, open: "" });
    const same = kept || filters === U.applied;
    if (!same || kept) {
      U.found = U.select();
      U.active = before < 0 ? -1 : U.found.indexOf(before);
    }
    U.drawFilters();
    if (!same || kept) U.drawTable(!kept);
    // Tens of thousands of marks are drawn once, when all are there.
    if ((!same || kept) && U.loaded === U.total) U.drawScatter();
    U.applied = filters;
    U.drawDetail();
  };

  const toTable = () => find("instances").scrollIntoView({ block: "start", behavior: "instant" });
  let followed = false;
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href*='=']");
    followed = link !== null;
    // A link to what is already shown changes no address.
    if (link && (link.getAttribute("href") === location.hash)) toTable();
  });
  addEventListener("hashchange", () => {
    const state = U.parse(location.hash);
    if (state) {
      U.state = state;
      U.apply();
      if (followed && !state.open) toTable();
    }
    followed = false;
  });

  const negative = (direction) => {
    const kind = U.kindCalled("negative");
    const from = U.active < 0 && direction < 0 ? U.found.length : U.active;
    for (let place = from + direction; place >= 0 && place < U.found.length; place += direction) {
      if (U.kind[U.found[place]] === kind) return place;
    }
    return -1;
  };
  const visit = (place) => {
    if (place < 0 || place >= U.found.length) return;
    if (find("detail").open) U.go({ open: U.idOf(U.found[place]) }, true);
    else { U.moveTo(place); find("grid").focus({ preventScroll: true }); bring(); }
  };
  const bring = () => {
    const box = find("grid").getBoundingClientRect();
    if (box.bottom < 80 || box.top > innerHeight - 80) toTable();
  };
  const actions = {
    j: () => visit(U.active + 1),
    k: () => visit(U.active < 0 ? 0 : U.active - 1),
    n: () => visit(negative(1)),
    p: () => visit(negative(-1)),
    c: () => { const index = find("detail").open ? U.shownInstance() : U.found[U.active]; if (index >= 0) U.copyInstance(index); },
    "?": () => { if (!help.open) showHelp(); },
    "/": () => { if (!find("detail").open) { toTable(); find("f-text").focus(); } },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const field = event.target.closest("input:not([type=checkbox]), select, textarea");
    if (field) {
      if (event.key === "Escape" && field.id === "f-text") { event.preventDefault(); find("grid").focus(); }
      return;
    }
    if (event.key === "Enter" && event.target === find("grid") && U.active >= 0) {
      event.preventDefault();
      U.go({ open: U.idOf(U.found[U.active]) });
      return;
    }
    const action = keysOn && (!help.open || event.key === "?") ? actions[event.key] : undefined;
    if (!action) return;
    event.preventDefault();
    action();
  });

  const begin = async () => {
    if (!("DecompressionStream" in window)) {
      find("too-old").hidden = false;
      return;
    }
    U.state = U.parse(location.hash) || U.state;
    find("browser").hidden = false;
    await U.load(() => U.apply(true));
    find("browser").setAttribute("aria-busy", "false");
    if (U.state.open || /=/.test(location.hash)) toTable();
  };
  begin();
}
