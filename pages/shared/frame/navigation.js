// Streamlit marks the page's links for sighted people alone: name the navigation, and mark the current page, for others.
(() => {
  const mark = () => {
    const box = document.querySelector(".st-key-pages");
    if (!box) return;
    box.setAttribute("role", "navigation");
    box.setAttribute("aria-label", "Pages");
    const current = document.querySelector("h1")?.innerText.trim();
    for (const link of box.querySelectorAll("a")) {
      const isCurrent = link.innerText.trim().split("\n").at(-1) === current;
      if (isCurrent) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };
  // Links are drawn after this script has run, and again when the page changes.
  window.willItFitMarks?.disconnect();
  window.willItFitMarks = new MutationObserver(mark);
  const main = document.querySelector('[data-testid="stMain"]');
  window.willItFitMarks.observe(main, { childList: true, subtree: true });
  mark();
})();
