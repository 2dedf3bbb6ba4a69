// The slice that the page opens at, and the way to the next one.

const TICK_MS = 250, STEADY_TICKS = 12, PATIENCE_MS = 120000;

export class Place {
  constructor(viewer, server, first, report) {
    Object.assign(this, { viewer, server, first, report, current: first });
    this.isConnected = false;
    this.timer = null;
  }

  // Shows what is known of the slice that the page leads to.
  show() {
    const { viewer: v, label, expected_dice: dice, reason } = this.current;
    this.write({ label, where: v ? `${v.plane} slice ${v.ohif.number} of ${v.ohif.count} (voxel slice ${v.voxel_slice})` : "", dice, reason });
  }

  write({ label, where, dice, reason }) {
    const isOblique = this.current.viewer && this.current.viewer.oblique;
    write("where", [label, where].filter(Boolean).join(" · "));
    write("dice", dice == null ? "" : `expected Dice ${dice.toFixed(2)}`);
    write("reason", (reason || "") + (isOblique ? " The slices are tilted: they cross OHIF's planes." : ""));
    document.getElementById("reason").title = reason || "";
  }

  hide() {
    clearInterval(this.timer);
    for (const id of ["where", "dice", "reason"]) write(id, "");
  }

  connect() {
    this.isConnected ||= this.viewer.connectPanel();
    return this.isConnected;
  }

  // OHIF resets its cameras while it loads and connects, so this returns to the slice until that is over or the annotator navigates.
  goThere() {
    const { viewer } = this, { window: inside } = viewer;
    clearInterval(this.timer);
    const pointLps = this.current.viewer && this.current.viewer.world_lps, began = Date.now();
    const events = ["wheel", "pointerdown", "keydown"];
    let steadyTicks = 0, hasArrived = false, seriesChanged = false;
    const onNavigation = () => { if (hasArrived && this.isConnected) this.stop(); };
    this.stop = () => { clearInterval(this.timer); for (const e of events) inside.removeEventListener(e, onNavigation, true); };
    for (const e of events) inside.addEventListener(e, onNavigation, true);
    this.timer = setInterval(() => {
      const isLate = Date.now() - began > PATIENCE_MS;
      try {
        const viewports = viewer.viewports();
        if (viewports.length && !viewer.hasSeries(this.first.SeriesInstanceUID, viewports)) {
          if (isLate) throw new Error("OHIF shows another series of this study: drag the right one from the list on the left into the viewport.");
          if (!seriesChanged) viewer.putSeries(this.first.SeriesInstanceUID, viewports);
          seriesChanged = true;
          return;
        }
        if (viewports.length && !this.connect() && isLate) throw new Error("OHIF shows no MONAI Label panel: is this its annotation mode?");
        if (viewports.length && pointLps) {
          const distance = Math.max(...viewports.map((v) => viewer.moveToPoint(v, pointLps)));
          steadyTicks = distance > 0.01 ? 0 : steadyTicks + 1;
          if (!hasArrived) this.markArrival(viewports);
          hasArrived = true;
        }
        if (viewports.length && this.isConnected && (!pointLps || steadyTicks >= STEADY_TICKS)) this.stop();
        if (!viewports.length && isLate) throw new Error("OHIF did not show the volume within two minutes: reload this page, or look whether the DICOM store answers.");
      } catch (e) {
        if (!isLate) return; // OHIF has not loaded all of its modules yet
        this.stop();
        this.report(e instanceof TypeError ? `OHIF could not be taken to the slice (${e.message}): scroll to it.` : e.message, true);
      }
    }, TICK_MS);
  }

  stop() {}

  markArrival(viewports) {
    const id = this.current.viewer.ohif.viewport;
    document.body.dataset.arrived = this.current.slice;
    try {
      if (viewports.some((v) => v.id === id)) this.viewer.services.viewportGridService.setActiveViewportId(id);
    } catch { /* this only decides which viewport has the coloured frame */ }
  }

  // Asks for the next slice and goes there. Returns the answer if it is in this image.
  async goToNext() {
    this.report("Asking for the next slice …");
    const answer = await this.server.nextSlice(this.first.id);
    this.report("");
    if (!answer.id) return this.report("All images have a final label.");
    if (answer.id !== this.first.id) return location.assign(answer.RetrieveURL);
    const isSameSlice = answer.slice === this.current.slice;
    this.current = answer;
    history.replaceState(null, "", answer.RetrieveURL);
    this.show();
    if (isSameSlice) this.report("Still this slice: click on it, or accept it as it is.");
    this.goThere();
    return answer;
  }
}

function write(id, text) { document.getElementById(id).textContent = text; }
