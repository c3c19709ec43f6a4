"use strict";
const root = document.documentElement;
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
}
function label() {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
}
// Pages of files may have no storage: then the choice lasts as long as the page.
function store(action) {
  try { return action(localStorage); } catch { return null; }
}
const chosen = store((storage) => storage.getItem("theme"));
if (chosen) root.dataset.theme = chosen;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  store((storage) => storage.setItem("theme", root.dataset.theme));
  label();
});
system.addEventListener("change", label);
label();

for (const figure of document.querySelectorAll(".compare")) {
  const slider = figure.querySelector("input");
  const show = () => {
    figure.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} % of the width is before`);
  };
  slider.addEventListener("input", show);
  // On the pictures themselves as well, for a finger or a mouse.
  const stack = figure.querySelector(".stack");
  const follow = (event) => {
    const box = stack.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  };
  stack.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    // So that it is followed beyond the edges too.
    stack.setPointerCapture(event.pointerId);
    follow(event);
  });
  stack.addEventListener("pointermove", (event) => {
    if (stack.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}
