// For readers without a mouse.
(() => {
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

    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(tabStops);
    addEventListener("resize", tabStops);

    // Whoever closes a side bar is back at the button that opened it.
    for (const side of ["primary", "secondary"]) {
      const button = document.querySelector(`.${side}-toggle`);
      document.querySelector(`#pst-${side}-sidebar-modal`)?.addEventListener("close", () => button?.focus());
    }
  });
})();
