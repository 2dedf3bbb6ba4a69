// The label map in OHIF: one byte for each voxel of the image's volume, in planes along k as cornerstone keeps them, i fastest.
//
// It knows how many voxels each segment has on each slice, and which voxels were changed by somebody else, by painting.

export class LabelMap {
  // `planes` are cornerstone's own arrays, one for each k; `size` is [I, J, K], and `axis` the slicing axis.
  constructor(planes, size, axis) {
    Object.assign(this, { planes, size, axis });
    this.known = planes.map((plane) => plane.slice());
    this.counts = new Uint32Array(256 * this.sliceCount);
    planes.forEach((plane, k) => {
      for (let n = 0; n < plane.length; n++) if (plane[n]) this.counts[plane[n] * this.sliceCount + this.sliceOf(k, n)] += 1;
    });
  }

  get sliceCount() { return this.size[this.axis]; }
  get sliceSize() { return this.planes.length * this.planes[0].length / this.sliceCount; }

  // Returns the slice of voxel n of plane k.
  sliceOf(k, n) {
    if (this.axis === 2) return k;
    return this.axis === 1 ? Math.floor(n / this.size[0]) : n % this.size[0];
  }

  // Returns the numbers of voxels of a segment on each slice. The array follows later changes.
  areasOf(value) { return this.counts.subarray(value * this.sliceCount, (value + 1) * this.sliceCount); }

  // Calls visit(k, index in plane k, index in the slice) for the voxels of slice t.
  forEachVoxel(t, visit) {
    const [I, J, K] = this.size, isAxial = this.axis === 2;
    let m = 0;
    for (let k = isAxial ? t : 0; k < (isAxial ? t + 1 : K); k++) {
      for (let j = this.axis === 1 ? t : 0; j < (this.axis === 1 ? t + 1 : J); j++) {
        for (let i = this.axis === 0 ? t : 0; i < (this.axis === 0 ? t + 1 : I); i++) visit(k, j * I + i, m++);
      }
    }
  }

  // Returns the mask of a segment on slice t, one byte for each voxel.
  sliceMask(t, value) {
    const { planes } = this, mask = new Uint8Array(this.sliceSize);
    this.forEachVoxel(t, (k, n, m) => { mask[m] = planes[k][n] === value ? 1 : 0; });
    return mask;
  }

  // Returns the mask of the voxels of a slice that lie in a polygon, one byte for each. Its corners are voxels, with fractions.
  maskOfPolygon(corners) {
    const [a, b] = [0, 1, 2].filter((x) => x !== this.axis), mask = new Uint8Array(this.sliceSize), path = new Path2D();
    const context = document.createElement("canvas").getContext("2d");
    const [u0, u1, v0, v1] = [a, b].flatMap((x) => {
      const along = corners.map((voxel) => voxel[x]);
      return [Math.max(Math.ceil(Math.min(...along)), 0), Math.min(Math.floor(Math.max(...along)), this.size[x] - 1)];
    });
    for (const voxel of corners) path.lineTo(voxel[a], voxel[b]);
    for (let v = v0; v <= v1; v++) {
      for (let u = u0; u <= u1; u++) if (context.isPointInPath(path, u, v, "evenodd")) mask[v * this.size[a] + u] = 1;
    }
    return mask;
  }

  // Returns a mask of the volume, as writeMask takes it, from one of slice t.
  maskOfSlice(t, voxels) {
    const along = (values, x) => values.map((value, a) => (a === this.axis ? x : value));
    return { offset: along([0, 0, 0], t), size: along(this.size, 1), voxels };
  }

  // Makes a segment be where a mask is, on slice t or, if t is null, everywhere. Voxels of other segments are kept on request.
  // A mask is a box, {offset: [i, j, k], size: [I, J, K], voxels}, outside of which nothing is set; null is an empty one.
  // Returns the planes (k) that have changed.
  writeMask(value, mask, t, keepOthers) {
    const changed = [];
    for (let k = 0; k < this.planes.length; k++) {
      if (this.axis === 2 && t !== null && t !== k) continue;
      const plane = this.planes[k], wanted = mask && this.planeOf(mask, k);
      if (!wanted && !plane.includes(value)) continue;
      let isChanged = false;
      for (let n = 0; n < plane.length; n++) {
        const old = plane[n];
        if (wanted && wanted[n] ? old === value || (keepOthers && old) : old !== value) continue;
        if (t !== null && this.sliceOf(k, n) !== t) continue;
        this.set(k, n, old === value ? 0 : value);
        isChanged = true;
      }
      if (isChanged) changed.push(k);
    }
    return changed;
  }

  // Returns a mask's bytes on plane k, or null if the plane lies outside its box.
  planeOf({ offset: [i0, j0, k0], size: [I, J, K], voxels }, k) {
    if (k < k0 || k >= k0 + K) return null;
    const plane = new Uint8Array(this.planes[k].length);
    for (let j = 0, start = (k - k0) * J * I; j < J; j++, start += I) {
      plane.set(voxels.subarray(start, start + I), (j0 + j) * this.size[0] + i0);
    }
    return plane;
  }

  // Takes over all voxels of another label map, of the same size; values[v] is the segment for its value v. Returns the planes that have changed.
  load(voxels, values) {
    return this.planes.map((plane, k) => k).filter((k) => {
      const plane = this.planes[k], start = k * plane.length;
      let isChanged = false;
      for (let n = 0; n < plane.length; n++) {
        const value = values[voxels[start + n]];
        if (value === plane[n]) continue;
        this.set(k, n, value);
        isChanged = true;
      }
      return isChanged;
    });
  }

  set(k, n, value) {
    this.count(k, n, this.planes[k][n], value);
    this.planes[k][n] = this.known[k][n] = value;
  }

  count(k, n, before, after) {
    const t = this.sliceOf(k, n);
    if (before) this.counts[before * this.sliceCount + t] -= 1;
    if (after) this.counts[after * this.sliceCount + t] += 1;
  }

  // Takes over what was painted on some planes. Returns pairs "value t" of the segments and slices that have changed.
  takePainting(painted) {
    const edited = new Set();
    for (const k of painted) {
      const plane = this.planes[k], known = this.known[k];
      for (let n = 0; n < plane.length; n++) {
        if (plane[n] === known[n]) continue;
        for (const value of [plane[n], known[n]]) if (value) edited.add(`${value} ${this.sliceOf(k, n)}`);
        this.count(k, n, known[n], plane[n]);
        known[n] = plane[n];
      }
    }
    return edited;
  }
}
