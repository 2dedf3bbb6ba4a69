// Requests to the server, and what went wrong with them in a sentence.

export const VOLUME_MODEL = "sam2", SLICE_MODEL = "sam2_slice";

const LOGGED_OUT = "You are not logged in any more. Open the page of all volumes in another tab to log in, then go on here.";

export class Refusal extends Error {}

export class Server {
  constructor(base, image) {
    this.base = base;
    this.image = image; // SeriesInstanceUID
    this.client = clientId();
  }

  // Returns what `read(response)` returns for the response to a request, or raises Refusal with a sentence.
  async ask(path, options = {}, read = (response) => response) {
    try {
      const response = await fetch(this.base + path, { credentials: "same-origin", ...options });
      if (response.ok) return await read(response);
      if (response.status === 401) throw new Refusal(LOGGED_OUT);
      const answer = await response.json().catch(() => ({}));
      throw new Refusal(typeof answer.detail === "string" ? answer.detail : `The server answered with status ${response.status}.`);
    } catch (e) {
      if (e instanceof Refusal || e.name === "AbortError") throw e;
      throw new Refusal("The server does not answer. Nothing is lost: try again when it is back.");
    }
  }

  askJson(path, options) { return this.ask(path, options, (response) => response.json()); }

  // Where users log in: stays logged in while this page is open.
  stayLoggedIn() {
    const validity = document.cookie.match(/(?:^|; )sam2_validity=(\d+)/);
    if (!validity) return;
    const refresh = () => this.ask("/sam2/login/refresh", { method: "POST" }).catch(() => {}); // The next request says what is wrong.
    refresh();
    setInterval(refresh, Math.max(Number(validity[1]) * 500, 5000));
  }

  // Asks for the mask of a structure. Returns {mask: a box as LabelMap takes it, answer: the fields of the answer}.
  // `labelMap` is null, or a Blob with the painted slices.
  segment(model, params, labelMap, signal) {
    const form = new FormData();
    const format = { result_extension: ".nrrd", result_dtype: "uint8", result_compress: false, result_crop: true };
    form.append("params", JSON.stringify({ ...params, ...format, client_id: this.client }));
    if (labelMap) form.append("label", labelMap, "painted.nrrd");
    return this.ask(`/infer/${model}?image=${encodeURIComponent(this.image)}`, { method: "POST", body: form, signal }, async (response) => {
      const parts = await response.formData();
      const answer = JSON.parse(await textOf(parts.get("params")));
      const { size, voxels } = parseNrrd(new Uint8Array(await parts.get("image").arrayBuffer()));
      return { answer, mask: { offset: answer.result_offset, size, voxels } };
    });
  }

  // Returns the options of the model with their choices.
  async options() { return (await this.askJson("/info/")).models[VOLUME_MODEL].config; }

  state() { return this.askJson(`/sam2/ohif/state?image=${encodeURIComponent(this.image)}`); }

  // Returns {voxels, names: {value: name}} of the saved label, or null if there is none.
  savedLabel() {
    return this.ask(`/sam2/ohif/label?image=${encodeURIComponent(this.image)}`, {}, async (response) => {
      if (response.status === 204) return null;
      return { names: JSON.parse(response.headers.get("X-Label-Names")), voxels: new Uint8Array(await response.arrayBuffer()) };
    });
  }

  // Saves planes of voxels as the final label. Returns which structures are {new, changed, unchanged, missing}, compared with the saved one.
  // Options: preview: only compare; keep: structures that are missing stay in the label.
  async saveLabel(planes, names, options = {}) {
    const form = new FormData();
    form.append("params", JSON.stringify({ label_info: names, client_id: this.client, ...options }));
    form.append("label", new Blob(planes), "label.bin");
    return (await this.askJson(`/datastore/label?image=${encodeURIComponent(this.image)}`, { method: "PUT", body: form })).structures;
  }

  // Asks which slice to annotate next, of this image (by its id) if possible.
  nextSlice(id) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image: id, client_id: this.client }) };
    return this.askJson("/activelearning/worst_slice", options);
  }
}

// Returns the id by which the server knows this browser, from the cookie that it gives to its pages; requests of different browsers take
// turns, and their records are kept apart.
function clientId() {
  const known = document.cookie.match(/(?:^|; )sam2_client=(browser-[0-9a-f]{8,32})(?:;|$)/);
  if (known) return known[1];
  const id = `browser-${[...crypto.getRandomValues(new Uint8Array(6))].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
  document.cookie = `sam2_client=${id}; path=/; max-age=31536000; SameSite=Lax`;
  return id;
}

const textOf = (part) => (typeof part === "string" ? part : part.text());

// Returns size and voxels of an uncompressed NRRD file: the header ends with the first empty line.
function parseNrrd(bytes) {
  const text = new TextDecoder("latin1").decode(bytes.subarray(0, 4096)), end = text.indexOf("\n\n");
  const sizes = text.slice(0, end).match(/^sizes: (\d+) (\d+) (\d+)$/m);
  if (end < 0 || !sizes) throw new Refusal("The server's answer is not complete.");
  return { size: sizes.slice(1).map(Number), voxels: bytes.subarray(end + 2) };
}

// Returns an NRRD file with planes of a label map on the grid of a volume of cornerstone. `isReversed` says that the image's file counts the
// slices (k) the other way round; the server takes label maps in the order of that file only.
export async function nrrdOf(planes, volume, isReversed) {
  const { dimensions, spacing } = volume, last = dimensions[2] - 1;
  const axes = [0, 1, 2].map((a) => [...volume.direction].slice(3 * a, 3 * a + 3).map((x) => x * spacing[a]));
  let origin = [...volume.origin];
  if (isReversed) {
    origin = origin.map((x, i) => x + last * axes[2][i]);
    axes[2] = axes[2].map((x) => -x);
  }
  const vector = (v) => `(${v.join(",")})`;
  const header = [
    "NRRD0004", "type: uint8", "dimension: 3", "space: left-posterior-superior", `sizes: ${[...dimensions].join(" ")}`,
    `space directions: ${axes.map(vector).join(" ")}`, "kinds: domain domain domain", "encoding: gzip", `space origin: ${vector(origin)}`, "", "",
  ].join("\n");
  const ordered = isReversed ? [...planes].reverse() : planes;
  const packed = new Response(new Blob(ordered).stream().pipeThrough(new CompressionStream("gzip")));
  return new Blob([header, await packed.arrayBuffer()]);
}
