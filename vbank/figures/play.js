(() => {
  // Every button on the page that no script has taken up yet; it moves the one slider of its control.
  for (const button of document.querySelectorAll(".vbank-play:not([data-live])")) {
    button.setAttribute("data-live", "");
    take(button, button.closest(".vbank-explore"));
  }

  function take(button, control) {
    const slider = control.querySelector("input");
    const said = control.querySelector(".vbank-said");
    let timer = 0;

    function move(value) {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
      said.setAttribute("aria-live", "polite");
    }

    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) move(0);
      button.textContent = "Pause";
      said.setAttribute("aria-live", "off"); // else a screen reader would read every step
      timer = setInterval(() => {
        if (slider.value === slider.max || !control.isConnected) stop();
        else move(Number(slider.value) + 1);
      }, 700);
    });
    // who touches the slider takes over
    for (const kind of ["pointerdown", "keydown"]) slider.addEventListener(kind, stop);
  }
})();
