// What differs between two texts, word by word.
{
  const MOST = 1e6;
  const words = (text) => text.match(/[\p{L}\p{M}\p{N}_]+|\s+|[^\s]/gu) || [];

  // Longest common subsequence of the middle parts, by the table of its lengths.
  const middle = (old, later) => {
    const width = later.length + 1;
    const table = new Uint16Array((old.length + 1) * width);
    for (let i = old.length - 1; i >= 0; i -= 1) {
      for (let j = later.length - 1; j >= 0; j -= 1) {
        table[i * width + j] = old[i] === later[j]
          ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      }
    }
    const steps = [];
    let [i, j] = [0, 0];
    while (i < old.length || j < later.length) {
      if (i < old.length && j < later.length && old[i] === later[j]) { steps.push([0, old[i]]); i += 1; j += 1; }
      else if (j >= later.length || (i < old.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) { steps.push([-1, old[i]]); i += 1; }
      else { steps.push([1, later[j]]); j += 1; }
    }
    return steps;
  };

  // Steps of [-1 only in the old text | 0 in both | 1 only in the new one, words]. Where the texts share little, or
  // are too long for the table, their middles are marked whole.
  U.diff = (oldText, newText) => {
    const [old, later] = [words(oldText), words(newText)];
    let first = 0;
    while (first < Math.min(old.length, later.length) && old[first] === later[first]) first += 1;
    let last = 0;
    while (last < Math.min(old.length, later.length) - first && old[old.length - 1 - last] === later[later.length - 1 - last]) last += 1;
    const [a, b] = [old.slice(first, old.length - last), later.slice(first, later.length - last)];
    const whole = [[-1, a.join("")], [1, b.join("")]];
    let steps = whole;
    if (a.length * b.length <= MOST && a.length < 65535) {
      steps = middle(a, b);
      const shared = steps.filter(([sign, text]) => sign === 0 && text.trim()).length;
      const all = Math.max(1, Math.min(...[a, b].map((list) => list.filter((text) => text.trim()).length)));
      if (shared / all < 0.25) steps = whole;
    }
    const joined = [];
    for (const [sign, text] of [[0, old.slice(0, first).join("")], ...steps, [0, old.slice(old.length - last).join("")]]) {
      if (!text) continue;
      const tail = joined[joined.length - 1];
      if (tail && tail[0] === sign) tail[1] += text; else joined.push([sign, text]);
    }
    return joined;
  };

  // One side of a diff as a node: -1 the old text with its removed words marked, 1 the new one with those added.
  U.diffSide = (steps, side) => {
    const block = U.make("div", "text");
    steps.forEach(([sign, text]) => {
      if (sign === 0) block.append(text);
      if (sign !== side) return;
      const mark = U.make(side < 0 ? "del" : "ins");
      mark.append(U.hidden(side < 0 ? "[removed: " : "[added: "), text, U.hidden("]"));
      block.append(mark);
    });
    return block;
  };
}
