// The saved label: what Submit would change in it, and saving after confirmation.

// Returns the names of structures that are {added, changed, missing} in the label map, compared with the saved label (or null).
export function compare(voxels, names, saved) {
  const count = new Map(), sameCount = new Map(), savedCount = new Map();
  const increase = (map, key) => map.set(key, (map.get(key) || 0) + 1);
  for (let index = 0; index < voxels.length; index++) {
    const now = voxels[index] ? names.get(voxels[index]) : null;
    const before = saved && saved.voxels[index] ? saved.names[saved.voxels[index]] : null;
    if (now) increase(count, now);
    if (before) increase(savedCount, before);
    if (now && now === before) increase(sameCount, now);
  }
  const isSame = (name) => sameCount.get(name) === count.get(name) && sameCount.get(name) === savedCount.get(name);
  return {
    present: [...count.keys()], added: [...count.keys()].filter((name) => !savedCount.has(name)),
    changed: [...count.keys()].filter((name) => savedCount.has(name) && !isSame(name)),
    missing: [...savedCount.keys()].filter((name) => !count.has(name)),
  };
}

export class Saving {
  constructor(annotator, dialog, report) {
    Object.assign(this, { annotator, dialog, report });
    window.addEventListener("beforeunload", (event) => { if (annotator.hasUnsavedWork) event.preventDefault(); });
  }

  // Saves the segments as the final label, after the annotator has seen what this changes in the saved one.
  async submit() {
    const { annotator } = this, { viewer, server } = annotator;
    try {
      if (annotator.running) this.report("Waiting for the mask …");
      await annotator.isIdle();
      this.report("Comparing with the saved label …");
      const names = new Map(annotator.structures.map((s) => [s.value, s.name]));
      const saved = await server.savedLabel(), voxels = viewer.readLabelMap();
      const { present, added, changed, missing } = compare(voxels, names, saved);
      if (!present.length) throw new Error("There is no segment yet: click on a structure.");
      if (saved) {
        if (!added.length && !changed.length && !missing.length) {
          annotator.hasUnsavedWork = false;
          return this.report("The saved label is the same already.");
        }
        if (!(await this.isConfirmed({ added, changed, missing }))) return this.report("Nothing was saved.");
      }
      this.report("Saving …");
      const rows = annotator.structures.filter((s) => present.includes(s.name)).map((s) => ({ name: s.name, idx: s.value }));
      await server.saveLabel(voxels, rows);
      annotator.hasUnsavedWork = false;
      this.report("Saved as the final label.");
    } catch (e) {
      this.report(e.message, true);
    }
  }

  // Shows what saving changes, and resolves to whether the annotator wants that.
  isConfirmed({ added, changed, missing }) {
    const { dialog } = this, rows = [["New", added], ["Changed", changed], ["Missing now, will be removed", missing]];
    dialog.querySelector("ul").replaceChildren(...rows.filter(([, names]) => names.length).map(([title, names]) => {
      const item = document.createElement("li");
      item.textContent = `${title}: ${names.join(", ")}`;
      item.className = names === missing ? "missing" : "";
      return item;
    }));
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "save"), { once: true }));
  }
}
