// OHIF in the frame: its viewports, tools, clicks and label map. Nothing else of this page touches OHIF.
//
// Cornerstone, its tools and OHIF's services are globals of the frame's window. Voxels (i, j, k) are those of the image's volume in
// cornerstone, which the server counts in the same way.

import { LabelMap } from "./label_map.js";
import { BOX, Marks, OUTLINE, PROBE } from "./marks.js";

const SEGMENTATION = "1", TOOL_GROUP = "mpr";
const PRIMARY_BUTTON = 1, ALT = 18, CAMERA_TICK_MS = 100;
const OHIF_NORMAL_SIGNS = [1, -1, -1]; // Whether OHIF's slice numbers grow with x, y and z (LPS), see lib/serving/web/viewers.py.
export const TOOLS = { inside: PROBE, outside: PROBE, box: BOX, outline: OUTLINE, brush: "CircularBrush", eraser: "CircularEraser", look: "WindowLevel" };

export class Viewer {
  constructor(frame) {
    this.frame = frame;
    this.axis = 2;
    this.paintedPlanes = new Set(); // Of the label map, since the last call of takePainting.
  }

  get window() { return this.frame.contentWindow; }
  get tools() { return this.window.cornerstoneTools; }
  get services() { return this.window.services; }

  // Returns OHIF's three viewports once they have a volume.
  viewports() {
    const cornerstone = this.window && this.window.cornerstone;
    if (!cornerstone || !cornerstone.getRenderingEngines) return [];
    const all = (cornerstone.getRenderingEngines() || []).flatMap((engine) => engine.getViewports());
    return all.filter((v) => v.type === "orthographic" && v.getImageData() && v.getImageData().dimensions);
  }

  // Moves a viewport's plane along its normal to a point (mm LPS) and returns how far away it was, in mm.
  moveToPoint(viewport, pointLps) {
    const { focalPoint, position, viewPlaneNormal: n } = viewport.getCamera();
    const distance = n.reduce((sum, x, i) => sum + x * (pointLps[i] - focalPoint[i]), 0);
    if (Math.abs(distance) > 0.01) {
      const shift = (p) => p.map((x, i) => x + distance * n[i]);
      viewport.setCamera({ focalPoint: shift(focalPoint), position: shift(position) });
      viewport.render();
    }
    return Math.abs(distance);
  }

  // A study may hold several series, of which OHIF opens one: puts the right one into all viewports, as dropping it there would.
  // Returns whether it is displayed, and true also if OHIF does not tell.
  hasSeries(uid, viewports) {
    const series = this.services.displaySetService.getActiveDisplaySets().find((d) => d.SeriesInstanceUID === uid);
    return !series || viewports.every((v) => v.getVolumeId().includes(series.displaySetInstanceUID));
  }

  // Returns whether all views still show the volume that they showed at the start.
  hasOnlyItsVolume() { return this.viewports().every((viewport) => viewport.getVolumeId() === this.volumeId); }

  putSeries(uid, viewports) {
    const { viewportGridService, displaySetService, hangingProtocolService } = this.services;
    const series = displaySetService.getActiveDisplaySets().find((d) => d.SeriesInstanceUID === uid);
    viewportGridService.setDisplaySetsForViewports(hangingProtocolService.getViewportsRequireUpdate(viewports[0].id, series.displaySetInstanceUID));
  }

  // Connects the MONAI Label panel, which makes the label map with a segment for each label of the server. Returns whether it could.
  connectPanel() {
    const address = this.frame.contentDocument.getElementById("monailabelServerURL");
    const button = this.frame.contentDocument.querySelector(".monaiLabelPanel button.actionButton");
    if (!address || !button) return false;
    button.click();
    return true;
  }

  // Closes OHIF's lists at both sides, which the annotator can open again: on a small screen they leave no room for the image.
  closeSidePanels() {
    for (const side of ["left", "right"]) this.frame.contentDocument.querySelector(`[data-cy="side-panel-header-${side}"]`)?.click();
  }

  // Returns whether the label map is there, and the image is loaded completely.
  isReady() {
    try {
      const loaded = this.window.cornerstone.cache.getVolumes().every((v) => v.loadStatus?.loaded ?? true);
      const labels = this.labelVolume(), image = this.viewports()[0]?.getImageData().dimensions;
      return Boolean(loaded && labels && image && image.every((n, a) => n === labels.dimensions[a]));
    } catch {
      return false; // OHIF has not loaded all of its modules yet
    }
  }

  // Begins to follow marks and painting. `onChange` is called with no argument after each of them.
  start(axis, onChange) {
    const { Events } = this.tools.Enums, { cache, eventTarget: target } = this.window.cornerstone, volume = this.labelVolume();
    this.axis = axis;
    this.volumeId = this.viewports()[0].getVolumeId();
    this.labels = new LabelMap(volume.imageIds.map((id) => cache.getImage(id).voxelManager.getScalarData()), [...volume.dimensions], axis);
    target.addEventListener(Events.SEGMENTATION_DATA_MODIFIED, ({ detail }) => {
      const planes = detail.modifiedSlicesToUse?.length ? detail.modifiedSlicesToUse : this.labels.planes.keys();
      for (const k of planes) this.paintedPlanes.add(k);
    });
    this.marks = new Marks(this);
    const later = () => { if (!this.marks.areChanging) setTimeout(onChange, 0); };
    for (const event of [Events.ANNOTATION_COMPLETED, Events.ANNOTATION_REMOVED]) target.addEventListener(event, later);
    this.window.addEventListener("mouseup", (event) => { this.endWaiting(event); later(); }, true);
  }

  // Cornerstone holds a click back for 0.4 s, because a second one might follow, unless the mouse moves on. So a click with the probe is
  // followed by such a move.
  endWaiting({ target, clientX, clientY, button, altKey }) {
    const viewport = this.viewports().find((v) => v.element.contains(target));
    if (!viewport || button !== 0 || !(altKey || this.hasTool("inside"))) return;
    const move = new this.window.MouseEvent("mousemove", { clientX: clientX + 9, clientY: clientY + 9 });
    setTimeout(() => viewport.element.dispatchEvent(move), 0);
  }

  labelVolume() { return this.services.segmentationService.getLabelmapVolume(SEGMENTATION); }

  // Segments ---------------------------------------------------------------------------------------------------------------------------

  // Returns [{name, value, color}] of the segments. Colours are "rgb(r, g, b)".
  segments() {
    const segments = Object.values(this.services.segmentationService.getSegmentation(SEGMENTATION).segments).filter(Boolean);
    return segments.map((s) => ({ name: s.label, value: s.segmentIndex, color: this.segmentColor(s.segmentIndex) }));
  }

  segmentColor(value) {
    const id = this.viewports()[0].id;
    return `rgb(${[...this.services.segmentationService.getSegmentColor(id, SEGMENTATION, value)].slice(0, 3).join(", ")})`;
  }

  addSegment(name) {
    const used = new Set(this.segments().map((s) => s.value));
    const value = Array.from({ length: 255 }, (_, n) => n + 1).find((n) => !used.has(n));
    if (!value) throw new Error("There are 255 structures already, which is as many as a label map can hold.");
    this.services.segmentationService.addSegment(SEGMENTATION, { segmentIndex: value, label: name });
    return this.segments().find((s) => s.value === value);
  }

  selectSegment(value) { this.services.segmentationService.setActiveSegment(SEGMENTATION, value); }

  // Slices -----------------------------------------------------------------------------------------------------------------------------

  get sliceCount() { return this.labels.sliceCount; }

  currentSlice() {
    return Math.min(Math.max(Math.round(this.voxelInView()[this.axis]), 0), this.sliceCount - 1);
  }

  // Returns the viewport that shows the slices in their plane.
  mainViewport() {
    const plane = ["sagittal", "coronal", "axial"][this.normal().component], viewports = this.viewports();
    return viewports.find((v) => v.id === `mpr-${plane}`) || viewports[0];
  }

  // Returns the name of the plane of the slices.
  planeName() { return this.mainViewport().id.replace("mpr-", ""); }

  // Returns the patient axis (0, 1, 2 for x, y, z) along which the slices lie, and its sign.
  normal() {
    const row = this.viewports()[0].getImageData().direction.slice(3 * this.axis, 3 * this.axis + 3);
    const component = row.reduce((best, x, i) => (Math.abs(x) > Math.abs(row[best]) ? i : best), 0);
    return { component, sign: Math.sign(row[component]) };
  }

  // Returns the slices in the order of OHIF's numbers: number 1 first.
  slicesInOrder() {
    const { component, sign } = this.normal(), slices = Array.from({ length: this.sliceCount }, (_, t) => t);
    return sign * OHIF_NORMAL_SIGNS[component] > 0 ? slices : slices.reverse();
  }

  goToSlice(t, ijk = null) {
    const voxel = ijk ? [...ijk] : this.voxelInView();
    voxel[this.axis] = t;
    const world = [...this.viewports()[0].getImageData().imageData.indexToWorld(voxel)];
    for (const viewport of ijk ? this.viewports() : [this.mainViewport()]) this.moveToPoint(viewport, world);
  }

  // Shows the view of the slices alone, or all three again.
  toggleOneView() {
    this.services.viewportGridService.setActiveViewportId(this.mainViewport().id);
    this.window.commandsManager.runCommand("toggleOneUp");
  }

  voxelInView() { return this.toVoxel(this.mainViewport().getCamera().focalPoint); }

  // Returns the voxel, with fractions, at a point in mm LPS.
  toVoxel(pointLps) { return [...this.viewports()[0].getImageData().imageData.worldToIndex([...pointLps])]; }

  // Calls `onMove` when another slice is in view. OHIF replaces its viewports when the layout changes, so their events would get lost.
  followCamera(onMove) {
    let known = null;
    clearInterval(this.cameraTimer);
    this.cameraTimer = setInterval(() => {
      const t = this.viewports().length ? this.currentSlice() : known;
      if (t !== known) onMove();
      known = t;
    }, CAMERA_TICK_MS);
  }

  // The label map ----------------------------------------------------------------------------------------------------------------------

  // Makes a segment be where a mask is, on slice t or, if t is null, everywhere: see LabelMap.
  writeMask(value, mask, t = null, keepOthers = true) { this.draw(this.labels.writeMask(value, mask, t, keepOthers)); }

  // Draws planes of the label map that have changed, first in the viewport of the slices, because drawing takes long without a graphics card.
  draw(planes) {
    if (!planes.length) return;
    const { vtkOpenGLTexture, imageData } = this.labelVolume(), main = this.mainViewport();
    for (const k of planes) vtkOpenGLTexture.setUpdatedFrame(k);
    imageData.modified();
    const others = () => { for (const viewport of this.viewports()) if (viewport.id !== main.id) viewport.render(); };
    main.element.addEventListener(this.window.cornerstone.Enums.Events.IMAGE_RENDERED, others, { once: true });
    main.render();
  }

  // Takes over what was painted since the last call. Returns pairs "value t" of segments and slices.
  takePainting() {
    const edited = this.labels.takePainting(this.paintedPlanes);
    this.paintedPlanes.clear();
    return edited;
  }

  // Tools ------------------------------------------------------------------------------------------------------------------------------

  toolGroup() { return this.tools.ToolGroupManager.getToolGroup(TOOL_GROUP); }

  // Gives the left mouse button to a tool, a key of TOOLS. With Alt, it always clicks. A box that is not complete is given up.
  setTool(name) {
    for (const viewport of this.viewports()) this.tools.cancelActiveManipulations(viewport.element);
    const group = this.toolGroup(), tool = TOOLS[name];
    const active = group.getActivePrimaryMouseButtonTool();
    if (active) group.setToolPassive(active, { removeAllBindings: [{ mouseButton: PRIMARY_BUTTON }] });
    const primary = { mouseButton: PRIMARY_BUTTON }, withAlt = { mouseButton: PRIMARY_BUTTON, modifierKey: ALT };
    group.setToolActive(PROBE, { bindings: tool === PROBE ? [primary, withAlt] : [withAlt] });
    if (tool !== PROBE) group.setToolActive(tool, { bindings: [primary] });
  }

  hasTool(name) { return this.toolGroup().getActivePrimaryMouseButtonTool() === TOOLS[name]; }

  scaleBrush(factor) {
    const { getBrushSizeForToolGroup, setBrushSizeForToolGroup } = this.tools.utilities.segmentation;
    setBrushSizeForToolGroup(TOOL_GROUP, Math.max(1, getBrushSizeForToolGroup(TOOL_GROUP) * factor));
  }
}
