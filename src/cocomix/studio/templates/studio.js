// Keyboard in the row of tokens, and focus that outlives the replacing of a list.
(() => {
  const STEPS = { ArrowRight: 1, ArrowLeft: -1 };
  let lastKey = null;

  document.addEventListener("keydown", (event) => {
    const token = event.target.closest?.(".tokens .token");
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    const tokens = [...token.parentElement.querySelectorAll(".token")];
    let index = tokens.indexOf(token);
    if (event.key in STEPS) index += STEPS[event.key];
    else if (event.key === "Home") index = 0;
    else if (event.key === "End") index = tokens.length - 1;
    else return;
    event.preventDefault();
    const next = tokens[Math.max(0, Math.min(index, tokens.length - 1))];
    tokens.forEach((other) => (other.tabIndex = other === next ? 0 : -1));
    next.focus();
  });

  document.addEventListener("focusin", (event) => (lastKey = event.target.dataset?.key ?? null));
  new MutationObserver(() => {
    if (!lastKey || document.activeElement !== document.body) return;
    document.querySelector(`[data-key="${CSS.escape(lastKey)}"]`)?.focus({ preventScroll: true });
  }).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("pointerdown", () => (lastKey = null), true);
})();
