// The quality strip: a column with a cell for each slice, in the order of OHIF's numbers, coloured by the expected Dice.

const WORST_DICE = 0.5, BEST_DICE = 0.95;

// Returns a colour between red and green for an expected Dice.
export function colorOf(dice) {
  const share = Math.min(Math.max((dice - WORST_DICE) / (BEST_DICE - WORST_DICE), 0), 1);
  return `hsl(${Math.round(share * 130)} 75% 45%)`;
}

export class Strip {
  // `goTo(t)` is called when a cell is clicked.
  constructor(element, summary, goTo) {
    this.element = element;
    this.summary = summary;
    this.goTo = goTo;
    element.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-slice]");
      if (cell) goTo(Number(cell.dataset.slice));
    });
  }

  start(slices) {
    this.cells = new Map(slices.map((t, n) => {
      const cell = document.createElement("div");
      cell.dataset.slice = t;
      cell.dataset.number = n + 1;
      return [t, cell];
    }));
    this.element.replaceChildren(...this.cells.values());
  }

  show(structure, annotated) {
    for (const [t, cell] of this.cells) {
      const dice = structure.dice?.[t], isFilled = structure.areas[t] > 0;
      cell.className = [
        isFilled ? "filled" : "", annotated.includes(t) ? "annotated" : "", t === structure.proposed ? "proposed" : "",
      ].join(" ").trim();
      cell.style.backgroundColor = dice == null || !isFilled ? "" : colorOf(dice);
      const marks = [
        dice == null ? "" : `expected Dice ${dice.toFixed(2)}`, isFilled ? "" : `no ${structure.name}`,
        annotated.includes(t) ? "annotated" : "", t === structure.proposed ? `proposed: ${structure.reason}` : "",
      ];
      cell.title = `slice ${cell.dataset.number}: ${marks.filter(Boolean).join(", ")}`;
    }
    this.summary.textContent = structure.volumeDice == null ? "–" : structure.volumeDice.toFixed(2);
    this.summary.title = structure.volumeDice == null ? "No estimate yet" : `Expected Dice of ${structure.name} in the whole volume`;
    this.summary.style.color = structure.volumeDice == null ? "" : colorOf(structure.volumeDice);
  }

  // Returns OHIF's number of a slice, from 1.
  numberOf(t) { return Number(this.cells.get(t).dataset.number); }

  // Goes to the slice that comes `by` places after the one in view, if there is one.
  step(by) {
    const slices = [...this.cells.keys()], t = slices[slices.indexOf(Number(this.current.dataset.slice)) + by];
    if (t !== undefined) this.goTo(t);
  }

  // Marks the slice in view.
  mark(t) {
    if (this.current) this.current.removeAttribute("aria-current");
    this.current = this.cells.get(t);
    this.current?.setAttribute("aria-current", "true");
  }
}
