
"use strict";
(() => {
  const PRINTED = 20; // readings that are opened for print: all of them would be a book
  const find = (id) => document.getElementById(id);
  const readings = [...document.querySelectorAll(".reading")];
  const search = find("search"), tag = find("tag");
  if (!readings.length) return;

  const words = readings.map((reading) => reading.textContent.toLowerCase());
  const hidden = (reading) => reading.parentElement.hidden;
  const heading = (reading) => reading.firstElementChild;
  let at = null; // the reading that the keys last went to

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    readings.forEach((reading, index) => {
      const tags = reading.dataset.tags.split(" ");
      const fits = words[index].includes(wanted) && (!tag || !tag.value || tags.includes(tag.value));
      reading.parentElement.hidden = !fits;
      count += fits;
    });
    find("shown").textContent = count === readings.length ? `${count} shown` : `${count} of ${readings.length} shown`;
    find("nothing").hidden = count > 0;
  }

  function go(reading) {
    if (at && at !== reading) at.open = false;
    at = reading;
    reading.open = true;
    heading(reading).focus({ preventScroll: true });
    reading.scrollIntoView({ block: "start" });
  }

  function step(way) {
    const shown = readings.filter((reading) => !hidden(reading));
    const here = document.activeElement.closest(".reading") || at;
    const next = shown[shown.indexOf(here) + way] || (here ? null : shown[0]);
    at = here;
    if (next) go(next);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape" && typing === search) {
        search.value = "";
        filter();
        search.blur();
      }
      return;
    }
    const onHeading = event.target.closest(".reading > summary");
    const down = event.key === "j" || (event.key === "ArrowDown" && onHeading);
    const up = event.key === "k" || (event.key === "ArrowUp" && onHeading);
    if (down || up) step(down ? 1 : -1);
    else if (event.key === "/") search.focus();
    else return;
    event.preventDefault();
  });

  function follow() {
    const reading = find(location.hash.slice(1));
    if (reading && readings.includes(reading)) go(reading);
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = readings.filter((reading) => !hidden(reading)).slice(0, PRINTED).filter((reading) => !reading.open);
    opened.forEach((reading) => { reading.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((reading) => { reading.open = false; }));
  addEventListener("hashchange", follow);
  search.addEventListener("input", filter);
  if (tag) tag.addEventListener("change", filter);

  find("controls").hidden = false;
  filter();
  follow();
})();
