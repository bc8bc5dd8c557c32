// A key presses the control that names it in aria-keyshortcuts. Everything works without this file too.
"use strict";

document.documentElement.classList.add("keys");

let sent = false; // a page sends one form: a second click or key is not a vote on what comes next
window.addEventListener("pageshow", () => { sent = false; });
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const focused = event.target instanceof HTMLInputElement ? event.target.type : "";
  if (focused === "text" || (focused === "radio" && event.key.startsWith("Arrow"))) return; // keys of their own
  if (focused === "radio" && event.key === "Enter") event.preventDefault(); // it would send the form, without a vote
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code); // also where a layout has digits on Shift
  const key = digit ? digit[1] : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const control = document.querySelector(`[aria-keyshortcuts~="${CSS.escape(key)}"]`);
  if (!control) return;
  event.preventDefault();
  const none = control.checked && document.querySelector('input[name="strength"][value=""]'); // pressed again: not said
  (none || control).click();
});
