// The prompts for one structure, and the history of all structures. Prompts are never changed, only replaced, so undo is exact.
//
// Prompts: { clicks: [{uid, ijk, inside, point, annotation}], absent: Set of slices, painted: Map from slices to packed masks }.
// Slices are indices along the slicing axis, as OHIF's volume counts them.

export const NONE = Object.freeze({ clicks: [], absent: new Set(), painted: new Map() });

export const isEmpty = (p) => !p.clicks.length && !p.absent.size && !p.painted.size;

// Whether anything says where the structure is; without that, no mask can be asked for.
export const showsStructure = (p) => p.clicks.some((c) => c.inside) || [...p.painted.values()].some((mask) => mask.some((byte) => byte));

// Returns the slices that have prompts, sorted.
export function annotatedSlices(p, axis) {
  return [...new Set([...p.clicks.map((c) => c.ijk[axis]), ...p.absent, ...p.painted.keys()])].sort((a, b) => a - b);
}

function withoutSlice(p, t, axis) {
  const painted = new Map(p.painted), absent = new Set(p.absent);
  painted.delete(t);
  absent.delete(t);
  return { clicks: p.clicks.filter((c) => c.ijk[axis] !== t), absent, painted };
}

// A click on a slice that was painted or marked as empty asks the model again for that slice.
export function withClicks(p, clicks, axis) {
  const painted = new Map(p.painted), absent = new Set(p.absent);
  for (const click of clicks) {
    painted.delete(click.ijk[axis]);
    if (click.inside) absent.delete(click.ijk[axis]);
  }
  return { clicks, absent, painted };
}

export const withoutLastClick = (p) => ({ ...p, clicks: p.clicks.slice(0, -1) });

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
  return { clicks: [], absent, painted };
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
