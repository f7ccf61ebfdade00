"use strict";
// Draws rows a part at a time. Every text becomes text, never markup.
(() => {
  const PART = 60;
  const { rows, names, columns } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const list = byId("rows"), more = byId("more");
  let shown = [], drawn = 0;

  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  const words = (row) => [
    row.id, row.prompt, ...(row.turns || []).map((turn) => turn[1]),
    ...row.answers.flatMap((answer) => [answer.text, answer.error, answer.reasoning]),
    ...Object.entries(row.metadata).map(([name, value]) => `${name}: ${value}`),
  ].filter((part) => part !== undefined && part !== null).join("\n").toLowerCase();
  let haystack = null;

  const valueOf = (row, key) => {
    if (key === "#id") return row.id;
    if (key === "#tokens") return row.answers[0].tokens;
    if (key === "#score") return row.answers[0].score;
    return row.metadata[key];
  };
  const compare = (a, b) => {
    const missing = (a === undefined || a === null) - (b === undefined || b === null);
    if (missing) return { order: missing, fixed: true };
    if (a === undefined || a === null) return { order: 0, fixed: true };
    if (typeof a === "number" && typeof b === "number") return { order: a - b, fixed: false };
    return { order: collator.compare(String(a), String(b)), fixed: false };
  };
  const collator = new Intl.Collator(undefined, { numeric: true });

  const shade = (logprob) => (logprob > -0.1 ? "" : logprob > -0.7 ? "p1" : logprob > -2.3 ? "p2" : logprob > -4.6 ? "p3" : "p4");

  const drawText = (answer, place) => {
    const line = make("p", undefined, "text");
    if (answer.error !== undefined) {
      line.append(make("span", answer.error, "error"));
    } else if (typeof place === "number") {
      const at = [...answer.text];
      line.append(at.slice(0, place).join(""), make("mark", at[place] === undefined ? "∎" : at[place]), at.slice(place + 1).join(""));
    } else if (answer.pieces) {
      line.classList.add("pieces");
      for (const [piece, logprob] of answer.pieces) {
        const span = make("span", piece, shade(logprob));
        span.title = `log-probability ${logprob}`;
        line.append(span);
      }
    } else {
      line.textContent = answer.text;
    }
    return line;
  };

  const drawTokens = (row) => {
    const details = make("details");
    details.append(make("summary", "token ids and mask"));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const lines = [];
      if (row.inputIds) {
        lines.push(`input_ids       ${row.pads ? `(${row.pads} pads) ` : ""}${row.inputIds.join(" ")}`);
        lines.push(`attention_mask  ${row.pads ? `(${row.pads} × 0) ` : ""}${row.inputIds.map(() => 1).join(" ")}`);
      }
      row.answers.forEach((answer, at) => {
        if (answer.ids) lines.push(`output_ids${names.length > 1 ? ` ${names[at]}` : ""}  ${answer.ids.join(" ")}`);
      });
      details.append(make("pre", lines.join("\n")));
    });
    return details;
  };

  const draw = (row) => {
    const card = make("article");
    const head = make("h2");
    head.append(make("b", row.sample ? `${row.id} (sample ${row.sample})` : row.id));
    if (row.token !== undefined && row.token !== null) head.append(make("span", `parts at token ${row.token}`));
    for (const name of columns) {
      if (row.metadata[name] !== undefined && row.metadata[name] !== null) head.append(make("span", `${name}: ${row.metadata[name]}`));
    }
    card.append(head);
    if (row.turns) {
      for (const [role, content] of row.turns) {
        const turn = make("div", undefined, "turn");
        turn.append(make("i", role), make("p", content === null ? "" : String(content), "text"));
        card.append(turn);
      }
    } else {
      card.append(make("p", row.prompt, "text prompt"));
    }
    const answers = make("div", undefined, names.length > 1 ? "answers two" : "answers");
    row.answers.forEach((answer, at) => {
      const box = make("section");
      const score = answer.score === undefined ? "" : `, log-probability ${answer.score}`;
      box.append(make("h3", `${names[at]}: ${answer.tokens} new tokens, ${answer.reason}${score}`));
      if (answer.reasoning) {
        const thought = make("details");
        thought.append(make("summary", "reasoning"), make("p", answer.reasoning, "text"));
        box.append(thought);
      }
      box.append(drawText(answer, row.place));
      answers.append(box);
    });
    card.append(answers);
    if (row.inputIds || row.answers.some((answer) => answer.ids)) card.append(drawTokens(row));
    return card;
  };

  const drawMore = (count) => {
    const part = document.createDocumentFragment();
    for (const end = Math.min(shown.length, drawn + count); drawn < end; drawn += 1) part.append(draw(rows[shown[drawn]]));
    list.append(part);
    more.hidden = drawn >= shown.length;
  };

  const update = () => {
    const wanted = byId("search").value.trim().toLowerCase(), reason = byId("reason").value;
    const key = byId("sort").value, sign = byId("down").checked ? -1 : 1;
    if (wanted && !haystack) haystack = rows.map(words);
    shown = [];
    for (let at = 0; at < rows.length; at += 1) {
      if (reason && !rows[at].answers.some((answer) => answer.reason === reason)) continue;
      if (wanted && !haystack[at].includes(wanted)) continue;
      shown.push(at);
    }
    if (key) {
      shown.sort((a, b) => {
        const { order, fixed } = compare(valueOf(rows[a], key), valueOf(rows[b], key));
        return (fixed ? order : sign * order) || a - b;
      });
    } else if (sign < 0) {
      shown.reverse();
    }
    list.replaceChildren();
    drawn = 0;
    drawMore(PART);
    const all = rows.length.toLocaleString("en"), some = shown.length.toLocaleString("en");
    byId("count").textContent = shown.length === rows.length ? `${all} rows` : `${some} of ${all} rows`;
  };

  const controls = byId("controls");
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", update);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && drawn < shown.length) drawMore(PART);
  }, { rootMargin: "1200px" }).observe(more);
  window.addEventListener("beforeprint", () => drawMore(shown.length));
  update();
})();
