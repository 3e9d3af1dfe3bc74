"use strict";
// The gallery: pictures from sheets, a what-if threshold, filters, keyboard. Draws only what can be seen.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { rows, threshold: calibrated, median } = data;
  const nRows = rows.id.length;
  const [side, nColumns, nPerSheet] = data.sheet;
  const [displayLow, displayHigh] = data.scale;
  const calibratedLut = Uint8Array.from(atob(data.lut), (c) => c.charCodeAt(0)); // 256 x (red, green, blue, opacity)
  const BATCH = 120;
  const N_PRINTED = 48;

  let threshold = calibrated;
  let lut = calibratedLut;
  let order = []; // rows in the current selection
  let tiles = []; // buttons of the first tiles.length entries of order
  const visible = new Set();

  // ---- pictures ----------------------------------------------------------------------------------------------

  const sheets = new Map();

  async function decode(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  }

  function pixelsOf(image) {
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height); // data: red, green, blue and opacity of every pixel
  }

  function sheet(k) {
    if (!sheets.has(k)) {
      const both = ["thumbnails-", "maps-"].map((name) => decode($(name + k).textContent).then(pixelsOf));
      sheets.set(k, Promise.all(both));
    }
    return sheets.get(k);
  }

  async function paint(canvas, row, layer) {
    const place = rows.thumbnail[row];
    if (place < 0) return;
    const [images, maps] = await sheet(Math.floor(place / nPerSheet));
    const inSheet = place % nPerSheet;
    const left = (inSheet % nColumns) * side;
    const top = Math.floor(inSheet / nColumns) * side;
    const [height, width] = rows.shape[row];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true }); // only ever written by the processor
    const out = context.createImageData(width, height);
    for (let y = 0, o = 0; y < height; y++) {
      for (let x = 0, i = (top + y) * images.width + left; x < width; x++, i++, o += 4) {
        const c = 4 * maps.data[4 * i];
        const opacity = layer === "image" ? 0 : layer === "map" ? 1 : lut[c + 3] / 255;
        for (let k = 0; k < 3; k++) out.data[o + k] = images.data[4 * i + k] * (1 - opacity) + lut[c + k] * opacity;
        out.data[o + 3] = 255;
      }
    }
    context.putImageData(out, 0, 0);
  }

  // The scale follows the threshold: 0 stays the typical normal, 1 becomes the what-if threshold.
  function lutFor(value) {
    const scale = (value - median) / (calibrated - median);
    if (value === calibrated || median === null || !Number.isFinite(scale)) return calibratedLut;
    const moved = new Uint8Array(calibratedLut.length);
    for (let code = 0; code < 256; code++) {
      const display = (displayLow + (code / 255) * (displayHigh - displayLow)) / Math.max(scale, 0.02);
      const clipped = Math.min(Math.max(display, displayLow), displayHigh);
      const target = Math.round(((clipped - displayLow) / (displayHigh - displayLow)) * 255);
      moved.set(calibratedLut.subarray(4 * target, 4 * target + 4), 4 * code);
    }
    return moved;
  }

  function paintTile(tile) {
    paint(tile.querySelector("canvas"), Number(tile.dataset.row), $("layer").value);
  }

  // Those on the screen, and those that paper shows without anybody having scrolled there.
  function repaint() {
    new Set([...visible, ...tiles.slice(0, N_PRINTED)]).forEach(paintTile);
  }

  // ---- decisions ---------------------------------------------------------------------------------------------

  const isWhatIf = () => threshold !== calibrated; // without a calibrated threshold both stay null

  function decision(row) {
    if (!isWhatIf()) return rows.decision[row];
    return rows.score[row] >= threshold ? "anomalous" : "normal";
  }

  function isWrong(row) {
    if (threshold === null) return false;
    return rows.label[row] !== "" && (rows.label[row] === "anomalous") !== (decision(row) === "anomalous");
  }

  // Sorted scores: how many are at or above the threshold.
  function countFlagged(scores) {
    let low = 0;
    let high = scores.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (scores[middle] < threshold) low = middle + 1;
      else high = middle;
    }
    return scores.length - low;
  }

  const formatted = (n) => n.toLocaleString("en-US");

  function percent(part, whole) {
    const value = (100 * part) / whole;
    const nearestEnd = Math.min(value, 100 - value);
    const nDigits = Number.isInteger(value) || (value >= 10 && value <= 99) ? 0 : nearestEnd >= 0.1 ? 1 : 3;
    return `${value.toFixed(nDigits)}\u00a0%`;
  }

  function number(value) {
    if (Math.abs(value) >= 1e4 && Math.abs(value) < 1e9) return formatted(Math.round(value));
    return String(Number(value.toPrecision(4)));
  }

  function ratesText() {
    const { normal, anomalous, "": unlabelled } = data.scores;
    const part = (scores, verb, noun) => {
      const n = countFlagged(scores);
      return scores.length ? `${verb} ${formatted(n)} of ${formatted(scores.length)} ${noun} (${percent(n, scores.length)})` : "";
    };
    const parts = [part(anomalous, "finds", "anomalous"), part(normal, "flags", "normal"), part(unlabelled, "flags", "without label")];
    return parts.filter(Boolean).join(", ");
  }

  // ---- tiles -------------------------------------------------------------------------------------------------

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function makeTile(row) {
    const tile = element("button", "tile");
    tile.type = "button";
    tile.tabIndex = -1;
    tile.dataset.row = row;
    tile.title = rows.id[row];
    const frame = element("span", "frame");
    const canvas = element("canvas", "");
    canvas.setAttribute("aria-hidden", "true");
    [canvas.height, canvas.width] = rows.shape[row] || [1, 1];
    frame.append(canvas);
    tile.append(frame, element("span", "name", rows.id[row]), element("span", "facts-line"));
    mark(tile);
    return tile;
  }

  function mark(tile) {
    const row = Number(tile.dataset.row);
    const decided = decision(row);
    if (tile.dataset.decision === decided) return;
    tile.dataset.decision = decided;
    tile.toggleAttribute("data-wrong", isWrong(row));
    const wrong = !isWrong(row) ? "" : rows.label[row] === "anomalous" ? "missed" : "false alarm";
    const kind = wrong || rows.defect[row] || rows.label[row];
    tile.lastChild.textContent = number(rows.score[row]) + (kind ? " · " + kind : "");
    const label = rows.label[row] ? `labelled ${rows.label[row]}` : "without label";
    tile.setAttribute("aria-label", `${rows.id[row]}, ${label}, score ${number(rows.score[row])}, decided ${decided.replace("_", " ")}`);
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        visible.add(target);
        paintTile(target);
      } else visible.delete(target);
    }
  }, { rootMargin: "300px" });

  function showMore(upTo = tiles.length + BATCH) {
    const fresh = order.slice(tiles.length, upTo).map(makeTile);
    $("tiles").append(...fresh);
    for (const tile of fresh) watcher.observe(tile);
    tiles.push(...fresh);
    if (tiles.length && !tiles.some((tile) => tile.tabIndex === 0)) tiles[0].tabIndex = 0;
  }

  const more = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && tiles.length < order.length) {
      showMore();
      more.unobserve($("more")); // look again: the batch may not have filled the window
      more.observe($("more"));
    }
  }, { rootMargin: "800px" });

  // ---- selection ---------------------------------------------------------------------------------------------

  const extraColumns = Object.values(data.extra);
  const haystack = rows.id.map((id, row) =>
    [id, rows.path[row], rows.defect[row], rows.unit[row], rows.group[row], ...extraColumns.map((column) => column[row])]
      .join("\n").toLowerCase());

  const byName = new Intl.Collator("en", { numeric: true });
  const comparisons = {
    high: (a, b) => rows.score[b] - rows.score[a] || a - b,
    low: (a, b) => rows.score[a] - rows.score[b] || a - b,
    name: (a, b) => byName.compare(rows.id[a], rows.id[b]) || a - b,
  };

  const filterValue = (name) => ($("filter-" + name) ? $("filter-" + name).value : "");
  function select() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [label, decided, defect] = ["label", "decision", "defect"].map(filterValue);
    const wanted = (row) =>
      (!label || rows.label[row] === label) && (!decided || decision(row) === decided) &&
      (!defect || rows.defect[row] === defect) && words.every((word) => haystack[row].includes(word));
    order = [...Array(nRows).keys()].filter(wanted).sort(comparisons[$("sort").value]);
    watcher.disconnect();
    visible.clear();
    tiles = [];
    $("tiles").replaceChildren();
    showMore();
    more.unobserve($("more"));
    more.observe($("more"));
    repaint();
    $("shown").textContent = `${order.length === nRows ? "" : `${formatted(order.length)} of `}${formatted(nRows)} image${nRows === 1 ? "" : "s"}`;
  }

  // ---- what-if threshold ---------------------------------------------------------------------------------------

  // One stop between any two neighbouring scores, so that each step changes the decision of the fewest images.
  function thresholdStops() {
    const scores = [...new Set(Object.values(data.scores).flat())].sort((a, b) => a - b);
    if (!scores.length || calibrated === null) return [calibrated];
    const stops = scores.slice(1).map((score, i) => scores[i] + (score - scores[i]) / 2);
    const margin = (scores[scores.length - 1] - scores[0]) / 100 || 1;
    stops.unshift(scores[0]);
    stops.push(scores[scores.length - 1] + margin);
    // In place of its neighbour: the calibrated threshold decides these images as that stop does.
    const same = stops.findIndex((_, i) => calibrated <= (i < scores.length ? scores[i] : Infinity));
    stops[same < 0 ? stops.length - 1 : same] = calibrated;
    return stops;
  }

  const stops = thresholdStops();
  const slider = $("slider");
  slider.max = stops.length - 1;

  function setThreshold(position) {
    slider.value = position;
    threshold = stops[position];
    lut = lutFor(threshold);
    document.body.classList.toggle("what-if-on", isWhatIf());
    $("what-if-note").hidden = $("reset").hidden = !isWhatIf();
    $("threshold-value").textContent = number(threshold);
    $("rates").textContent = ratesText();
    slider.setAttribute("aria-valuetext", `${number(threshold)}${isWhatIf() ? ", what-if" : ", calibrated"}`);
    moveLine();
    tiles.forEach(mark);
    repaint();
  }

  function moveLine() {
    const line = $("what-if-line");
    const { low, high, left, width } = line.ownerSVGElement.dataset;
    const share = Math.min(Math.max((threshold - low) / (high - low), 0), 1);
    const x = Number(left) + share * width;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }

  let pending = 0;
  slider.addEventListener("input", () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => setThreshold(Number(slider.value)));
  });
  // Rebuilding the selection under a moving finger would make it jump: only once the slider rests.
  slider.addEventListener("change", () => {
    setThreshold(Number(slider.value));
    if (filterValue("decision")) select();
  });
  $("reset").addEventListener("click", () => {
    setThreshold(stops.indexOf(calibrated));
    if (filterValue("decision")) select();
    slider.focus();
  });

  // ---- large view ----------------------------------------------------------------------------------------------

  const dialog = $("large");
  let opened = -1; // place in order

  function open(place) {
    opened = place;
    const row = order[place];
    $("large-title").textContent = rows.id[row];
    $("large-pictures").replaceChildren(...largePictures(row));
    $("large-note").textContent = rows.card[row] >= 0 && isWhatIf() ? "These colours follow the calibrated threshold." : "";
    $("large-facts").replaceChildren(...facts(row).map(([name, value]) => {
      const pair = element("div", "");
      pair.append(element("dt", "", name), element("dd", "", value));
      return pair;
    }));
    if (!dialog.open) dialog.showModal();
  }

  function largePictures(row) {
    const card = rows.card[row] >= 0 && $("card-" + rows.card[row]);
    if (card) {
      const panels = card.querySelector(".panels").cloneNode(true);
      panels.querySelectorAll("[id]").forEach((copy) => copy.removeAttribute("id"));
      return [panels];
    }
    return rows.thumbnail[row] < 0 ? [] : ["image", "overlay"].map((layer) => {
      const canvas = element("canvas", "");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", layer);
      paint(canvas, row, layer);
      return canvas;
    });
  }

  function facts(row) {
    const all = [
      ["decision", decision(row).replace("_", " ") + (isWhatIf() ? " (what-if)" : "")],
      ["label", rows.label[row]], ["defect", rows.defect[row]],
      ["score", number(rows.score[row])], ["threshold", threshold === null ? "" : number(threshold)],
      ["display", rows.display[row] === null ? "" : rows.display[row].toFixed(2) + (isWhatIf() ? " (calibrated threshold)" : "")],
      ["p-value", rows.p[row] === null ? "" : number(rows.p[row])],
      ["regions", rows.regions[row] && `${rows.regions[row]} at or above ${number(rows.regions_at[row])}`],
      ["largest region", rows.region_px[row] > 0 && rows.region_px[row] + " px"],
      ["unit", rows.unit[row]], ["group", rows.group[row]], ["frame", rows.frame[row] ? String(rows.frame[row]) : ""],
      ...Object.entries(data.extra).map(([name, column]) => [name, column[row]]),
      ["path", rows.path[row]],
    ];
    return all.filter(([, value]) => value);
  }

  function focusTile(place) {
    if (place >= tiles.length) showMore(place + BATCH);
    for (const tile of tiles) if (tile.tabIndex === 0) tile.tabIndex = -1;
    tiles[place].tabIndex = 0;
    tiles[place].focus();
  }

  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (order.length) focusTile(Math.min(opened, order.length - 1)); });
  dialog.addEventListener("keydown", (event) => {
    const next = opened + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0);
    if (next !== opened && next >= 0 && next < order.length) {
      event.preventDefault();
      open(next);
    }
  });

  // ---- keyboard and events ---------------------------------------------------------------------------------------

  function tilesPerLine() {
    const top = tiles[0].offsetTop;
    const next = tiles.findIndex((tile) => tile.offsetTop > top);
    return next < 0 ? tiles.length : next;
  }

  $("tiles").addEventListener("keydown", (event) => {
    const place = tiles.indexOf(event.target.closest(".tile"));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -Infinity, End: Infinity };
    if (place < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const step = steps[event.key] * (event.key === "ArrowUp" || event.key === "ArrowDown" ? tilesPerLine() : 1);
    focusTile(Math.min(Math.max(place + step, 0), order.length - 1));
  });
  $("tiles").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) open(tiles.indexOf(tile));
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input[type=search], select");
    if (event.key === "/" && !isTyping && !dialog.open && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      $("search").focus();
    }
  });
  $("search").addEventListener("input", select);
  for (const id of ["filter-label", "filter-decision", "filter-defect", "sort"]) {
    if ($(id)) $(id).addEventListener("change", select);
  }
  $("layer").addEventListener("change", repaint);
  $("layer").hidden = rows.thumbnail.every((place) => place < 0);

  // Paper unfolds nothing by itself.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));

  if (calibrated === null) document.querySelector(".what-if-row").hidden = true;
  else setThreshold(stops.indexOf(calibrated));
  select();
})();
