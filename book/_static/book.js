// For readers with a narrow screen, and for those without a mouse.
(() => {
  // A formula wider than the page is set smaller, down to three quarters; what would still be wider scrolls.
  function fit() {
    const formulas = [...document.querySelectorAll("mjx-container[display='true']")];
    formulas.forEach((formula) => formula.style.removeProperty("--vbank-fit"));
    const room = formulas.map(({ clientWidth, scrollWidth }) => clientWidth / scrollWidth);
    formulas.forEach((formula, at) => {
      if (room[at] >= 0.75 && room[at] < 1) formula.style.setProperty("--vbank-fit", room[at] - 0.005);
    });
  }

  // What is wider than the page scrolls in its own box: the keyboard must reach it.
  function tabStops() {
    const boxes = [...document.querySelectorAll("mjx-container[display='true'], .cell_output .text_html > div")];
    const wide = boxes.map((box) => box.scrollWidth > box.clientWidth); // all read before the first is written
    boxes.forEach((box, at) => {
      if (wide[at]) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    });
  }

  addEventListener("load", () => {
    // The theme keeps the list of chapters where it was; the page read must be in sight.
    document.querySelector(".bd-sidebar-primary .active > a")?.scrollIntoView({ block: "nearest", behavior: "instant" });

    const settle = () => {
      fit();
      tabStops();
    };
    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(settle);
    addEventListener("resize", settle);
    document.querySelectorAll(".admonition.dropdown").forEach((folded) => folded.addEventListener("click", settle));

    // Whoever closes a side bar is back at the button that opened it.
    for (const side of ["primary", "secondary"]) {
      const button = document.querySelector(`.${side}-toggle`);
      document.querySelector(`#pst-${side}-sidebar-modal`)?.addEventListener("close", () => button?.focus());
    }
  });
})();
