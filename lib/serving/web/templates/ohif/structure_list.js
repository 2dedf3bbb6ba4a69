// The list of structures: chooses the one to work on, and makes new ones.

export class StructureList {
  // `choose(structure)` and `make(name)` are called for what the annotator chooses.
  constructor(element, { choose, make }) {
    this.element = element;
    element.addEventListener("change", () => {
      if (element.value !== "new") return choose(this.structures[Number(element.value)]);
      const name = (window.prompt("Name of the new structure:") || "").trim();
      if (name) make(name);
      else this.show(this.structures, this.active);
    });
  }

  // `isFilled(structure)` says whether it has a mask.
  show(structures, active, isFilled = this.isFilled) {
    Object.assign(this, { structures, active, isFilled });
    const options = structures.map((structure, n) => {
      const option = new Option(`${isFilled(structure) ? "● " : "○ "}${structure.name}`, n, false, structure === active);
      option.style.color = structure.color;
      return option;
    });
    this.element.replaceChildren(...options, new Option("New structure …", "new"));
    this.element.value = structures.indexOf(active);
    this.element.style.borderColor = active.color;
  }
}
