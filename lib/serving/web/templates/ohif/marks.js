// The clicks and boxes in OHIF's viewports, and outlines, which become painted slices. A mark is described in prompts.js.

export const PROBE = "ProbeMONAILabel", BOX = "BoxPrompt", OUTLINE = "OutlinePrompt"; // Names of the tools.
const INSIDE_COLOR = "rgb(80, 230, 120)", OUTSIDE_COLOR = "rgb(255, 90, 90)";

export class Marks {
  constructor(viewer) {
    this.viewer = viewer;
    this.areChanging = false; // Whether this page is changing them, so that its own changes are not taken for the annotator's.
    this.addTools();
  }

  // Adds tools for boxes and outlines. They have names of their own, so that OHIF does not take what they draw for measurements.
  addTools() {
    const { RectangleROITool, PlanarFreehandROITool, addTool } = this.viewer.tools, noText = { getTextLines: () => [] };
    class BoxTool extends RectangleROITool {
      constructor(...args) {
        super(...args);
        this._calculateCachedStats = this._throttledCalculateCachedStats = (annotation) => { annotation.invalidated = false; };
      }
    }
    class OutlineTool extends PlanarFreehandROITool {}
    for (const [name, Tool, options] of [[BOX, BoxTool, noText], [OUTLINE, OutlineTool, { ...noText, calculateStats: false, allowOpenContours: false }]]) {
      Tool.toolName = name;
      addTool(Tool);
      this.viewer.toolGroup().addTool(name, options);
      this.viewer.toolGroup().setToolPassive(name);
    }
  }

  // Returns whether a box or an outline is not complete yet.
  isDrawing() {
    const tools = [BOX, OUTLINE].map((name) => this.viewer.toolGroup().getToolInstance(name));
    return tools.some((tool) => tool.isDrawing || tool.editData);
  }

  annotations(...toolNames) {
    return this.viewer.tools.annotation.state.getAllAnnotations().filter((annotation) => toolNames.includes(annotation.metadata.toolName));
  }

  // Returns the clicks and boxes in the viewports, without `inside`.
  all() {
    return this.annotations(PROBE, BOX).map((annotation) => {
      const points = annotation.data.handles.points.map((point) => [...point]);
      const [ijk, corner] = [points[0], points[3]].map((point) => point && this.viewer.toVoxel(point).map(Math.round));
      return { uid: annotation.annotationUID, ijk, corner, points, annotation };
    });
  }

  // Returns what is wrong with a mark, in a sentence, or "".
  problemOf({ ijk, corner }) {
    const { axis, labels: { size } } = this.viewer, other = corner ?? ijk;
    if (String(ijk) === String(corner)) return "Drag the mouse to draw a box.";
    if (corner && ijk[axis] !== corner[axis]) return this.wrongPlane("boxes");
    const isInImage = size.every((n, a) => Math.max(ijk[a], other[a]) >= 0 && Math.min(ijk[a], other[a]) < n);
    if (isInImage) return "";
    return corner ? "This box lies outside the image." : "This click lies outside the image: click on the image.";
  }

  wrongPlane(what) { return `Draw ${what} in the ${this.viewer.planeName()} view: the slices lie in this plane.`; }

  // Removes outlines from the viewports, and returns the last one as {t, mask: one byte for each voxel of slice t, problem}, or null.
  takeOutline() {
    const outlines = this.annotations(OUTLINE);
    if (!outlines.length) return null;
    this.quietly(() => { for (const { annotationUID } of outlines) this.viewer.tools.annotation.state.removeAnnotation(annotationUID); });
    this.draw();
    const corners = outlines.at(-1).data.contour.polyline.map((point) => this.viewer.toVoxel(point));
    const depths = corners.map((voxel) => voxel[this.viewer.axis]);
    const t = Math.min(Math.max(Math.round(depths[0]), 0), this.viewer.sliceCount - 1);
    const problem = depths.every((x) => Math.abs(x - t) <= 0.5) ? "" : this.wrongPlane("outlines");
    return { t, mask: this.viewer.labels.maskOfPolygon(corners), problem };
  }

  // Draws exactly these clicks and boxes.
  show(marks) {
    const { state, config } = this.viewer.tools.annotation;
    this.quietly(() => {
      const wanted = new Set(marks.map((mark) => mark.uid)), present = new Set();
      for (const annotation of this.annotations(PROBE, BOX)) {
        present.add(annotation.annotationUID);
        if (!wanted.has(annotation.annotationUID)) state.removeAnnotation(annotation.annotationUID);
      }
      for (const { uid, inside, points, annotation } of marks) {
        if (!present.has(uid)) state.addAnnotation(annotation, this.viewer.mainViewport().element);
        points.forEach((point, n) => { annotation.data.handles.points[n] = [...point]; });
        const color = inside ? INSIDE_COLOR : OUTSIDE_COLOR;
        config.style.setAnnotationStyles(uid, { color, colorHighlighted: color, colorSelected: color });
      }
    });
    this.draw();
  }

  draw() { this.viewer.tools.utilities.triggerAnnotationRenderForViewportIds(this.viewer.viewports().map((v) => v.id)); }

  quietly(change) {
    this.areChanging = true;
    try { change(); } finally { this.areChanging = false; }
  }
}
