// From clicks and painting to masks in the label map: the prompts of each structure, the requests, and what they answer.

import * as Prompts from "./prompts.js";
import { nrrdOf, SLICE_MODEL, VOLUME_MODEL } from "./server.js";

const WAIT_MS = 30;

export class Annotator {
  // `report(text, isError)` shows a message, `onChange()` is called whenever something to be displayed has changed.
  constructor(viewer, server, { report, onChange }) {
    Object.assign(this, { viewer, server, report, onChange });
    this.structures = [];
    this.active = null;
    this.history = new Prompts.History();
    this.isInside = true; // What a click without Alt means.
    this.keepOthers = true;
    this.options = {}; // Options of the model that differ from the server's defaults.
    this.hasUnsavedWork = false;
    this.unfinished = new Set(); // Structures whose volume was not asked for, because another structure was clicked.
    this.running = null; // {structure, controller}
    this.withAlt = false;
  }

  start(state) {
    const { viewer } = this;
    this.isReversed = state.reversed; // Whether the image's file counts the slices (k) the other way round.
    viewer.start(state.axis, () => this.collect());
    viewer.window.addEventListener("pointerdown", (e) => { this.withAlt = e.altKey; this.isPressed = true; }, true);
    for (const e of ["pointerup", "pointercancel"]) viewer.window.addEventListener(e, () => { this.isPressed = false; }, true);
    this.structures = viewer.segments().map((segment) => newStructure(segment, viewer.labels));
    for (const known of state.structures) {
      const structure = this.structures.find((s) => s.name === known.label);
      if (structure) Object.assign(structure, { dice: known.expected_dice, volumeDice: known.volume_dice, proposed: known.proposed, reason: known.reason });
    }
  }

  // Puts the voxels of a saved label into the segments, whose names may be new. Nothing is undone past this.
  reopen(saved) {
    if (!saved) return;
    const { labels } = this.viewer, values = new Uint8Array(256);
    for (const [value, name] of Object.entries(saved.names)) values[value] = this.structureNamed(name).value;
    this.viewer.draw(labels.load(saved.voxels, values));
    for (const structure of this.structures.filter(hasMask)) {
      structure.prompts = Prompts.ofSaved(Array.from(structure.areas, (n, t) => (n ? labels.sliceMask(t, structure.value) : null)));
    }
    this.hasUnsavedWork = false;
  }

  // Returns the structure of a name, which is made if there is none.
  structureNamed(name) {
    let structure = this.structures.find((s) => s.name === name);
    if (!structure) {
      structure = newStructure(this.viewer.addSegment(name), this.viewer.labels);
      this.structures.push(structure);
    }
    return structure;
  }

  select(structure) {
    this.active = structure;
    this.viewer.selectSegment(structure.value);
    this.viewer.marks.show(structure.prompts.marks);
    this.onChange();
  }

  // What the annotator does ------------------------------------------------------------------------------------------------------------

  // Takes over marks, outlines and painting that are new in the viewports.
  collect() {
    const { viewer, active } = this;
    if (viewer.marks.isDrawing()) return;
    if (!viewer.hasOnlyItsVolume()) {
      viewer.marks.show(active.prompts.marks);
      return this.report("A view shows another series: reload this page to go on with this one.", true);
    }
    const edited = [...viewer.takePainting()].map((pair) => pair.split(" ").map(Number)), outline = viewer.marks.takeOutline();
    if (edited.length) return this.takePainting(edited);
    if (outline) return this.takeOutline(outline);
    const old = new Map(active.prompts.marks.map((mark) => [mark.uid, mark])), now = viewer.marks.all();
    const problem = now.map((mark) => viewer.marks.problemOf(mark)).find(Boolean);
    if (problem) {
      viewer.marks.show(active.prompts.marks);
      return this.report(problem, true);
    }
    const isSame = (a, b) => b && String([a.ijk, a.corner]) === String([b.ijk, b.corner]);
    if (now.length === old.size && now.every((mark) => isSame(mark, old.get(mark.uid)))) return;
    const changed = now.filter((mark) => !isSame(mark, old.get(mark.uid)));
    const kind = this.withAlt ? !this.isInside : this.isInside;
    const inOrder = [...active.prompts.marks.map((mark) => now.find(({ uid }) => uid === mark.uid)), ...now.filter(({ uid }) => !old.has(uid))];
    const marks = inOrder.filter(Boolean).map((mark) => ({ ...mark, inside: Boolean(mark.corner) || (old.get(mark.uid)?.inside ?? kind) }));
    const next = Prompts.withMarks({ ...active.prompts, marks: [] }, marks, viewer.axis);
    this.change([[active, next]], changed.length ? changed[changed.length - 1].ijk[viewer.axis] : null);
  }

  // An outline is the structure's mask on its slice; on a slice that is painted already, it adds to the mask.
  takeOutline({ t, mask, problem }) {
    const { viewer, active } = this, present = viewer.labels.sliceMask(t, active.value), isPainted = active.prompts.painted.has(t);
    viewer.labels.forEachVoxel(t, (k, n, m) => {
      if (this.keepOthers && viewer.labels.planes[k][n] && !present[m]) mask[m] = 0;
      if (isPainted && present[m]) mask[m] = 1;
    });
    if (!problem && !mask.includes(1)) problem = "This outline encloses no voxel that is free: draw a larger one, or do not keep others.";
    if (problem) return this.report(problem, true);
    viewer.writeMask(active.value, viewer.labels.maskOfSlice(t, mask), t, false);
    this.change([[active, Prompts.withPainted(active.prompts, t, mask, viewer.axis)]]);
  }

  takePainting(edited) {
    const { viewer } = this, changes = new Map();
    for (const [value, t] of edited) {
      const structure = this.structures.find((s) => s.value === value);
      if (!structure) continue;
      const prompts = changes.get(structure) || structure.prompts;
      // A structure that another one has covered without having prompts of its own stays as it is.
      if (structure !== this.active && Prompts.isEmpty(prompts)) continue;
      changes.set(structure, Prompts.withPainted(prompts, t, viewer.labels.sliceMask(t, value), viewer.axis));
    }
    if (changes.has(this.active)) this.change([...changes]);
    else if (changes.size) this.remember([...changes]);
  }

  // Chooses options of the model, and asks for the mask of the active structure again if they are others than before.
  setOptions(options) {
    const isSame = JSON.stringify(options) === JSON.stringify(this.options);
    this.options = options;
    if (!isSame && Prompts.showsStructure(this.active.prompts)) this.run(this.active);
  }

  deleteLastMark() {
    if (!this.active.prompts.marks.length) return this.report(`${this.active.name} has no click to delete.`);
    this.change([[this.active, Prompts.withoutLastMark(this.active.prompts)]]);
  }

  clear() {
    if (Prompts.isEmpty(this.active.prompts) && !hasMask(this.active)) return this.report(`${this.active.name} is empty already.`);
    this.change([[this.active, Prompts.NONE]]);
  }

  // Says that the active structure is not on the slice in view.
  markAbsent() {
    const { viewer, active } = this, t = viewer.currentSlice();
    viewer.writeMask(active.value, null, t);
    this.change([[active, Prompts.withAbsent(active.prompts, t, viewer.axis)]]);
  }

  // Says that the mask of the active structure on the slice in view is correct as it is.
  accept() {
    const { viewer, active } = this, t = viewer.currentSlice();
    this.change([[active, Prompts.withPainted(active.prompts, t, viewer.labels.sliceMask(t, active.value), viewer.axis)]]);
  }

  undo() { this.goBack(this.history.undo(), "There is nothing to undo."); }
  redo() { this.goBack(this.history.redo(), "There is nothing to redo."); }

  goBack(step, sentence) {
    if (!step) return this.report(sentence);
    for (const { structure, prompts } of step) structure.prompts = prompts;
    const { structure } = step.find((s) => s.structure === this.active) || step[0];
    this.select(structure);
    this.hasUnsavedWork = true;
    for (const other of step) if (other.structure !== structure) this.unfinished.add(other.structure);
    this.run(structure);
  }

  remember(changes) {
    this.history.add(changes.map(([structure, after]) => ({ structure, before: structure.prompts, after })));
    for (const [structure, prompts] of changes) structure.prompts = prompts;
    this.hasUnsavedWork = true;
  }

  // Gives structures new prompts, and asks for the mask of the active one: first on slice t, if there is one.
  change(changes, t = null) {
    this.remember(changes);
    this.viewer.marks.show(this.active.prompts.marks);
    this.run(this.active, t);
  }

  // Requests ---------------------------------------------------------------------------------------------------------------------------

  // Asks for the mask of a structure and writes it. A newer request ends the one that is running.
  async run(structure, t = null) {
    if (this.running) {
      this.running.controller.abort();
      if (this.running.structure !== structure) this.unfinished.add(this.running.structure);
    }
    const controller = new AbortController(), { signal } = controller;
    this.running = { structure, controller };
    this.unfinished.delete(structure);
    structure.failed = false;
    this.onChange();
    try {
      if (!Prompts.showsStructure(structure.prompts)) {
        this.takeAnswer(structure, null);
        const hint = Prompts.isEmpty(structure.prompts) ? "" : `Nothing says where ${structure.name} is yet: click inside it.`;
        this.report(hint);
      } else {
        this.report(`${structure.name} …`);
        const params = this.paramsOf(structure, structure.prompts), painting = await this.paintingOf(structure);
        if (structure.prompts.marks.some((mark) => mark.ijk[this.viewer.axis] === t)) {
          const { mask } = await this.server.segment(SLICE_MODEL, params, painting, signal);
          if (await this.isOutdated(signal)) return;
          this.viewer.writeMask(structure.value, mask, t, this.keepOthers);
          this.onChange();
        }
        const { mask, answer } = await this.server.segment(VOLUME_MODEL, params, painting, signal);
        if (await this.isOutdated(signal)) return;
        this.takeAnswer(structure, mask, answer);
        this.report(answer.warnings?.length ? answer.warnings[0] : "");
      }
    } catch (e) {
      if (signal.aborted || e.name === "AbortError") return;
      structure.failed = true;
      this.report(e.message, true);
    }
    this.running = null;
    this.onChange();
    const [next] = this.unfinished;
    if (next && !structure.failed) this.run(next);
  }

  // Resolves once no mask is being computed.
  async isIdle() {
    while (this.running) await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
  }

  // The structure whose last request failed, if there is one.
  get failed() { return this.structures.find((structure) => structure.failed); }

  // Asks again after an error.
  retry() { this.run(this.failed || this.active); }

  // Waits until no mouse button is pressed, so that a mask does not change under the brush, and returns whether a newer request has followed.
  async isOutdated(signal) {
    while (this.isPressed) await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    if (!signal.aborted) this.collect(); // A stroke that has just ended must not get lost under the answer.
    return signal.aborted;
  }

  takeAnswer(structure, mask, answer = {}) {
    const { viewer } = this;
    viewer.writeMask(structure.value, mask, null, this.keepOthers);
    const isReversed = answer.viewer_slices_reversed && answer.axis === 2, last = viewer.sliceCount - 1;
    const dice = answer.expected_dice || null, proposal = answer.next_slice;
    structure.dice = dice && isReversed ? [...dice].reverse() : dice;
    structure.volumeDice = answer.expected_volume_dice ?? null;
    structure.proposed = proposal ? (isReversed ? last - proposal.slice : proposal.slice) : null;
    structure.proposedPoint = proposal?.point ? proposal.point.map((x, a) => (a === viewer.axis && isReversed ? last - x : x)) : null;
    structure.reason = proposal?.reason || "";
  }

  // Returns the fields of a request for a structure with these prompts.
  paramsOf(structure, { marks, absent, painted }) {
    const clicks = marks.filter((mark) => !mark.corner);
    const params = { ...this.options, label: structure.name };
    params.foreground = clicks.filter((mark) => mark.inside).map((mark) => mark.ijk);
    params.background = clicks.filter((mark) => !mark.inside).map((mark) => mark.ijk);
    params.boxes = marks.filter((mark) => mark.corner).map((mark) => [mark.ijk, mark.corner]);
    if (absent.size) params.absent = [...absent];
    if (painted.size) params.mask_slices = [...painted.keys()];
    return params;
  }

  // Returns a label map with the painted slices of a structure, or null if it has none.
  async paintingOf(structure) {
    const { painted } = structure.prompts;
    if (!painted.size) return null;
    const { labels } = this.viewer, planes = labels.planes.map((plane) => new Uint8Array(plane.length));
    for (const [t, mask] of painted) labels.forEachVoxel(t, (k, n, m) => { planes[k][n] = Prompts.isSet(mask, m); });
    return nrrdOf(planes, this.viewer.labelVolume(), this.isReversed);
  }
}

export const hasMask = (structure) => structure.areas.some((n) => n);

function newStructure({ name, value, color }, labels) {
  return {
    name, value, color, areas: labels.areasOf(value), prompts: Prompts.NONE, dice: null, volumeDice: null, proposed: null, proposedPoint: null, reason: "",
    failed: false,
  };
}
