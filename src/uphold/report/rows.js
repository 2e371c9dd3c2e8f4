// The instances: unpacked chunk by chunk, kept by columns, and read one row at a time.
{
  const head = JSON.parse(U.find("data").textContent);
  const chunks = [];
  U.head = head;
  U.total = head.count;
  U.loaded = 0;
  U.kind = new Uint8Array(head.count);
  U.effect = new Int8Array(head.count).fill(-1);
  U.points = head.panels.map(() => [new Float32Array(head.count).fill(NaN), new Float32Array(head.count).fill(NaN)]);
  U.kindCalled = (name) => head.kinds.findIndex((kind) => kind.name === name);
  U.tagCalled = new Map(head.tags.map((tag, number) => [tag.label, number]));

  const unpack = async (text) => {
    const packed = atob(text);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i += 1) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  const take = (chunk) => {
    const start = chunks.length * head.chunk;
    chunk.lower = null;
    chunks.push(chunk);
    U.kind.set(chunk.kind, start);
    U.effect.set(chunk.effect, start);
    chunk.points.forEach((panel, which) => panel.forEach((column, axis) => {
      column.forEach((value, i) => { if (value !== null) U.points[which][axis][start + i] = value; });
    }));
    delete chunk.points;
    U.loaded = start + chunk.id.length;
  };

  U.load = async (onChunk) => {
    const nodes = [...document.querySelectorAll("script.chunk")];
    for (const node of nodes) {
      take(await unpack(node.textContent));
      node.remove();
      onChunk();
    }
    prepare(0);
  };

  const at = (index) => [chunks[Math.floor(index / head.chunk)], index % head.chunk];

  // Letter case does not matter to a search; lower-case copies are made while nothing else is to do.
  const lowered = (chunk) => {
    if (!chunk.lower) {
      chunk.lower = chunk.texts.map((text) => text.toLowerCase());
      chunk.lowerId = chunk.id.map((id) => id.toLowerCase());
    }
    return chunk.lower;
  };
  const whenIdle = window.requestIdleCallback || ((work) => setTimeout(work, 60));
  const prepare = (number) => {
    if (number >= chunks.length) return;
    whenIdle(() => { lowered(chunks[number]); prepare(number + 1); });
  };

  const found = { query: "", loaded: 0, hits: null };
  // One byte per row: whether its question, gold, id or any answer contains the query.
  U.textHits = (query) => {
    if (found.query === query && found.loaded === U.loaded) return found.hits;
    const narrower = found.hits && found.loaded === U.loaded && found.query && query.includes(found.query);
    const before = narrower ? found.hits : null;
    const hits = new Uint8Array(U.loaded);
    chunks.forEach((chunk, number) => {
      const start = number * head.chunk;
      const texts = lowered(chunk);
      const known = new Int8Array(texts.length).fill(-1);
      const inText = (which) => {
        if (known[which] < 0) known[which] = texts[which].includes(query) ? 1 : 0;
        return known[which] === 1;
      };
      for (let i = 0; i < chunk.id.length; i += 1) {
        if (before && !before[start + i]) continue;
        hits[start + i] = inText(chunk.input[i]) || inText(chunk.gold[i]) || chunk.lowerId[i].includes(query) ||
          chunk.answers.some((answer) => inText(answer.text[i]) || (answer.output[i] >= 0 && inText(answer.output[i]))) ? 1 : 0;
      }
    });
    Object.assign(found, { query, loaded: U.loaded, hits });
    return hits;
  };

  U.tagsOf = (index) => { const [chunk, i] = at(index); return chunk.tags[i]; };
  U.idOf = (index) => { const [chunk, i] = at(index); return chunk.id[i]; };

  const places = new Map();
  U.indexOf = (id) => {
    for (let index = places.size; index < U.loaded; index += 1) places.set(U.idOf(index), index);
    return places.has(id) ? places.get(id) : -1;
  };

  // How far the newest version's figure lies from the old one's; missing figures come last.
  const change = (chunk, i, version) => {
    const unit = chunk.answers[0].margin[i] === null ? "score" : "margin";
    const [old, later] = [chunk.answers[0][unit][i], chunk.answers[version][unit][i]];
    return old === null || later === null ? Infinity : later - old;
  };
  U.sorts = [["flip", "Kind of flip"], ["question", "Question"], ["gold", "Gold"],
    ...head.versions.map((name) => [name, `${U.capital(name)} answer`]), ["change", "Largest fall, old to new"]];
  U.sortKeys = (name) => {
    const keys = new Array(U.loaded);
    const version = head.versions.indexOf(name);
    chunks.forEach((chunk, number) => {
      for (let i = 0; i < chunk.id.length; i += 1) {
        keys[number * head.chunk + i] = name === "question" ? chunk.texts[chunk.input[i]]
          : name === "gold" ? chunk.texts[chunk.gold[i]]
            : name === "change" ? change(chunk, i, 1) : chunk.texts[chunk.answers[version].text[i]];
      }
    });
    return keys;
  };

  U.row = (index) => {
    const [chunk, i] = at(index);
    const kind = head.kinds[chunk.kind[i]];
    return {
      index, kind, id: chunk.id[i],
      effect: chunk.effect[i] < 0 ? "" : head.effects[chunk.effect[i]].name,
      input: chunk.texts[chunk.input[i]],
      gold: chunk.texts[chunk.gold[i]],
      tags: chunk.tags[i].map((number) => head.tags[number]),
      options: chunk.options[i].map((number) => chunk.texts[number]),
      hidden: chunk.hidden[i],
      answers: head.versions.map((version, which) => {
        const answer = chunk.answers[which];
        return {
          version,
          text: chunk.texts[answer.text[i]],
          output: answer.output[i] < 0 ? null : chunk.texts[answer.output[i]],
          right: answer.right[i] < 0 ? null : answer.right[i] === 1,
          score: answer.score[i], margin: answer.margin[i], logprobs: answer.logprobs[i],
        };
      }),
    };
  };
}
