"use strict";
// Changes the text of #announced, which screen readers announce, half a second after the last change of the controls.
// They announce each replacement, also by the same text.
let announcing = 0;
function announceSoon(text) {
  const place = document.getElementById("announced");
  const announce = () => { if (place.textContent !== text) place.textContent = text; };
  clearTimeout(announcing);
  if (place.textContent) announcing = setTimeout(announce, 500);
  else announce(); // while the page is loaded
}

