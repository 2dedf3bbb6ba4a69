// The page around OHIF: opens it at a slice, follows clicks, and connects the bar's buttons and the keyboard.

import { Annotator } from "./annotator.js";
import { OptionsForm } from "./options_form.js";
import { Place } from "./place.js";
import { annotatedSlices } from "./prompts.js";
import { Saving } from "./saving.js";
import { Server } from "./server.js";
import { Strip } from "./strip.js";
import { StructureList } from "./structure_list.js";
import { TOOLS, Viewer } from "./viewer.js";

const READY_TICK_MS = 100, LOADING = "Loading …"; // The text of the template.
const KEYS = {
  "ctrl+z": "undo", "ctrl+y": "redo", "ctrl+shift+z": "redo", "ctrl+s": "submit", delete: "deleteClick", backspace: "deleteClick",
  f: "inside", b: "outside", r: "box", l: "outline", p: "brush", e: "eraser", "-": "smallerBrush", "+": "largerBrush", v: "look", x: "absent", a: "accept", n: "next", "[": "previousStructure",
  "]": "nextStructure", "?": "help", o: "options", m: "enlarge", arrowup: "previousSlice", arrowdown: "nextSlice",
};

const { place: first, base } = JSON.parse(document.getElementById("place").textContent);
const element = (id) => document.getElementById(id);
const frame = element("ohif");
const viewer = new Viewer(frame), server = new Server(base, first.SeriesInstanceUID);
const place = new Place(viewer, server, first, report);
const state = server.state(); // Asked for while OHIF loads, because it fails at once if the image cannot be read.
const list = new StructureList(element("structures"), {
  choose: (structure) => annotator.select(structure),
  make: (name) => annotator.select(annotator.structureNamed(name)),
});
const strip = new Strip(element("slices"), element("volume-dice"), (t) => { place.stop(); viewer.goToSlice(t, proposedPoint(t)); });
const saving = new Saving(server, element("changes"), report);
const options = new OptionsForm(element("options"), (chosen) => annotator?.setOptions(chosen));
let annotator = null, waiting = null, hasGivenUp = false; // The annotator works on the present label map: a frame that is loaded anew gets another.

function report(text, isError = false) {
  element("message").textContent = text;
  element("message").title = text;
  element("message").className = isError ? "bad" : "";
  element("retry").hidden = !(isError && annotator?.failed);
}

const ACTIONS = {
  undo: () => annotator.undo(),
  redo: () => annotator.redo(),
  deleteClick: () => annotator.deleteLastMark(),
  clear: () => annotator.clear(),
  absent: () => annotator.markAbsent(),
  accept: () => annotator.accept(),
  retry: () => annotator.retry(),
  submit: () => saving.submit(),
  next: () => goToNext(),
  ...Object.fromEntries(Object.keys(TOOLS).map((name) => [name, () => setTool(name)])),
  smallerBrush: () => viewer.scaleBrush(0.8),
  largerBrush: () => viewer.scaleBrush(1.25),
  previousStructure: () => step(-1),
  nextStructure: () => step(1),
  previousSlice: () => strip.step(-1),
  nextSlice: () => strip.step(1),
  enlarge: () => viewer.toggleOneView(),
  options: () => element("options").showModal(),
  help: () => element("help").showModal(),
};

// Runs an action, which a button or a key has asked for, unless OHIF is not ready.
function act(name) {
  if (!annotator && !["help", "next"].includes(name)) return report("OHIF is still loading the image.");
  ACTIONS[name]();
}

function setTool(name) {
  if (name === "inside" || name === "outside") annotator.isInside = name === "inside";
  viewer.setTool(name);
  showTools();
}

function showTools() {
  for (const name of Object.keys(TOOLS)) {
    const isClick = name === "inside" || name === "outside";
    const isOn = viewer.hasTool(name) && (!isClick || annotator.isInside === (name === "inside"));
    element(name).setAttribute("aria-pressed", isOn);
  }
}

function step(by) {
  const { structures, active } = annotator, count = structures.length;
  annotator.select(structures[(structures.indexOf(active) + by + count) % count]);
}

async function goToNext() {
  element("next").disabled = true;
  try {
    const answer = await place.goToNext();
    const structure = answer && annotator?.structures.find((s) => s.name === answer.label);
    if (structure) annotator.select(structure);
  } catch (e) {
    report(e.message, true);
  } finally {
    element("next").disabled = false;
  }
}

function show() {
  const { active, structures } = annotator;
  list.show(structures, active);
  strip.show(active, annotatedSlices(active.prompts, viewer.axis));
  showTools();
  showSlice();
  document.body.dataset.busy = Boolean(annotator.running);
}

// Shows which slice is in view, and what is known of it. What the link to this page said of a slice counts until there is something newer.
function showSlice() {
  if (!annotator) return;
  const { active, isReversed } = annotator, t = viewer.currentSlice();
  const fileSlice = isReversed && viewer.axis === 2 ? viewer.sliceCount - 1 - t : t;
  strip.mark(t);
  const known = { label: active.name, dice: active.dice?.[t], reason: t === active.proposed ? active.reason : "" };
  if (annotatedSlices(active.prompts, viewer.axis).includes(t)) known.reason = "This slice is annotated.";
  const isPlace = place.current.slice === fileSlice && known.dice == null && !known.reason;
  if (isPlace) Object.assign(known, { dice: place.current.expected_dice, reason: place.current.reason });
  const plane = viewer.planeName();
  place.write({ ...known, where: `${plane} slice ${strip.numberOf(t)} of ${viewer.sliceCount} (voxel slice ${fileSlice})` });
}

async function start() {
  const fresh = new Annotator(viewer, server, { report, onChange: show });
  let problem = "";
  const readSaved = server.savedLabel().catch((e) => { problem = e.message; return null; });
  const [known, saved, config] = await Promise.all([state, readSaved, server.options()]);
  fresh.start(known);
  fresh.reopen(saved);
  fresh.keepOthers = element("keep-others").checked;
  annotator = saving.annotator = fresh;
  strip.start(viewer.slicesInOrder());
  options.start(config);
  viewer.followCamera(showSlice);
  viewer.window.addEventListener("keydown", onKey, true);
  viewer.closeSidePanels();
  annotator.select(annotator.structures.find((s) => s.name === first.label) || annotator.structures[0]);
  setTool("inside");
  document.body.dataset.ready = "true";
  if (problem) report(problem, true);
  else if (element("message").textContent === LOADING) report("");
}

const proposedPoint = (t) => (t === annotator.active.proposed ? annotator.active.proposedPoint : null);

function onKey(event) {
  if (event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog")) return;
  const isLetter = /^[a-z]$/i.test(event.key); // Other characters need the Shift key on some keyboards only.
  const name = `${event.ctrlKey || event.metaKey ? "ctrl+" : ""}${event.shiftKey && isLetter ? "shift+" : ""}${event.key.toLowerCase()}`;
  if (!(name in KEYS) || event.altKey) return;
  event.preventDefault();
  event.stopPropagation(); // OHIF has other meanings for some of them
  act(KEYS[name]);
}

// Says why the image cannot be annotated, instead of waiting for OHIF.
function giveUp(error) {
  hasGivenUp = true;
  clearInterval(waiting);
  place.hide();
  report(error.message, true);
}

function waitAndStart() {
  clearInterval(waiting);
  waiting = setInterval(() => {
    if (!place.isConnected || !viewer.isReady()) return;
    clearInterval(waiting);
    start().catch(giveUp);
  }, READY_TICK_MS);
}

state.catch(giveUp);

frame.addEventListener("load", () => {
  if (hasGivenUp) return;
  place.isConnected = false;
  annotator = saving.annotator = null;
  clearInterval(waiting);
  const openStudy = new URLSearchParams(frame.contentWindow.location.search).get("StudyInstanceUIDs");
  if (openStudy && openStudy !== first.StudyInstanceUID) {
    place.hide();
    return report("Another study was opened here: Next slice goes on.");
  }
  place.goThere();
  waitAndStart();
});
for (const button of document.querySelectorAll("button[data-action]")) button.addEventListener("click", () => act(button.dataset.action));
element("keep-others").addEventListener("change", (e) => { if (annotator) annotator.keepOthers = e.target.checked; });
window.addEventListener("keydown", onKey, true);
server.stayLoggedIn();
place.show();
// The panel reads the server's address from this cookie. OHIF sets it for the path of its own pages, so it must be set for that path.
document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + base + "/")}; path=${base}/ohif; SameSite=Lax`;
frame.src = `${base}/ohif/monai-label?StudyInstanceUIDs=${encodeURIComponent(first.StudyInstanceUID)}`;
