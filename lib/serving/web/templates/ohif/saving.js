// Submit: what it would change in the saved label, and saving after confirmation.

import { hasMask } from "./annotator.js";

export class Saving {
  constructor(server, dialog, report) {
    Object.assign(this, { server, dialog, report });
    this.annotator = null; // The one whose structures are saved.
    window.addEventListener("beforeunload", (event) => { if (this.annotator?.hasUnsavedWork) event.preventDefault(); });
  }

  // Saves the segments as the final label, after the annotator has seen what this changes in the saved one.
  async submit() {
    const { annotator, server } = this, { viewer } = annotator;
    try {
      if (annotator.running) this.report("Waiting for the mask …");
      await annotator.isIdle();
      const voxels = viewer.labels.planes.map((plane) => plane.slice()); // They may change while the annotator is asked.
      const rows = annotator.structures.filter(hasMask).map((s) => ({ name: s.name, idx: s.value }));
      if (!rows.length) throw new Error("There is no segment yet: click on a structure.");
      this.report("Comparing with the saved label …");
      const changes = await server.saveLabel(voxels, rows, { preview: true });
      const isChange = changes.new.length || changes.changed.length || changes.missing.length;
      const isReplacement = changes.changed.length || changes.unchanged.length || changes.missing.length;
      if (!isChange) {
        annotator.hasUnsavedWork = false;
        return this.report("The saved label is the same already.");
      }
      const choice = isReplacement ? await this.choose(changes) : "save";
      if (choice !== "save" && choice !== "keep") return this.report("Nothing was saved.");
      this.report("Saving …");
      await server.saveLabel(voxels, rows, { keep: choice === "keep" });
      annotator.hasUnsavedWork = false;
      this.report("Saved as the final label.");
    } catch (e) {
      this.report(e.message, true);
    }
  }

  // Shows what saving changes, and resolves to "save", "keep" (structures that are missing) or something else.
  choose(changes) {
    const { dialog } = this, rows = [["New", "new"], ["Changed", "changed"], ["As before", "unchanged"], ["Missing, will be removed", "missing"]];
    dialog.querySelector("ul").replaceChildren(...rows.filter(([, kind]) => changes[kind].length).map(([title, kind]) => {
      const item = document.createElement("li");
      item.textContent = `${title}: ${changes[kind].join(", ")}`;
      item.className = kind;
      return item;
    }));
    dialog.querySelector("[value=keep]").hidden = !changes.missing.length;
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
  }
}
