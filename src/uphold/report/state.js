// What is asked for, and its place in the address: filters, order, and the instance that is open.
{
  const start = U.head.kinds[0].count ? U.head.kinds[0].name : "all";
  const empty = () => ({ kind: start, effect: "", tags: [], text: "", brush: null, sort: "flip", down: false, open: "" });
  U.state = empty();
  U.brushNumber = (value) => String(+value.toPrecision(4));

  const brushOf = (text) => {
    const [panel, ...edges] = (text || "").split(",").map(Number);
    const whole = edges.length === 4 && edges.every(Number.isFinite) && panel >= 0 && panel < U.head.panels.length;
    return whole ? { panel, x0: edges[0], x1: edges[1], y0: edges[2], y1: edges[3] } : null;
  };

  // A fragment without "=" names a section and says nothing about filters.
  U.parse = (fragment) => {
    const text = fragment.replace(/^#/, "");
    if (text && !text.includes("=")) return null;
    const given = new URLSearchParams(text);
    const state = empty();
    const kinds = ["all", ...U.head.kinds.map((kind) => kind.name)];
    if (kinds.includes(given.get("kind"))) state.kind = given.get("kind");
    else if (given.has("i")) state.kind = "all";
    if (U.head.effects.some((effect) => effect.name === given.get("effect"))) state.effect = given.get("effect");
    state.tags = given.getAll("tag").filter((label) => U.tagCalled.has(label));
    state.text = given.get("q") || "";
    state.brush = brushOf(given.get("brush"));
    if (U.sorts.some(([name]) => name === given.get("sort"))) state.sort = given.get("sort");
    state.down = given.get("down") === "1";
    state.open = given.get("i") || "";
    return state;
  };

  U.fragment = (state) => {
    const given = new URLSearchParams();
    given.set("kind", state.kind);
    if (state.effect) given.set("effect", state.effect);
    state.tags.forEach((label) => given.append("tag", label));
    if (state.text) given.set("q", state.text);
    if (state.brush) {
      const { panel, x0, x1, y0, y1 } = state.brush;
      given.set("brush", [panel, ...[x0, x1, y0, y1].map(U.brushNumber)].join(","));
    }
    if (state.sort !== "flip") given.set("sort", state.sort);
    if (state.down) given.set("down", "1");
    if (state.open) given.set("i", state.open);
    return `#${given}`;
  };

  // The address of one instance alone: it works whatever was filtered.
  U.permalink = (id) => `#${new URLSearchParams({ i: id })}`;

  U.go = (changes, replace = false) => {
    U.state = { ...U.state, ...changes };
    history[replace ? "replaceState" : "pushState"](null, "", U.fragment(U.state));
    U.apply();
  };

  // Values of one tag widen the selection, different tags narrow it.
  const tagTest = (labels) => {
    const groups = new Map();
    labels.forEach((label) => {
      const number = U.tagCalled.get(label);
      const { group } = U.head.tags[number];
      groups.set(group, (groups.get(group) || new Set()).add(number));
    });
    const wanted = [...groups.values()];
    return (index) => wanted.every((numbers) => U.tagsOf(index).some((number) => numbers.has(number)));
  };

  U.inBrush = (brush, index) => {
    const [x, y] = [U.points[brush.panel][0][index], U.points[brush.panel][1][index]];
    return x >= brush.x0 && x <= brush.x1 && y >= brush.y0 && y <= brush.y1;
  };

  const order = { name: "", loaded: 0, keys: null };
  const sorted = (rows, { sort, down }) => {
    if (sort !== "flip") {
      if (order.name !== sort || order.loaded !== U.loaded) {
        Object.assign(order, { name: sort, loaded: U.loaded, keys: U.sortKeys(sort) });
      }
      const { keys } = order;
      rows.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    }
    return down ? rows.reverse() : rows;
  };

  // The rows that match, in their order. `marked` has a byte per row for the scatter, whose colours show the kinds:
  // there all kinds stay.
  U.select = () => {
    const { state } = U;
    const kind = state.kind === "all" ? -1 : U.kindCalled(state.kind);
    const effect = state.effect ? U.head.effects.findIndex((entry) => entry.name === state.effect) : -1;
    const query = state.text.trim().toLowerCase();
    const hits = query ? U.textHits(query) : null;
    const tagged = state.tags.length ? tagTest(state.tags) : null;
    const rows = [];
    U.marked = new Uint8Array(U.loaded);
    for (let index = 0; index < U.loaded; index += 1) {
      if (effect >= 0 && U.effect[index] !== effect) continue;
      if (hits && !hits[index]) continue;
      if (tagged && !tagged(index)) continue;
      if (state.brush && !U.inBrush(state.brush, index)) continue;
      U.marked[index] = 1;
      if (kind >= 0 && U.kind[index] !== kind) continue;
      rows.push(index);
    }
    return sorted(rows, state);
  };
}
