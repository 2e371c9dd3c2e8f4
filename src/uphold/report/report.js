// The parts of this script share one object. Data reaches the page through textContent only, never as markup.
const U = {};
{
  U.find = (id) => document.getElementById(id);

  U.make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  U.button = (label, className, action) => {
    const node = U.make("button", className, label);
    node.type = "button";
    node.addEventListener("click", action);
    return node;
  };

  U.number = (value) => value.toLocaleString("en");
  U.signed = (value, digits) => `${value > 0 ? "+" : ""}${value.toFixed(digits)}`.replace("-", "−");
  U.capital = (text) => text[0].toUpperCase() + text.slice(1);
  U.hidden = (text) => U.make("span", "unseen", text);
  U.narrow = matchMedia("(max-width: 720px)");

  let fading = 0;
  U.say = (text) => {
    const toast = U.find("toast");
    toast.textContent = text;
    toast.classList.add("on");
    clearTimeout(fading);
    fading = setTimeout(() => toast.classList.remove("on"), 2600);
  };

  // An open dialog makes all but itself inert, so what is said must stand inside it.
  U.modal = (dialog) => {
    dialog.addEventListener("close", () => document.body.append(U.find("toast")));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    return () => { dialog.append(U.find("toast")); dialog.showModal(); };
  };

  U.copy = async (text, done) => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without permission, or in a page from disk: the older way.
      const area = U.make("textarea", "unseen");
      area.value = text;
      area.setAttribute("aria-label", "Text to copy");
      const focused = document.activeElement;
      (document.querySelector("dialog[open]") || document.body).append(area);
      area.select();
      copied = document.execCommand("copy");
      area.remove();
      if (focused) focused.focus();
    }
    U.say(copied ? done : "The browser refused to copy");
    return copied;
  };
}
