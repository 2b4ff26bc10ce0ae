// For readers without a mouse.
(() => {
  // What is wider than the page scrolls in its own box: the keyboard must reach it.
  function tabStops() {
    for (const box of document.querySelectorAll("mjx-container[display='true'], .cell_output .text_html > div")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  addEventListener("load", () => {
    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(tabStops);
    addEventListener("resize", tabStops);

    // Whoever closes a side bar is back at the button that opened it.
    for (const side of ["primary", "secondary"]) {
      const button = document.querySelector(`.${side}-toggle`);
      document.querySelector(`#pst-${side}-sidebar-modal`)?.addEventListener("close", () => button?.focus());
    }
  });
})();
