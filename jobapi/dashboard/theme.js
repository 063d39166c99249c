// Loaded before the page is painted, so that the chosen theme does not flash. Swagger UI uses it too.

(() => {
  const KEY = "jobapi theme";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = localStorage.getItem(KEY) || "system";
    root.dataset.theme = chosen;
    root.classList.toggle("dark-mode", chosen === "dark" || (chosen === "system" && dark.matches));
  };
  dark.addEventListener("change", show);
  addEventListener("storage", show);
  root.addEventListener("theme", (event) => {
    localStorage.setItem(KEY, /** @type {CustomEvent} */ (event).detail);
    show();
  });
  show();
})();
