(() => {
  const SIZE = 400, SCALE = 165, LOW = -3, HIGH = 3;
  for (const control of document.querySelectorAll(".vbank-simplex:not([data-live])")) {
    control.setAttribute("data-live", "");
    take(control);
  }

  function take(control) {
    const state = JSON.parse(control.dataset.state); // bank: [[x, y], ...], logits, k, colours, inks, alt
    const { bank, logits, colours, inks } = state;
    const h = bank.length;
    let k = state.k, wish = null, held = null;

    // The mathematics: w = softmax(top-k of the logits), u = sum of w times bank vector.
    const byLogit = () => [...bank.keys()].sort((s, t) => logits[t] - logits[s] || s - t);
    function mix() {
      const chosen = byLogit().slice(0, k), top = logits[chosen[0]];
      const raised = chosen.map((s) => Math.exp(logits[s] - top));
      const total = raised.reduce((sum, value) => sum + value, 0);
      const weights = raised.map((value) => value / total);
      const u = [0, 1].map((i) => chosen.reduce((sum, s, j) => sum + weights[j] * bank[s][i], 0));
      return { chosen, weights, u };
    }

    // The reachable point nearest to p: bank vectors and weights.
    const distance = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);
    function onEdge(p, s, t) {
      const [a, b] = [bank[s], bank[t]], d = [b[0] - a[0], b[1] - a[1]];
      const length = d[0] * d[0] + d[1] * d[1] || 1;
      const w = Math.min(1, Math.max(0, ((p[0] - a[0]) * d[0] + (p[1] - a[1]) * d[1]) / length));
      return { chosen: [s, t], weights: [1 - w, w], far: distance(p, [a[0] + w * d[0], a[1] + w * d[1]]) };
    }
    function inFace(p, s, t, v) {
      const [a, b, c] = [bank[s], bank[t], bank[v]];
      const area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]);
      if (Math.abs(area) < 1e-6) return null;
      const wb = ((p[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (p[1] - a[1])) / area;
      const wc = ((b[0] - a[0]) * (p[1] - a[1]) - (p[0] - a[0]) * (b[1] - a[1])) / area;
      const weights = [1 - wb - wc, wb, wc];
      return Math.min(...weights) < 0 ? null : { chosen: [s, t, v], weights, far: 0.001 * Math.abs(area) };
    }
    function nearest(p) {
      const found = [], now = mix().chosen;
      for (let s = 0; s < h; s++) {
        if (k === 1) found.push({ chosen: [s], weights: [1], far: distance(p, bank[s]) });
        for (let t = s + 1; t < h && k > 1; t++) {
          const edge = onEdge(p, s, t);
          if (k === 2) found.push(edge);
          for (let v = 0; v < h && k === 3; v++) {
            if (v === s || v === t) continue;
            found.push({ chosen: [s, t, v], weights: [...edge.weights, 0], far: edge.far });
            if (v > t) found.push(inFace(p, s, t, v));
          }
        }
      }
      const stays = (one) => one.chosen.every((s) => now.includes(s)); // no flicker between equally near ones
      const far = (one) => one.far - (stays(one) && k > 1 ? 0.01 : 0);
      return found.filter(Boolean).reduce((best, one) => (far(one) < far(best) ? one : best));
    }
    function reachFor(p) {
      const { chosen, weights } = nearest(p), top = Math.max(...weights);
      chosen.forEach((s, j) => { logits[s] = HIGH + Math.max(Math.log(weights[j] / top), LOW - HIGH + 0.3); });
      const least = Math.min(...chosen.map((s) => logits[s]));
      for (let s = 0; s < h; s++) if (!chosen.includes(s)) logits[s] = Math.max(LOW, Math.min(logits[s], least - 0.2));
      wish = p;
    }

    // The page.
    const px = ([x, y]) => [SIZE / 2 + SCALE * x, SIZE / 2 - SCALE * y];
    const at = (p) => px(p).map((value) => value.toFixed(1)).join(",");
    const name = (s) => "α" + String(s + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
    const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
    function svg(tag, attributes, parent) {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      if (parent) parent.append(node);
      return node;
    }
    function element(tag, attributes, parent) {
      const node = Object.assign(document.createElement(tag), attributes);
      parent.append(node);
      return node;
    }

    const live = control.querySelector(".vbank-live");
    const buttons = element("div", { className: "vbank-k" }, live);
    buttons.setAttribute("role", "group");
    buttons.setAttribute("aria-label", "k: how many bank vectors the sub-vector mixes");
    const reached = ["only the bank vectors", "the edges between them", "the faces between three"];
    const choices = [1, 2, 3].map((value) => {
      const button = element("button", { type: "button", textContent: `k = ${value}` }, buttons);
      button.addEventListener("click", () => { k = value; if (wish) reachFor(wish); show(); });
      return button;
    });
    const sides = element("div", { className: "vbank-sides" }, live);
    const picture = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "group", "aria-label": state.alt }, sides);
    const [axes, regions, reach, chosenLayer, handles] = Array.from({ length: 5 }, () => svg("g", {}, picture));
    svg("path", { d: `M0,${SIZE / 2}H${SIZE}M${SIZE / 2},0V${SIZE}`, stroke: "#e0e0e0" }, axes);
    svg("text", { x: SIZE - 6, y: SIZE / 2 + 18, "text-anchor": "end", class: "vbank-axis" }, axes).textContent = "entry 1";
    svg("text", { x: SIZE / 2 + 6, y: SIZE - 8, class: "vbank-axis" }, axes).textContent = "entry 2";
    const right = element("div", { className: "vbank-side" }, sides);
    const said = element("p", { className: "vbank-said" }, right);
    said.setAttribute("aria-live", "polite");
    const table = element("div", { className: "vbank-logits" }, right);
    const heading = element("div", { className: "vbank-heading" }, table);
    for (const text of ["", "logit", "weight"]) element("span", { textContent: text }, heading);
    const rows = bank.map((_, s) => {
      const label = element("label", {}, table);
      const dot = element("span", { className: "vbank-dot", textContent: name(s) }, label);
      dot.style.cssText = `background:${colours[s]};color:${inks[s]}`;
      const slider = element("input", { type: "range", min: LOW, max: HIGH, step: 0.1 }, label);
      slider.setAttribute("aria-label", `logit of bank vector ${s + 1}`);
      slider.addEventListener("input", () => { logits[s] = Number(slider.value); wish = null; show(); });
      return { label, slider, weight: element("output", {}, label) };
    });

    function handle(label, colour, ink, text, where, move) {
      const node = svg("g", { tabindex: 0, role: "slider", "aria-label": label, class: "vbank-handle",
        "aria-roledescription": "point in the plane", "aria-valuemin": -1.15, "aria-valuemax": 1.15 }, handles);
      svg("circle", { r: 24, fill: "transparent" }, node);
      const shape = text ? svg("circle", { r: 13 }, node) : svg("path", { d: "M0,-15L15,0L0,15L-15,0Z" }, node);
      const rim = text ? { stroke: "#1a1a1a" } : { stroke: "#fff", "stroke-width": 2.5 };
      for (const [key, value] of Object.entries({ fill: colour, ...rim })) shape.setAttribute(key, value);
      svg("text", { "text-anchor": "middle", dy: "0.35em", fill: ink }, node).textContent = text || "u";
      const inside = (value) => Math.min(1.15, Math.max(-1.15, value));
      const go = (p) => { move(p.map(inside)); show(); };
      node.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        node.setPointerCapture(event.pointerId);
        node.focus();
        held = node;
      });
      // touch-action does not reach a part of an SVG: a finger would scroll the page after the first move
      node.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
      node.addEventListener("pointermove", (event) => {
        if (held !== node) return;
        const box = picture.getBoundingClientRect(), unit = SIZE / box.width;
        go([((event.clientX - box.left) * unit - SIZE / 2) / SCALE, (SIZE / 2 - (event.clientY - box.top) * unit) / SCALE]);
      });
      for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => { held = null; show(); });
      node.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
        if (!step) return;
        event.preventDefault();
        const size = event.shiftKey ? 0.2 : 0.05, from = where();
        go([from[0] + size * step[0], from[1] + size * step[1]]);
      });
      return (p, [right, down] = [0, 0]) => {
        node.setAttribute("transform", `translate(${at(p)}) translate(${right},${down})`);
        node.setAttribute("aria-valuenow", p[0].toFixed(2));
        node.setAttribute("aria-valuetext", `${number(p[0])} across, ${number(p[1])} up`);
      };
    }
    const place = bank.map((_, s) =>
      handle(`bank vector ${s + 1}`, colours[s], inks[s], String(s + 1), () => bank[s], (p) => { bank[s] = p; wish = null; }));
    const placeU = handle("the sub-vector u", "#1a1a1a", "#fff", "", () => wish || mix().u, reachFor);

    // The part of the square that is nearer to bank vector s than to any other: cut by one bisector after another.
    function region(s) {
      let shape = [[-1.22, -1.22], [1.22, -1.22], [1.22, 1.22], [-1.22, 1.22]];
      for (let t = 0; t < h; t++) {
        if (t === s) continue;
        const side = (p) => distance(p, bank[t]) ** 2 - distance(p, bank[s]) ** 2, next = [];
        shape.forEach((p, i) => {
          const q = shape[(i + 1) % shape.length], [a, b] = [side(p), side(q)];
          if (a >= 0) next.push(p);
          if (a * b < 0) next.push([p[0] + (a / (a - b)) * (q[0] - p[0]), p[1] + (a / (a - b)) * (q[1] - p[1])]);
        });
        shape = next;
      }
      return shape;
    }

    function show() {
      const { chosen, weights, u } = mix();
      for (const layer of [regions, reach, chosenLayer]) layer.replaceChildren();
      for (let s = 0; s < h; s++) {
        if (k === 1) {
          const points = region(s).map(at).join(" ");
          svg("polygon", { points, fill: colours[s], "fill-opacity": 0.22, stroke: "#fff", "stroke-width": 2 }, regions);
        }
        for (let t = s + 1; t < h && k > 1; t++) {
          for (let v = t + 1; v < h && k === 3; v++) {
            const points = [s, t, v].map((i) => at(bank[i])).join(" ");
            svg("polygon", { points, fill: "#7b1e00", "fill-opacity": 0.035 }, reach);
          }
          svg("path", { d: `M${at(bank[s])}L${at(bank[t])}`, stroke: "#b08f84", "stroke-width": k === 2 ? 1.6 : 0.6 }, reach);
        }
        place[s](bank[s]);
      }
      const points = chosen.map((s) => at(bank[s])).join(" ");
      const look = { fill: "#7b1e00", "fill-opacity": 0.28, stroke: "#7b1e00", "stroke-width": 5, "stroke-linejoin": "round" };
      svg("polygon", { points, ...look }, chosenLayer);
      chosen.forEach((s, j) => {
        const [x, y] = px(bank[s]);
        svg("circle", { cx: x, cy: y, r: 19, fill: "none", stroke: "#7b1e00", "stroke-width": 3.5 }, chosenLayer);
        const down = y > SIZE - 50 ? -26 : 36;
        const text = { x, y: y + down, "text-anchor": "middle", class: "vbank-weight" };
        svg("text", text, chosenLayer).textContent = number(weights[j]);
      });
      if (wish && distance(wish, u) > 0.02) {
        svg("path", { d: `M${at(wish)}L${at(u)}`, stroke: "#1a1a1a", "stroke-dasharray": "4 4" }, chosenLayer);
        const [cx, cy] = px(wish);
        svg("circle", { cx, cy, r: 9, fill: "none", stroke: "#1a1a1a", "stroke-width": 2 }, chosenLayer);
      }
      const near = !held && bank.some((vector) => distance(vector, u) < 0.13); // keep the bank vector within reach
      placeU(u, near ? [22, -22] : [0, 0]);
      rows.forEach(({ label, slider, weight }, s) => {
        const j = chosen.indexOf(s);
        slider.value = logits[s];
        slider.setAttribute("aria-valuetext", `${number(logits[s], 1)}, weight ${j < 0 ? "0" : number(weights[j])}`);
        weight.textContent = j < 0 ? "0" : number(weights[j]);
        label.classList.toggle("vbank-chosen", j >= 0);
      });
      choices.forEach((button, i) => button.setAttribute("aria-pressed", String(i + 1 === k)));
      const sum = chosen.map((s, j) => `${number(weights[j])} ${name(s)}`).join(" + ");
      said.textContent = `u = ${sum}. With k = ${k} it reaches ${reached[k - 1]}.`;
    }

    control.querySelector("img").hidden = true;
    live.hidden = false;
    show();
  }
})();
