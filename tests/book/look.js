// What the tests ask of a page; `book` is theirs alone.
window.book = (() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const name = (element) => {
    const classes = element.getAttribute("class");
    return element.localName + (element.id ? `#${element.id}` : "") + (classes ? `.${classes.trim().split(/\s+/).join(".")}` : "");
  };
  const article = document.querySelector("article") ?? document.querySelector("main");

  // Text in matplotlib's drawings is outlines: its size is the scale of a unit of 100.
  const sizes = (svg) => {
    const [, , wide] = svg.match(/viewBox="([\d.-]+ ){2}([\d.]+)/) ?? [];
    return [...svg.matchAll(/scale\(([\d.]+) -[\d.]+\)/g)].map((found) => (100 * found[1]) / wide); // in widths
  };

  // Whether the keyboard reaches a box that scrolls sideways.
  const reachable = (box) =>
    box.tabIndex >= 0 || all("a[href], button, input, summary, [tabindex='0']", box).some((one) => one.checkVisibility());

  const picked = (element, ...keys) => {
    const style = getComputedStyle(element);
    return Object.fromEntries(keys.map((key) => [key, style[key]]));
  };
  const PLAIN = "|rgba(0, 0, 0, 0)|none|1|none|normal"; // what adds nothing to the ground that it stands on

  const state = (control) => {
    const copy = control.cloneNode(true);
    all("script, style, input", copy).forEach((one) => one.remove());
    return copy.outerHTML;
  };

  // What can tell a reader that a thing has the focus, on it or on its first part.
  const unfocused = new Map();
  const looksOf = (one) => [one, one.firstElementChild].filter(Boolean).map((part) => {
    const look = getComputedStyle(part);
    return ["outlineStyle", "outlineWidth", "boxShadow", "backgroundColor", "textDecorationLine",
      "textDecorationThickness", "borderColor", "stroke", "opacity"].map((key) => look[key]).join();
  }).join(" / ");

  return {
    // What is the same at every width, in both themes.
    async once() {
      const text = article.cloneNode(true);
      all("pre, code, script, style, mjx-container", text).forEach((one) => one.remove());
      const images = all("img", article);
      await Promise.all(images.map((image) => { image.loading = "eager"; return image.decode().catch(() => null); }));
      const grounds = images.filter((image) => image.naturalWidth).map((image) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0, 8 * image.naturalWidth, 8 * image.naturalHeight);
        return [...pen.getImageData(1, 1, 1, 1).data].join(" ");
      });
      return {
        "formula errors": all("mjx-merror, [data-mjx-error]").map((one) => one.textContent),
        "formulas not set": all(".math", article).filter((one) => !one.querySelector("mjx-container"))
          .map((one) => one.textContent),
        "raw TeX": text.textContent.match(/\\[a-zA-Z]{2,}|\\[()[\]]|\$[^$\s][^$\n]*\$/g) ?? [],
        headings: all("h1, h2, h3, h4, h5, h6", article).map((one) => Number(one.localName[1])),
        "broken images": images.filter((image) => !image.naturalWidth).map((image) => image.src.slice(-60)),
        "grounds of figures": [...new Set(grounds)],
        blocking: performance.getEntriesByType("resource")
          .filter((one) => one.renderBlockingStatus === "blocking").map((one) => one.name),
      };
    },

    // What depends on width or theme.
    async look() {
      const root = document.documentElement;
      const images = all("img", article).filter((image) => image.offsetWidth && /^data:image\/svg|\.svg/.test(image.src));
      const letters = await Promise.all(images.map(async (image) => {
        const svg = await (await fetch(image.src)).text();
        return Math.min(...sizes(svg)) * image.clientWidth;
      }));
      for (const one of all("svg text", article)) {
        const shape = one.getScreenCTM();
        if (one.checkVisibility() && shape) letters.push(parseFloat(getComputedStyle(one).fontSize) * shape.a);
      }
      const boxes = all("body *").filter((box) => box.clientWidth && box.scrollWidth > box.clientWidth + 1 &&
        ["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.checkVisibility());
      return {
        "sideways": root.scrollWidth - root.clientWidth,
        "too wide": root.scrollWidth <= root.clientWidth ? [] : all("body *")
          .filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1).slice(-5).map(name),
        "letters of figures": letters.length ? Math.min(...letters) : null,
        "cut-off sentences": all("pre .vbank-prose", article)
          .filter((one) => one.getBoundingClientRect().right > one.closest("pre").getBoundingClientRect().right + 1)
          .map((one) => one.textContent),
        "cut-off formulas": all("mjx-container[display='true']", article)
          .filter((one) => one.scrollWidth > one.clientWidth + 1 && one.clientWidth >= 0.75 * one.scrollWidth)
          .filter((one) => one.checkVisibility())
          .map((one) => one.textContent),
        "boxes out of reach": boxes.filter((box) => !reachable(box)).map(name),
      };
    },

    // Controls of which nothing changes when they are moved or pressed.
    deadControls() {
      const dead = [];
      for (const control of all(".vbank-control")) {
        for (const slider of all("input[type='range']", control)) {
          const states = [slider.min, slider.max, slider.value].map((value) => {
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            return state(control);
          });
          if (states[0] === states[1]) dead.push(slider.dataset.name ?? slider.ariaLabel);
        }
        for (const button of all("button:not([aria-pressed='true'])", control)) {
          const before = state(control);
          button.click();
          if (state(control) === before) dead.push(button.textContent);
        }
      }
      return dead;
    },

    // Where the keyboard is: what that is, and whether a reader sees it.
    rememberUnfocused() {
      for (const one of all("a, button, input, summary, select, textarea, [tabindex]")) unfocused.set(one, looksOf(one));
    },
    focused(wanted) {
      const one = document.activeElement;
      if (one === document.body) return null;
      for (const animation of document.getAnimations()) animation.finish();
      const box = one.getBoundingClientRect(), { opacity } = getComputedStyle(one);
      const inside = box.width > 0 && box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth;
      return {
        name: name(one), text: one.textContent.trim().slice(0, 40), matches: wanted.filter((selector) => one.matches(selector)),
        shown: inside && opacity > 0.5 && looksOf(one) !== unfocused.get(one),
      };
    },

    // For axe, whose look at contrast takes most of its time: the first of all words alike, on like grounds. What
    // stands outside the flow of the page is a ground of its own.
    markColours() {
      const grounds = new Map([[null, ""]]), met = new Set();
      const ground = (one) => {
        if (!grounds.has(one)) {
          const { position, ...rest } = picked(one, "position", "backgroundColor", "backgroundImage", "opacity",
            "filter", "mixBlendMode");
          const apart = ["absolute", "fixed", "sticky"].includes(position) ? `apart ${grounds.size}` : "";
          const own = [apart, ...Object.values(rest)].join("|"), parent = ground(one.parentElement);
          grounds.set(one, own === PLAIN ? parent : `${parent} / ${own}`);
        }
        return grounds.get(one);
      };
      for (const one of all("body *")) {
        one.removeAttribute("data-first-of-its-colour");
        const text = [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
        const field = one.matches("input, select, textarea");
        if (!(text || field) || !one.checkVisibility()) continue;
        const look = [ground(one), field, ...Object.values(picked(one, "color", "fontSize", "fontWeight", "textShadow"))].join();
        if (!met.has(look)) one.setAttribute("data-first-of-its-colour", "");
        met.add(look);
      }
    },

    // For axe: formulas, the tenth row of a table and a second word of a listing in one colour take most of its time.
    thin() {
      for (const formula of all("mjx-container")) formula.replaceChildren("x");
      for (const row of all("tbody > tr:nth-child(n + 11)")) row.remove();
      const met = new Set();
      for (const word of all(".highlight pre span:not(.vbank-prose), .sig span")) {
        if (word.className && !met.has(word.className)) met.add(word.className);
        else word.replaceWith(...word.childNodes);
      }
    },
  };
})();
