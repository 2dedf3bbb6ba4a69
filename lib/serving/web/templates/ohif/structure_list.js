// The list of structures: chooses the one to work on, and makes new ones.

import { hasMask } from "./annotator.js";

export class StructureList {
  // `choose(structure)` and `make(name)` are called for what the annotator chooses.
  constructor(element, { choose, make }) {
    this.element = element;
    element.addEventListener("change", () => {
      element.blur(); // So that keys do their work again, instead of choosing by first letters.
      if (element.value !== "new") return choose(this.structures[Number(element.value)]);
      const name = (window.prompt("Name of the new structure:") || "").trim();
      if (name) make(name);
      else this.show(this.structures, this.active);
    });
  }

  // A full circle marks those that have a mask. The list is made anew only if it has changed, because it may be open.
  show(structures, active) {
    const contents = JSON.stringify(structures.map((s) => [s.name, s.color, hasMask(s)]));
    if (contents !== this.contents) {
      const options = structures.map((structure, n) => {
        const option = new Option(`${hasMask(structure) ? "● " : "○ "}${structure.name}`, n);
        option.style.color = structure.color;
        return option;
      });
      this.element.replaceChildren(...options, new Option("New structure …", "new"));
    }
    Object.assign(this, { structures, active, contents });
    this.element.value = structures.indexOf(active);
    this.element.style.borderColor = active.color;
  }
}
