"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en-US");
const ticks = new Map([...document.querySelectorAll(".accept")].map((tick) => [tick.value, tick]));

// What is accepted: places that are shown and ticked.
function accepted() {
  const least = Number(byId("least").value);
  return data.places.filter((place) => place.images >= least && ticks.get(place.id).checked);
}

function selection() {
  return JSON.stringify({ ...data.head, accepted: accepted() }, null, 1) + "\n";
}

function redraw() {
  const least = Number(byId("least").value);
  byId("least-value").textContent = whole.format(least);
  for (const place of data.places) byId(`place-${place.id}`).hidden = place.images < least;
  for (const folder of document.querySelectorAll(".folder")) folder.hidden = !folder.querySelector(".place:not([hidden])");
  const chosen = accepted();
  byId("accepted").textContent = whole.format(chosen.length);
  byId("boxes").textContent = whole.format(chosen.reduce((sum, place) => sum + data.boxes[place.id], 0));
  announceSoon(byId("count").textContent);
  if (byId("as-text").open) byId("text").value = selection();
}

function tickAll(place, isTicked) {
  place.querySelectorAll(".accept").forEach((tick) => { tick.checked = isTicked; });
  redraw();
}

function download() {
  const address = URL.createObjectURL(new Blob([selection()], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = "repeats.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  byId("said").textContent = `repeats.json has ${whole.format(accepted().length)} places.`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(selection());
    byId("said").textContent = `Copied ${whole.format(accepted().length)} places.`;
  } catch {
    byId("as-text").open = true; // a browser that does not allow it: the text is selected instead
    redraw();
    byId("text").focus();
    byId("text").select();
    byId("said").textContent = "The browser does not allow copying: copy the selected text.";
  }
}

ticks.forEach((tick) => tick.addEventListener("change", redraw));
byId("least").addEventListener("input", redraw);
byId("as-text").addEventListener("toggle", redraw);
byId("download").addEventListener("click", download);
byId("copy").addEventListener("click", copy);
byId("all").addEventListener("click", () => tickAll(document, true));
byId("none").addEventListener("click", () => tickAll(document, false));
for (const folder of document.querySelectorAll(".folder")) {
  folder.querySelector(".tick-all").addEventListener("click", () => tickAll(folder, true));
  folder.querySelector(".tick-none").addEventListener("click", () => tickAll(folder, false));
}
redraw();
