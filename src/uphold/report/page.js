"use strict";
// The theme button; without a choice the page follows the system.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  // Drawings on a canvas listen for this.
  const changed = () => { name(); document.dispatchEvent(new Event("themechange")); };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; changed(); });
  system.addEventListener("change", changed);
  button.hidden = false;
  name();
})();
