(() => {
  const find = (id) => document.getElementById(id);
  if (!find("filters")) return;
  const rows = [...document.querySelectorAll(".results tbody tr")].map((node) =>
    ({ node, text: node.querySelector(".what").textContent.toLowerCase(), kind: node.dataset.kind, verdict: node.dataset.verdict }));
  const value = (id) => (find(id) ? find(id).value : "");
  const update = () => {
    const words = value("f-text").toLowerCase().split(/\s+/).filter(Boolean);
    const [kind, verdict] = [value("f-kind"), value("f-verdict")];
    let shown = 0;
    rows.forEach((row) => {
      const fits = (!kind || row.kind === kind) && (!verdict || row.verdict === verdict) && words.every((word) => row.text.includes(word));
      row.node.hidden = !fits;
      shown += fits;
    });
    find("count").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  };
  find("filters").addEventListener("input", update);
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").hidden = false;
  update();
})();
