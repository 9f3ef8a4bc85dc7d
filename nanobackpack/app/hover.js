// What a cell of a heat map holds, said where the mouse, a finger or the keyboard points; and which sense the
// prompt shows. The listeners are the document's, so that pieces that come later have them too.
(() => {
  if (window.nanobackpackHover) return;
  window.nanobackpackHover = true;

  const say = (event) => {
    const cell = event.target.closest?.("[data-says]");
    const line = cell?.closest(".nb-map")?.querySelector(".nb-says");
    if (line) line.textContent = cell.dataset.says;
  };
  for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, say);

  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest?.("[data-at]");
    const move = MOVES[event.key];
    if (!cell || !move) return;
    event.preventDefault(); // the page stays where it is
    const [row, column] = cell.dataset.at.split(",").map(Number);
    const next = cell.closest("table").querySelector(`[data-at="${row + move[0]},${column + move[1]}"]`);
    if (!next) return;
    cell.tabIndex = -1; // Tab comes back to where one was
    next.tabIndex = 0;
    next.focus();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-overlay]");
    if (!button) return;
    const whole = button.closest(".nb-overlay");
    for (const other of whole.querySelectorAll("[data-overlay]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    for (const chip of whole.querySelectorAll("[data-weights]")) {
      chip.style.setProperty("--v", chip.dataset.weights.split(" ")[button.dataset.overlay]);
    }
  });
})();
