// The options of the model, as the server offers them: a list is a choice, a boolean a tick box, everything else a text.

export class OptionsForm {
  // `onChange(options)` is called with the options that differ from what the server offered.
  constructor(dialog, onChange) {
    this.dialog = dialog;
    this.onChange = onChange;
    this.defaults = {};
    dialog.addEventListener("close", () => onChange(this.chosen()));
  }

  // Makes a row for each option: {name: list, boolean, number or text}. The slicing axis stays as it is, because prompts go by it.
  start(config) {
    this.fields = new Map(Object.entries(config).filter(([name]) => name !== "axis").map(([name, value]) => [name, fieldFor(value)]));
    for (const [name, field] of this.fields) this.defaults[name] = valueOf(field);
    this.dialog.querySelector("table").replaceChildren(...[...this.fields].map(([name, field]) => {
      const row = document.createElement("tr"), label = document.createElement("label");
      field.id = `option-${name}`;
      label.htmlFor = field.id;
      label.textContent = name;
      row.insertCell().append(label);
      row.insertCell().append(field);
      return row;
    }));
  }

  chosen() {
    const pairs = [...this.fields].map(([name, field]) => [name, valueOf(field)]);
    return Object.fromEntries(pairs.filter(([name, value]) => value !== this.defaults[name]));
  }
}

function fieldFor(value) {
  if (Array.isArray(value)) {
    const select = document.createElement("select");
    select.append(...value.map((choice) => new Option(choice, choice)));
    return select;
  }
  const input = document.createElement("input");
  if (typeof value === "boolean") Object.assign(input, { type: "checkbox", checked: value });
  else input.value = value;
  return input;
}

const valueOf = (field) => (field.type === "checkbox" ? field.checked : field.value);
