document.addEventListener("click", async (event) => {
  const button = event.target.closest?.(".tg-copy");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// The keyboard of a phone shows digits for a number.
document.addEventListener("focusin", (event) => {
  if (event.target.closest?.(".tg-number")) event.target.inputMode = "decimal";
});

// The API key stays in this tab: `sessionStorage` is no other tab's, and ends with it. A page in a
// frame may have none.
window.truthgptKey = {
  name: "truthgpt-api-key",
  read() {
    try {
      return sessionStorage.getItem(this.name) ?? "";
    } catch {
      return "";
    }
  },
  keep(key) {
    try {
      if (key) sessionStorage.setItem(this.name, key);
      else sessionStorage.removeItem(this.name);
    } catch {
      // It is asked for again.
    }
  },
};
