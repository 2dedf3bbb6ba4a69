"use strict";
(() => {
  const TICK_MS = 250, STEADY = 12, PATIENCE_MS = 120000;
  const { place: first, base } = JSON.parse(document.getElementById("place").textContent);
  const frame = document.getElementById("ohif"), button = document.getElementById("next"), save = document.getElementById("submit");
  const study = first.StudyInstanceUID;
  let place = first, timer = null, connected = false, changed = false;

  const write = (id, text) => { document.getElementById(id).textContent = text; };
  function say(text, bad = false) {
    write("message", text);
    document.getElementById("message").className = bad ? "bad" : "";
  }

  function show() {
    const v = place.viewer, dice = place.expected_dice;
    write("where", [place.label, v ? `${v.plane} slice ${v.ohif.number} of ${v.ohif.count} (voxel slice ${v.voxel_slice})` : ""].filter(Boolean).join(" · "));
    write("dice", dice == null ? "" : `expected Dice ${dice.toFixed(2)}`);
    write("reason", (place.reason || "") + (v && v.oblique ? " The slices are tilted: they cross OHIF's planes." : ""));
    document.getElementById("reason").title = place.reason || "";
  }

  // OHIF's three planes, once they have a volume. Cornerstone and its services are globals of the frame's window.
  function planes() {
    const cornerstone = frame.contentWindow && frame.contentWindow.cornerstone;
    if (!cornerstone || !cornerstone.getRenderingEngines) return [];
    const all = (cornerstone.getRenderingEngines() || []).flatMap((engine) => engine.getViewports());
    return all.filter((v) => v.type === "orthographic" && v.getImageData() && v.getImageData().dimensions);
  }

  // Moves a plane along its own normal on to a point (mm LPS); how far it was away, in mm.
  function stand(viewport, world) {
    const { focalPoint, position, viewPlaneNormal: n } = viewport.getCamera();
    const away = n.reduce((sum, x, i) => sum + x * (world[i] - focalPoint[i]), 0);
    if (Math.abs(away) > 0.01) {
      const moved = (p) => p.map((x, i) => x + away * n[i]);
      viewport.setCamera({ focalPoint: moved(focalPoint), position: moved(position) });
      viewport.render();
    }
    return Math.abs(away);
  }

  // A study may hold several series, of which OHIF opens one: puts the right one into all planes, as dropping it there would.
  // Returns whether it is there; true also if OHIF does not say.
  function rightSeries(found) {
    const { viewportGridService, displaySetService, hangingProtocolService } = frame.contentWindow.services;
    const wanted = displaySetService.getActiveDisplaySets().find((d) => d.SeriesInstanceUID === place.id);
    if (!wanted || found.every((v) => v.getVolumeId().includes(wanted.displaySetInstanceUID))) return true;
    if (!changed) viewportGridService.setDisplaySetsForViewports(hangingProtocolService.getViewportsRequireUpdate(found[0].id, wanted.displaySetInstanceUID));
    changed = true;
    return false;
  }

  function connect() {
    const address = frame.contentDocument.getElementById("monailabelServerURL");
    const press = frame.contentDocument.querySelector(".monaiLabelPanel button.actionButton");
    if (connected || !address || !press) return connected;
    connected = true;
    press.click();
    return true;
  }

  // OHIF resets its cameras while it loads and connects: stay on the slice until that is over or the annotator takes the wheel.
  function goThere() {
    clearInterval(timer);
    const world = place.viewer && place.viewer.world_lps, began = Date.now();
    let steady = 0, arrived = false;
    changed = false;
    const stop = () => { clearInterval(timer); for (const t of ["wheel", "pointerdown", "keydown"]) frame.contentWindow.removeEventListener(t, leave, true); };
    const leave = () => { if (arrived && connected) stop(); };
    for (const t of ["wheel", "pointerdown", "keydown"]) frame.contentWindow.addEventListener(t, leave, true);
    timer = setInterval(() => {
      const late = Date.now() - began > PATIENCE_MS;
      try {
        const found = planes();
        if (found.length && !rightSeries(found)) {
          if (late) throw new Error("OHIF shows another series of this study: drag the right one from the list on the left into the viewport.");
          return;
        }
        if (found.length && !connect() && late) throw new Error("OHIF shows no MONAI Label panel: is this its annotation mode?");
        if (found.length && world) {
          const away = Math.max(...found.map((v) => stand(v, world)));
          steady = away > 0.01 ? 0 : steady + 1;
          if (!arrived) arrive(found);
          arrived = true;
        }
        if (found.length && connected && (!world || steady >= STEADY)) stop();
        if (!found.length && late) throw new Error("OHIF did not show the volume within two minutes: reload this page, or look whether the DICOM store answers.");
      } catch (e) {
        if (!late) return; // parts of OHIF are not there yet
        stop();
        say(e instanceof TypeError ? `OHIF could not be taken to the slice (${e.message}): scroll to it.` : e.message, true);
      }
    }, TICK_MS);
  }

  function arrive(found) {
    const wanted = place.viewer.ohif.viewport;
    document.body.dataset.arrived = place.slice;
    try {
      if (found.some((v) => v.id === wanted)) frame.contentWindow.services.viewportGridService.setActiveViewportId(wanted);
    } catch (e) { /* only which viewport has the coloured frame */ }
  }

  async function next() {
    button.disabled = true;
    say("Asking for the next slice …");
    try {
      const response = await fetch(`${base}/activelearning/worst_slice`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image: first.id }) });
      const answer = await answerOf(response);
      say("");
      if (!answer.id) return say("All images have a final label.");
      if (answer.id !== first.id) return location.assign(answer.RetrieveURL);
      const same = answer.slice === place.slice;
      place = answer;
      history.replaceState(null, "", answer.RetrieveURL);
      show();
      if (same) say("Still this slice: click on it and press Run.");
      goThere();
    } catch (e) {
      say(e instanceof TypeError ? "The server does not answer." : e.message, true);
    } finally {
      button.disabled = false;
    }
  }

  async function answerOf(response) {
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : `The server answered with status ${response.status}.`);
    return answer;
  }

  // This build of OHIF has no button for it: sends the segments as its own code would.
  async function submit() {
    save.disabled = true;
    say("Saving …");
    try {
      const { segmentationService } = frame.contentWindow.services, segmentation = segmentationService.getSegmentation("1");
      const voxels = segmentation ? segmentationService.getLabelmapVolume("1").voxelManager.getCompleteScalarDataArray() : [];
      if (!voxels.some((v) => v)) throw new Error("There is no segment yet: click on a structure and press Run.");
      const names = Object.values(segmentation.segments).filter(Boolean).map((s) => ({ name: s.label, idx: s.segmentIndex }));
      const form = new FormData();
      form.append("params", JSON.stringify({ label_info: names }));
      form.append("label", new Blob([voxels]), "label.bin");
      await answerOf(await fetch(`${base}/datastore/label?image=${encodeURIComponent(place.id)}`, { method: "PUT", body: form }));
      say("Saved as the final label.");
    } catch (e) {
      say(e instanceof TypeError ? "The segments could not be read, or the server does not answer." : e.message, true);
    } finally {
      save.disabled = false;
    }
  }

  frame.addEventListener("load", () => {
    connected = false;
    const shown = new URLSearchParams(frame.contentWindow.location.search).get("StudyInstanceUIDs");
    if (shown && shown !== study) {
      clearInterval(timer);
      for (const id of ["where", "dice", "reason"]) write(id, "");
      return say("Another study was opened here: Next slice goes on.");
    }
    goThere();
  });
  button.addEventListener("click", next);
  save.addEventListener("click", submit);
  show();
  // The panel reads its server from this cookie; OHIF writes it for the folder of its own pages, so it must be set there.
  document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + base + "/")}; path=${base}/ohif; SameSite=Lax`;
  frame.src = `${base}/ohif/monai-label?StudyInstanceUIDs=${encodeURIComponent(study)}`;
})();
