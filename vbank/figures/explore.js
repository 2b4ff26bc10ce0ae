(() => {
  // Every control on the page that no script has taken up yet; a page may hold many copies of this script.
  for (const control of document.querySelectorAll(".vbank-explore:not([data-live])")) {
    if (typeof DecompressionStream === "undefined") continue; // an old browser keeps the first frame
    control.setAttribute("data-live", "");
    take(control);
  }

  async function take(control) {
    const bytes = Uint8Array.from(atob(control.dataset.frames), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const { lines, frames } = JSON.parse(await new Response(stream).text());
    const sliders = [...control.querySelectorAll("input")];
    const choices = sliders.map((slider) => JSON.parse(slider.dataset.choices));
    const [image] = control.getElementsByTagName("img");
    const refused = control.querySelector(".vbank-refused");
    const said = control.querySelector(".vbank-said");

    function show() {
      let index = 0;
      sliders.forEach((slider, i) => {
        const text = choices[i][slider.value];
        index = index * choices[i].length + Number(slider.value);
        slider.setAttribute("aria-valuetext", text);
        slider.parentElement.querySelector("output").textContent = text;
      });
      const words = sliders.map((slider, i) => `${slider.dataset.name} ${choices[i][slider.value]}`).join(", ");
      const frame = frames[index];
      image.hidden = Boolean(frame.refused);
      refused.hidden = !frame.refused;
      refused.textContent = frame.refused || "";
      if (frame.svg) {
        image.src = "data:image/svg+xml," + encodeURIComponent(frame.svg.map((i) => lines[i]).join("\n"));
        image.alt = `${control.dataset.alt} Now: ${words}.`;
      }
      said.textContent = `Shown: ${words}.`;
    }

    for (const slider of sliders) slider.addEventListener("input", show);
    control.querySelector(".vbank-sliders").hidden = false;
    show();
  }
})();
