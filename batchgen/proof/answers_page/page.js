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
    if (key === "#each") return row.answers[0].each;
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
  const surprise = (logprob) => (logprob > -0.7 ? "p0" : logprob > -2.3 ? "p1" : logprob > -4.6 ? "p2" : logprob > -6.9 ? "p3" : "p4");
  const heat = list.classList.contains("scored") ? surprise : shade;

  // Of the token that is pointed at: how likely it is, and what else was.
  const told = new WeakMap(), tip = byId("tip");
  let pointed = null;
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 0.1 ? `${share.toFixed(1)}%` : share >= 1e-4 ? `${share.toPrecision(1)}%` : "<0.0001%";
  };
  const visible = (piece) => piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·");
  const bar = (piece, logprob, className) => {
    const row = make("div", undefined, className);
    const rod = make("i");
    rod.style.width = `${100 * Math.exp(logprob)}%`;
    row.append(make("code", visible(piece)), rod, make("b", percent(logprob)));
    return row;
  };
  const point = (span) => {
    if (pointed) pointed.classList.remove("pointed");
    pointed = span;
    tip.hidden = !span;
    if (!span) return;
    const { piece, logprob, alternatives } = told.get(span);
    span.classList.add("pointed");
    const others = alternatives.filter(([other]) => other !== piece);
    tip.replaceChildren(
      make("p", `log-probability ${logprob} · ${(-logprob / Math.LN2).toFixed(2)} bits`),
      ...[[piece, logprob, "own"], ...others].sort((a, b) => b[1] - a[1]).map(([text, value, own]) => bar(text, value, own)),
    );
    const box = [...span.getClientRects()].at(-1), width = tip.offsetWidth, height = tip.offsetHeight;
    const above = box.bottom + height + 8 > innerHeight && box.top > height + 8;
    tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - width - 4))}px`;
    tip.style.top = `${above ? box.top - height - 6 : box.bottom + 6}px`;
  };
  list.addEventListener("pointerover", (event) => point(told.has(event.target) ? event.target : null));
  list.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
  list.addEventListener("click", (event) => point(told.has(event.target) ? event.target : null));
  list.addEventListener("focusout", () => point(null));
  addEventListener("scroll", () => point(null), { passive: true });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const line = event.target.closest(".pieces");
    if (event.key === "Escape") point(null);
    if (!step || !line) return;
    event.preventDefault();
    const at = pointed && pointed.parentElement === line ? [...line.children].indexOf(pointed) + step : step < 0 ? line.children.length - 1 : 0;
    point(line.children[Math.max(0, Math.min(at, line.children.length - 1))]);
  });

  const drawText = (answer, place) => {
    const line = make("p", undefined, "text");
    if (answer.error !== undefined) {
      line.append(make("span", answer.error, "error"));
    } else if (typeof place === "number") {
      const at = [...answer.text];
      line.append(at.slice(0, place).join(""), make("mark", at[place] === undefined ? "∎" : at[place]), at.slice(place + 1).join(""));
    } else if (answer.pieces) {
      line.classList.add("pieces");
      line.tabIndex = 0;
      for (const [piece, logprob, alternatives] of answer.pieces) {
        const span = make("span", piece, heat(logprob));
        told.set(span, { piece, logprob, alternatives: alternatives || [] });
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
    } else if (row.prompt || !row.answers[0].head) {
      card.append(make("p", row.prompt, "text prompt"));
    }
    const answers = make("div", undefined, names.length > 1 ? "answers two" : "answers");
    row.answers.forEach((answer, at) => {
      const box = make("section");
      const score = answer.score === undefined ? "" : `, log-probability ${answer.score}`;
      box.append(make("h3", answer.head || `${names[at]}: ${answer.tokens} new tokens, ${answer.reason}${score}`, answer.best ? "best" : undefined));
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
