(() => {
  // Every table on the page that no script has taken up yet; a page may hold many copies of this script.
  for (const place of document.querySelectorAll(".vbank-sortable:not([data-live])")) {
    place.setAttribute("data-live", "");
    take(place);
  }

  function take(place) {
    const body = place.querySelector("tbody");
    const rows = [...body.rows];
    const heads = [...place.querySelectorAll("thead th")];
    const bar = place.querySelector(".vbank-search");
    const search = bar.querySelector("input");
    const said = bar.querySelector("output");
    const numbers = heads.map((_, column) => rows.every((row) => Number.isFinite(number(row, column) ?? 0)));
    let order = "";

    function text(row, column) {
      return row.cells[column].textContent;
    }

    function number(row, column) {
      const found = text(row, column).replaceAll(",", "");
      return found === "" ? null : Number(found);
    }

    // Empty cells come last in both directions; equal ones keep their order.
    function sort(column, sign) {
      const value = numbers[column] ? number : (row, at) => text(row, at) || null;
      const compare = numbers[column] ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
      const keys = new Map(rows.map((row) => [row, value(row, column)]));
      body.append(...[...rows].sort((one, two) => {
        const [a, b] = [keys.get(one), keys.get(two)];
        return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
      }));
    }

    function say() {
      const shown = rows.filter((row) => !row.hidden).length;
      said.textContent = (shown < rows.length ? `${shown} of ` : "") + `${rows.length} rows${order}`;
    }

    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(column, down ? -1 : 1);
        order = `, by ${button.textContent}, ${head.getAttribute("aria-sort")}`;
        say();
      });
    });
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const content = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => content.includes(word));
      }
      say();
    });
    said.setAttribute("aria-live", "polite");
    bar.hidden = false;
    say();
  }
})();
