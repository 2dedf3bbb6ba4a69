// The prompts for one structure, and the history of all structures. Prompts are never changed, only replaced, so undo is exact.
//
// Prompts: { marks: [{uid, ijk, corner, inside, points, annotation}], absent: Set of slices, painted: Map from slices to packed masks }.
// Marks are clicks and boxes, as the viewports show them; a box has the voxels `ijk` and `corner` at opposite corners, a click no `corner`.
// Slices are indices along the slicing axis, as OHIF's volume counts them.

export const NONE = Object.freeze({ marks: [], absent: new Set(), painted: new Map() });

export const isEmpty = (p) => !p.marks.length && !p.absent.size && !p.painted.size;

// Whether anything says where the structure is; without that, no mask can be asked for.
export const showsStructure = (p) => p.marks.some((mark) => mark.inside) || [...p.painted.values()].some((mask) => mask.some((byte) => byte));

// Returns the slices that have prompts, sorted.
export function annotatedSlices(p, axis) {
  return [...new Set([...p.marks.map((mark) => mark.ijk[axis]), ...p.absent, ...p.painted.keys()])].sort((a, b) => a - b);
}

function withoutSlice(p, t, axis) {
  const painted = new Map(p.painted), absent = new Set(p.absent);
  painted.delete(t);
  absent.delete(t);
  return { marks: p.marks.filter((mark) => mark.ijk[axis] !== t), absent, painted };
}

// Replaces the marks. On a slice that was painted or marked as empty, they ask the model again for that slice. Of several boxes on a slice,
// the last one counts.
export function withMarks(p, marks, axis) {
  const painted = new Map(p.painted), absent = new Set(p.absent), boxes = new Map();
  for (const mark of marks) {
    const t = mark.ijk[axis];
    painted.delete(t);
    if (mark.inside) absent.delete(t);
    if (mark.corner) boxes.set(t, mark);
  }
  return { marks: marks.filter((mark) => !mark.corner || boxes.get(mark.ijk[axis]) === mark), absent, painted };
}

export const withoutLastMark = (p) => ({ ...p, marks: p.marks.slice(0, -1) });

export function withAbsent(p, t, axis) {
  const next = withoutSlice(p, t, axis);
  next.absent.add(t);
  return next;
}

// Takes the mask of a slice (one byte for each voxel) as correct. An empty one says that the structure is not there.
export function withPainted(p, t, mask, axis) {
  if (!mask.some((v) => v)) return withAbsent(p, t, axis);
  const next = withoutSlice(p, t, axis);
  next.painted.set(t, pack(mask));
  return next;
}

// Returns the prompts of a saved structure: its slices are exact, and the empty slices next to them stay empty.
export function ofSaved(masks) {
  const painted = new Map(), absent = new Set();
  masks.forEach((mask, t) => { if (mask) painted.set(t, pack(mask)); });
  for (const t of painted.keys()) {
    for (const neighbour of [t - 1, t + 1]) if (neighbour >= 0 && neighbour < masks.length && !painted.has(neighbour)) absent.add(neighbour);
  }
  return { marks: [], absent, painted };
}

// Eight voxels a byte, because a history may hold many slices.
export function pack(mask) {
  const packed = new Uint8Array(Math.ceil(mask.length / 8));
  for (let n = 0; n < mask.length; n++) if (mask[n]) packed[n >> 3] |= 1 << (n & 7);
  return packed;
}

export const isSet = (packed, n) => (packed[n >> 3] >> (n & 7)) & 1;

// What was done to the prompts of all structures. A step is a list of {structure, before, after}.
export class History {
  constructor() {
    this.done = [];
    this.undone = [];
  }

  add(step) {
    this.done.push(step);
    this.undone = [];
  }

  // Returns the step to undo with the prompts that hold then, or null.
  undo() {
    const step = this.done.pop();
    if (step) this.undone.push(step);
    return step ? step.map(({ structure, before }) => ({ structure, prompts: before })) : null;
  }

  redo() {
    const step = this.undone.pop();
    if (step) this.done.push(step);
    return step ? step.map(({ structure, after }) => ({ structure, prompts: after })) : null;
  }
}
