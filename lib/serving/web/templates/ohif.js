"use strict";
// Opens OHIF at a slice, connects its MONAI Label panel, leads to the next slice and submits the segments.
(() => {
  const TICK_MS = 250, STEADY_TICKS = 12, PATIENCE_MS = 120000;
  const { place: first, base } = JSON.parse(document.getElementById("place").textContent);
  const frame = document.getElementById("ohif"), button = document.getElementById("next"), save = document.getElementById("submit");
  const study = first.StudyInstanceUID;
  let place = first, timer = null, connected = false, seriesChanged = false;

  const write = (id, text) => { document.getElementById(id).textContent = text; };
  function showMessage(text, isError = false) {
    write("message", text);
    document.getElementById("message").className = isError ? "bad" : "";
  }

  function showPlace() {
    const v = place.viewer, dice = place.expected_dice;
    write("where", [place.label, v ? `${v.plane} slice ${v.ohif.number} of ${v.ohif.count} (voxel slice ${v.voxel_slice})` : ""].filter(Boolean).join(" · "));
    write("dice", dice == null ? "" : `expected Dice ${dice.toFixed(2)}`);
    write("reason", (place.reason || "") + (v && v.oblique ? " The slices are tilted: they cross OHIF's planes." : ""));
    document.getElementById("reason").title = place.reason || "";
  }

  // Returns OHIF's three viewports once they have a volume. Cornerstone and the services are globals of the frame's window.
  function volumeViewports() {
    const cornerstone = frame.contentWindow && frame.contentWindow.cornerstone;
    if (!cornerstone || !cornerstone.getRenderingEngines) return [];
    const all = (cornerstone.getRenderingEngines() || []).flatMap((engine) => engine.getViewports());
    return all.filter((v) => v.type === "orthographic" && v.getImageData() && v.getImageData().dimensions);
  }

  // Moves a viewport's plane along its normal to a point (mm LPS) and returns how far away it was, in mm.
  function moveToPoint(viewport, pointLps) {
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
  function ensureSeries(viewports) {
    const { viewportGridService, displaySetService, hangingProtocolService } = frame.contentWindow.services;
    const series = displaySetService.getActiveDisplaySets().find((d) => d.SeriesInstanceUID === first.SeriesInstanceUID);
    if (!series || viewports.every((v) => v.getVolumeId().includes(series.displaySetInstanceUID))) return true;
    if (!seriesChanged) viewportGridService.setDisplaySetsForViewports(hangingProtocolService.getViewportsRequireUpdate(viewports[0].id, series.displaySetInstanceUID));
    seriesChanged = true;
    return false;
  }

  function connect() {
    const address = frame.contentDocument.getElementById("monailabelServerURL");
    const connectButton = frame.contentDocument.querySelector(".monaiLabelPanel button.actionButton");
    if (connected || !address || !connectButton) return connected;
    connected = true;
    connectButton.click();
    return true;
  }

  // OHIF resets its cameras while it loads and connects, so this returns to the slice until that is over or the annotator navigates.
  function goToSlice() {
    clearInterval(timer);
    const pointLps = place.viewer && place.viewer.world_lps, began = Date.now();
    let steadyTicks = 0, arrived = false;
    seriesChanged = false;
    const events = ["wheel", "pointerdown", "keydown"];
    const stop = () => { clearInterval(timer); for (const e of events) frame.contentWindow.removeEventListener(e, onNavigation, true); };
    const onNavigation = () => { if (arrived && connected) stop(); };
    for (const e of events) frame.contentWindow.addEventListener(e, onNavigation, true);
    timer = setInterval(() => {
      const late = Date.now() - began > PATIENCE_MS;
      try {
        const viewports = volumeViewports();
        if (viewports.length && !ensureSeries(viewports)) {
          if (late) throw new Error("OHIF shows another series of this study: drag the right one from the list on the left into the viewport.");
          return;
        }
        if (viewports.length && !connect() && late) throw new Error("OHIF shows no MONAI Label panel: is this its annotation mode?");
        if (viewports.length && pointLps) {
          const distance = Math.max(...viewports.map((v) => moveToPoint(v, pointLps)));
          steadyTicks = distance > 0.01 ? 0 : steadyTicks + 1;
          if (!arrived) markArrival(viewports);
          arrived = true;
        }
        if (viewports.length && connected && (!pointLps || steadyTicks >= STEADY_TICKS)) stop();
        if (!viewports.length && late) throw new Error("OHIF did not show the volume within two minutes: reload this page, or look whether the DICOM store answers.");
      } catch (e) {
        if (!late) return; // OHIF has not loaded all of its modules yet
        stop();
        showMessage(e instanceof TypeError ? `OHIF could not be taken to the slice (${e.message}): scroll to it.` : e.message, true);
      }
    }, TICK_MS);
  }

  function markArrival(viewports) {
    const id = place.viewer.ohif.viewport;
    document.body.dataset.arrived = place.slice;
    try {
      if (viewports.some((v) => v.id === id)) frame.contentWindow.services.viewportGridService.setActiveViewportId(id);
    } catch (e) { /* this only decides which viewport has the coloured frame */ }
  }

  async function goToNext() {
    button.disabled = true;
    showMessage("Asking for the next slice …");
    try {
      const response = await fetch(`${base}/activelearning/worst_slice`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image: first.id }) });
      const answer = await readAnswer(response);
      showMessage("");
      if (!answer.id) return showMessage("All images have a final label.");
      if (answer.id !== first.id) return location.assign(answer.RetrieveURL);
      const isSameSlice = answer.slice === place.slice;
      place = answer;
      history.replaceState(null, "", answer.RetrieveURL);
      showPlace();
      if (isSameSlice) showMessage("Still this slice: click on it and press Run.");
      goToSlice();
    } catch (e) {
      showMessage(e instanceof TypeError ? "The server does not answer." : e.message, true);
    } finally {
      button.disabled = false;
    }
  }

  async function readAnswer(response) {
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : `The server answered with status ${response.status}.`);
    return answer;
  }

  // This build of OHIF has no button for submitting, so this sends the segments as its own code would.
  async function submit() {
    save.disabled = true;
    showMessage("Saving …");
    try {
      const { segmentationService } = frame.contentWindow.services, segmentation = segmentationService.getSegmentation("1");
      const voxels = segmentation ? segmentationService.getLabelmapVolume("1").voxelManager.getCompleteScalarDataArray() : [];
      if (!voxels.some((v) => v)) throw new Error("There is no segment yet: click on a structure and press Run.");
      const names = Object.values(segmentation.segments).filter(Boolean).map((s) => ({ name: s.label, idx: s.segmentIndex }));
      const form = new FormData();
      form.append("params", JSON.stringify({ label_info: names }));
      form.append("label", new Blob([voxels]), "label.bin");
      await readAnswer(await fetch(`${base}/datastore/label?image=${encodeURIComponent(first.SeriesInstanceUID)}`, { method: "PUT", body: form }));
      showMessage("Saved as the final label.");
    } catch (e) {
      showMessage(e instanceof TypeError ? "The segments could not be read, or the server does not answer." : e.message, true);
    } finally {
      save.disabled = false;
    }
  }

  frame.addEventListener("load", () => {
    connected = false;
    const openStudy = new URLSearchParams(frame.contentWindow.location.search).get("StudyInstanceUIDs");
    if (openStudy && openStudy !== study) {
      clearInterval(timer);
      for (const id of ["where", "dice", "reason"]) write(id, "");
      return showMessage("Another study was opened here: Next slice goes on.");
    }
    goToSlice();
  });
  button.addEventListener("click", goToNext);
  save.addEventListener("click", submit);
  showPlace();
  // The panel reads the server's address from this cookie. OHIF sets it for the path of its own pages, so it must be set for that path.
  document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + base + "/")}; path=${base}/ohif; SameSite=Lax`;
  frame.src = `${base}/ohif/monai-label?StudyInstanceUIDs=${encodeURIComponent(study)}`;
})();
