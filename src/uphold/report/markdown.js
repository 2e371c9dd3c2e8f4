// Instances as Markdown, for an issue or a pull request. Texts stand in fences longer than any inside them.
{
  const longestRun = (text) => Math.max(0, ...(text.match(/`+/g) || []).map((run) => run.length));
  const block = (text) => {
    const fence = "`".repeat(Math.max(3, longestRun(text) + 1));
    return `${fence}text\n${text === "" ? "(empty)" : text}\n${fence}`;
  };
  const inline = (text, most = 160) => {
    const flat = text.replace(/\s+/g, " ").trim();
    const short = flat.length > most ? `${flat.slice(0, most / 4)} … ${flat.slice(-(3 * most) / 4)}` : flat;
    const fence = "`".repeat(longestRun(short) + 1);
    return short === "" ? "(empty)" : `${fence} ${short} ${fence}`;
  };
  const judged = (answer) => {
    const parts = answer.right === null ? [] : [answer.right ? "right" : "wrong"];
    if (answer.score !== null) parts.push(`score ${answer.score.toFixed(3)}`);
    if (answer.margin !== null) parts.push(`margin ${U.signed(answer.margin, 2)}`);
    return parts.length ? ` (${parts.join(", ")})` : "";
  };
  const title = (row) => row.kind.label + (row.effect ? `, ${row.effect}` : "");
  const update = () => `${inline(U.head.task)}: ${inline(U.head.names[0])} → ${inline(U.head.names[1])}`;

  U.instanceMarkdown = (row) => [
    `### ${U.capital(title(row))}`,
    `${update()}, instance ${inline(row.id)}`,
    "**Question**", block(row.input),
    "**Gold**", block(row.gold),
    ...row.answers.flatMap((answer) => [`**${U.capital(answer.version)} answer**${judged(answer)}`, block(answer.output === null ? answer.text : answer.output)]),
    ...(row.tags.length ? [`Tags: ${row.tags.map((tag) => inline(tag.label)).join(", ")}`] : []),
  ].join("\n\n") + "\n";

  const MOST = 50;
  U.listMarkdown = (rows, filters) => {
    const lines = rows.slice(0, MOST).map((index) => {
      const row = U.row(index);
      const answers = row.answers.map((answer) => `${answer.version} ${inline(answer.text, 80)}${judged(answer)}`).join(" → ");
      return `- **${title(row)}** ${inline(row.id)}: ${inline(row.input)}, gold ${inline(row.gold, 80)}; ${answers}`;
    });
    const more = rows.length > MOST ? [`and ${U.number(rows.length - MOST)} more`] : [];
    const words = filters.length ? `: ${filters.map((filter) => inline(filter)).join(", ")}` : "";
    return [update(), `${U.number(rows.length)} of ${U.number(U.loaded)} instances${words}`, lines.join("\n"), ...more].join("\n\n") + "\n";
  };
}
