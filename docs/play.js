"use strict";
// The models of comparison/ in a browser: first their mathematics, then the page.
// A state is a flat Float64Array, x0, y0, x1, y1, ... A predictor is called (x, signal, noise)
// and returns its estimate of eps in x = signal x_0 + noise eps. A process is two arrays, the
// smallest noise first; its row -1 is the datum, of signal 1 and noise 0. A sampler is a
// generator of states, the start first and the datum last, given `normal()` for its noise.

// Randomness: the generator mulberry32 (Ettinger), and Box and Muller's normals of it

function randomness(state) {
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 2 ** 32; // between 0 and 1, never 0
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

// Processes

const spaced = (first, last, count) =>
  Float64Array.from({ length: count }, (_, k) => first + ((last - first) * k) / (count - 1));

function fromBetas(betas) {
  let bar = 1;
  const bars = betas.map((beta) => (bar *= 1 - beta));
  return { signal: bars.map(Math.sqrt), noise: bars.map((a) => Math.sqrt(1 - a)) };
}

const linear = () => fromBetas(spaced(1e-4, 0.02, 1000));
const scaledLinear = (end) => fromBetas(spaced(0.02, Math.sqrt(end), 30).map((root) => root ** 2));

const exploding = (noise) => ({ signal: noise.map(() => 1), noise });

const geometric = (levels) => exploding(spaced(Math.log(0.01), Math.log(5), levels).map(Math.exp));

// As many levels of the same ratios noise / signal, evenly in their seventh roots.
function evenly({ signal, noise }, levels, rho = 7) {
  const [low, high] = [0, noise.length - 1].map((t) => (noise[t] / signal[t]) ** (1 / rho));
  return exploding(spaced(low, high, levels).map((root) => root ** rho));
}

function respaced({ signal, noise }, kept) {
  const rows = spaced(0, noise.length - 1, kept).map(Math.round);
  return { signal: rows.map((t) => signal[t]), noise: rows.map((t) => noise[t]) };
}

const at = ({ signal, noise }, t) => (t < 0 ? [1, 0] : [signal[t], noise[t]]);

// x_t from x_{t-1}: what it is multiplied by, and the deviation of what is added.
function stepThere(process, t) {
  const [signal, noise] = at(process, t), [signalBefore, noiseBefore] = at(process, t - 1);
  const kept = signal / signalBefore;
  return [kept, Math.sqrt(noise ** 2 - (kept * noiseBefore) ** 2)];
}

function* forward(process, x, normal) {
  yield x;
  for (let t = 0; t < process.noise.length; t++) {
    const [kept, added] = stepThere(process, t);
    x = x.map((v) => kept * v + added * normal());
    yield x;
  }
  return x;
}

// Predictors

const single = (datum) => (x, signal, noise) => x.map((v, i) => (v - signal * datum[i]) / noise);

function exact(data) {
  const n = data.length / 2, away = new Float64Array(n);
  return (x, signal, noise) => {
    const eps = new Float64Array(x.length), scale = 1 / (2 * noise * noise);
    for (let i = 0; i < x.length; i += 2) {
      let least = Infinity, total = 0, sumX = 0, sumY = 0;
      for (let k = 0; k < n; k++) {
        const dx = x[i] - signal * data[2 * k], dy = x[i + 1] - signal * data[2 * k + 1];
        away[k] = (dx * dx + dy * dy) * scale;
        if (away[k] < least) least = away[k];
      }
      for (let k = 0; k < n; k++) {
        if (away[k] - least > 40) continue; // exp(-40) is below what a sum of 1 can tell
        const weight = Math.exp(least - away[k]);
        total += weight;
        sumX += weight * data[2 * k];
        sumY += weight * data[2 * k + 1];
      }
      eps[i] = (x[i] - (signal * sumX) / total) / noise;
      eps[i + 1] = (x[i + 1] - (signal * sumY) / total) / noise;
    }
    return eps;
  };
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// The committed network, whose output is the velocity, as a predictor.
function network(text, width = 128, directions = 128, levels = 4) {
  const floats = Float64Array.from(new Float32Array(bytes(text).buffer));
  let taken = 0;
  const take = (count) => floats.subarray(taken, (taken += count));
  const waves = take(2 * directions), levelWaves = take(levels), angles = directions + levels;
  const sizes = [2 + 2 * angles, width, width, width, 2], layers = [];
  for (let k = 0; k < 4; k++) layers.push([take(sizes[k] * sizes[k + 1]), take(sizes[k + 1])]);
  return (x, signal, noise) => {
    const scale = Math.hypot(signal, noise), count = x.length / 2, wide = sizes[0];
    const level = Math.log(noise / signal);
    let h = new Float64Array((count + (count % 2)) * wide);
    for (let i = 0, row = 0; i < count; i++, row += wide) {
      const u = (h[row] = x[2 * i] / scale), v = (h[row + 1] = x[2 * i + 1] / scale);
      for (let k = 0; k < angles; k++) {
        const wave = k < directions;
        const angle = wave ? u * waves[k] + v * waves[directions + k]
          : level * levelWaves[k - directions];
        h[row + 2 + k] = Math.sin(angle);
        h[row + 2 + angles + k] = Math.cos(angle);
      }
    }
    layers.forEach(([weight, bias], k) => {
      h = affine(h, weight, bias, sizes[k]);
      if (k < 3) for (let i = 0; i < h.length; i++) h[i] /= 1 + Math.exp(-h[i]);
    });
    return x.map((v, i) => ((noise * v) / scale + signal * h[i]) / scale);
  };
}

// Rows of h, an even number, times rows of weight: two by two is twice as fast as one by one.
function affine(h, weight, bias, wide) {
  const outputs = bias.length, result = new Float64Array((h.length / wide) * outputs);
  for (let a = 0, r = 0; a < h.length; a += 2 * wide, r += outputs) {
    for (let o = 0; o < outputs; o += 2, r += 2) {
      const b = a + wide, p = o * wide, q = p + wide;
      let ap = bias[o], aq = bias[o + 1], bp = ap, bq = aq;
      for (let k = 0; k < wide; k++) {
        ap += h[a + k] * weight[p + k];
        aq += h[a + k] * weight[q + k];
        bp += h[b + k] * weight[p + k];
        bq += h[b + k] * weight[q + k];
      }
      [result[r], result[r + 1]] = [ap, aq];
      [result[r + outputs], result[r + outputs + 1]] = [bp, bq];
    }
  }
  return result;
}

// Samplers

function* ddpm(predictor, process, x, normal) {
  yield x;
  for (let t = process.noise.length - 1; t >= 0; t--) {
    const [signal, noise] = at(process, t), [kept, added] = stepThere(process, t);
    const eps = predictor(x, signal, noise), part = added ** 2 / noise;
    x = x.map((v, i) => (v - part * eps[i]) / kept + (t > 0 ? added * normal() : 0));
    yield x;
  }
}

function* ddim(predictor, process, x) {
  yield x;
  for (let t = process.noise.length - 1; t >= 0; t--) {
    const [signal, noise] = at(process, t), [signalBefore, noiseBefore] = at(process, t - 1);
    const eps = predictor(x, signal, noise);
    x = x.map((v, i) => (signalBefore * (v - noise * eps[i])) / signal + noiseBefore * eps[i]);
    yield x;
  }
}

// Heun's method along the probability flow, where signal is 1; at last one step of Euler's.
function* flow(predictor, process, y) {
  yield y;
  for (let t = process.noise.length - 1; t >= 0; t--) {
    const [, here] = at(process, t), [, there] = at(process, t - 1);
    const eps = predictor(y, 1, here), euler = y.map((v, i) => v + (there - here) * eps[i]);
    if (there > 0) {
      const then = predictor(euler, 1, there);
      y = y.map((v, i) => v + ((there - here) * (eps[i] + then[i])) / 2);
    } else y = euler;
    yield y;
  }
}

const RATE = 0.2;
// Annealed, where signal is 1; at last the estimate of x_0.
function* langevin(predictor, process, x, normal, steps) {
  yield x;
  for (let t = process.noise.length - 1; t >= 0; t--) {
    const noise = process.noise[t], added = Math.sqrt(RATE) * noise;
    for (let k = 0; k < steps; k++) {
      const eps = predictor(x, 1, noise);
      x = x.map((v, i) => v - ((RATE * noise) / 2) * eps[i] + added * normal());
      yield x;
    }
  }
  const eps = predictor(x, 1, process.noise[0]);
  yield x.map((v, i) => v - process.noise[0] * eps[i]);
}

// The law of a drawing's points, and how far samples are from it

function lawOf(points) {
  const n = points.length / 2, centre = [0, 0];
  points.forEach((v, i) => (centre[i % 2] += v / n));
  const shifted = points.map((v, i) => v - centre[i % 2]);
  const scale = Math.sqrt(shifted.reduce((sum, v) => sum + v * v, 0) / points.length);
  return { data: shifted.map((v) => v / scale), centre, scale, pixel: 6 / 150 / scale };
}

function draw({ data }, count, uniform) {
  let k;
  return Float64Array.from({ length: 2 * count }, (_, i) =>
    data[i % 2 ? k + 1 : (k = 2 * Math.floor((uniform() * data.length) / 2))]);
}

function shareNear(these, those, within) {
  let near = 0;
  for (let i = 0; i < these.length; i += 2) {
    let k = 0;
    const away = () => (these[i] - those[k]) ** 2 + (these[i + 1] - those[k + 1]) ** 2;
    while (k < those.length && away() > within * within) k += 2;
    if (k < those.length) near++;
  }
  return (2 * near) / these.length;
}

function sliced(samples, points, directions = 32) {
  let sum = 0;
  for (let k = 0; k < directions; k++) {
    const angle = (Math.PI * k) / directions, cos = Math.cos(angle), sin = Math.sin(angle);
    const along = (x) =>
      Float64Array.from({ length: x.length / 2 }, (_, i) => x[2 * i] * cos + x[2 * i + 1] * sin);
    const a = along(samples).sort(), b = along(points).sort();
    let i = 0, j = 0, here = 0;
    while (i < a.length || j < b.length) {
      const share = Math.abs(i / a.length - j / b.length);
      const next = j === b.length || a[i] <= b[j] ? a[i++] : b[j++];
      sum += share * (next - here);
      here = next;
    }
  }
  return sum / directions;
}

// On drawing and covered, in per cent, and sliced, in pixels.
function measure(samples, { data, pixel }) {
  const within = 1.001 * pixel;
  const shares = [shareNear(samples, data, within), shareNear(data, samples, within)];
  return [...shares.map((share) => 100 * share), sliced(samples, data) / pixel];
}

// The page

const PARTICLES = 1000, MOST = 2500, GRID = 150; // the pad's, as main.py's
const SIZE = 1000, VIEW = 9.2, UNIT = SIZE / VIEW; // the picture's, in pixels, and as main.py's
const WAYS = {
  ddpm: { sampler: ddpm, process: (steps) => respaced(linear(), steps) },
  ddim: { sampler: ddim, process: (steps) => respaced(linear(), steps) },
  flow: { sampler: flow, process: (steps) => evenly(linear(), steps) },
  langevin: { sampler: langevin, process: (steps) => geometric(Math.min(steps, 10)) },
};
const [view, time, step, about, play, settings, sketch, pad, clear, reseed] =
  ["view", "time", "step", "about", "play", "settings", "sketch", "pad", "clear", "reseed"]
    .map((id) => document.getElementById(id));
const fields = settings.elements, ink = pad.getContext("2d", { willReadFrequently: true });
const learned = network(NETWORK);
const face = Float64Array.from(bytes(DRAWING), (v, i) => v / 25 - (i % 2 ? 2 : 3));
let own, scene, playing = false, wanted = 0, shown = -1, measured = -1, before = 0, told = 0;

function build() {
  if (!fields.seed.checkValidity()) fields.seed.value = 1;
  const cloud = fields.datum.value === "cloud", mine = fields.drawing.value === "own";
  [sketch.hidden, fields.points.hidden, fields.cloud.hidden] = [!mine, cloud, !cloud];
  fields.scores.hidden = cloud || mine;
  [scene, shown, measured] = [null, -1, -1];
  if (mine && !own) {
    step.textContent = "Draw on the pad: its points become the data.";
    view.width = SIZE; // which clears it
    for (const old of [about, ...document.querySelectorAll("tbody td")]) old.textContent = "";
    return go(false, 0);
  }
  const points = mine ? own : face, law = lawOf(points);
  const name = cloud ? "ddpm" : fields.way.value, steps = Number(fields.steps.value);
  const process = cloud ? scaledLinear(Number(fields.beta.value)) : WAYS[name].process(steps);
  const { uniform, normal } = randomness(Number(fields.seed.value));
  const x_0 = cloud ? points : draw(law, PARTICLES, uniform);
  const trained = !fields.scores.hidden && fields.score.value === "network";
  const predictor = cloud ? single(x_0) : trained ? learned : exact(law.data);
  const T = process.noise.length, each = name === "langevin" ? steps / T : 1;
  const total = T + 1 + T * each + (name === "langevin" ? 2 : 1);
  function* path() {
    let x = yield* forward(process, x_0, normal);
    const noise = cloud ? 1 : process.noise[T - 1];
    if (fields.start.value === "noise") x = x.map(() => noise * normal());
    yield* WAYS[name].sampler(predictor, process, x, normal, each);
  }
  // The row that a state is at.
  const row = (index) => index <= T ? index - 1 : index === total - 1 ? -1
    : Math.max(0, T - 1 - Math.floor((index - T - 1) / each));
  // How wide a state is: one of Langevin's, as the level was that it comes from.
  const late = (index) => name === "langevin" && index > T && index < total - 1 ? 1 : 0;
  const width = (index) => Math.hypot(...at(process, row(index - late(index))));
  // A state in the law's units, reduced by its width.
  const seen = (x, wide) =>
    x.map((v, i) => cloud ? (v / wide - law.centre[i % 2]) / law.scale : v / wide);
  scene = { law, cloud, mine, name, trained, process, predictor, T, each, total, row, width, seen,
    path: path(), states: [], ranges: [], others: randomness(0).uniform };
  time.max = total - 1;
}

const digits = (value) => Number(value.toPrecision(2)).toString();
const times = (k, what) => (digits(k) === "1" ? what : `${digits(k)} ${what}`);

// The step that leads on from a state.
function words(index) {
  const { cloud, name, process, T, each, total, row } = scene, t = row(index);
  const [signal, noise] = at(process, t), [s, n] = at(process, t - 1);
  const mix = times(signal, "x₀") + (t < 0 ? "" : ` + ${times(noise, "ε")}`);
  if (index === total - 1) return "The way back ends here.";
  if (index === T) return `x = ${mix}. The way there ends here; the way back begins next.`;
  const [kept, added] = stepThere(process, index < T ? t + 1 : t), z = times(added, "z");
  if (index < T) return `x = ${mix}. Next, noise is added: ${times(kept, "x")} + ${z}.`;
  const way = {
    ddpm: `(x − ${times(added ** 2 / noise, "ε̂")}) / ${digits(kept)}` +
      (t > 0 ? ` + ${z}, z being new noise.` : ", without new noise at last."),
    ddim: `${times(s, "x̂₀")} + ${times(n, "ε̂")}, without new noise; ` +
      `x̂₀ = (x − ${times(noise, "ε̂")}) / ${digits(signal)}.`,
    flow: `x − ${times(noise - n, t > 0 ? "(ε̂ here + ε̂ there) / 2" : "ε̂")}; no noise.`,
    langevin: index === total - 2 ? `x − ${times(noise, "ε̂")}.`
      : `x − ${times((RATE / 2) * noise, "ε̂")} + ${times(Math.sqrt(RATE) * noise, "z")}, ` +
        `z being new noise (at each level ${each} ×).`,
  };
  const guess = cloud ? "ε̂ follows from the one x₀" : "the score guesses ε̂";
  return `x is taken for ${mix}. Next, ${guess}, and x becomes ${way[name]}`;
}

function notes() {
  const { cloud, mine, name, trained } = scene, still = name === "ddim" || name === "flow";
  const said = [cloud ? "The drawing is the one datum: from any start it comes back."
    : trained ? "The network learned its score from the face's points, noised."
      : "The exact score knows the drawing's points, and can only return them."];
  if (mine && !cloud) said.push("The network knows the face alone.");
  if (fields.arrows.checked) said.push("Arrows, to their dots: a third of the noise ε̂ taken off.");
  if (fields.colours.checked) said.push("Colour: where a point ends, seen from the centre.", cloud
    ? "Each ends at its own place." : still ? "Without new noise, neighbours end near each other."
    : `With new noise, the start decides the end ${name === "ddpm" ? "hardly" : "in part"}.`);
  return said.join(" ");
}

function render(index) {
  const { law, cloud, process, predictor, T, states, total, row, width, seen } = scene;
  const t = row(index), [signal, noise] = at(process, t), wide = width(index);
  const context = view.getContext("2d"), coloured = fields.colours.checked, dot = 4;
  const left = (u) => (law.centre[0] + law.scale * u + VIEW / 2) * UNIT;
  const top = (v) => (VIEW / 2 + 0.75 - law.centre[1] - law.scale * v) * UNIT;
  context.fillStyle = coloured ? "#141414" : "#ffd90f";
  context.fillRect(0, 0, SIZE, SIZE);
  if (fields.arrows.checked && t >= 0) {
    const across = (i) => (VIEW * ((i + 0.5) / 20 - 0.5)) / law.scale;
    const grid = Float64Array.from({ length: 800 }, (_, i) => wide *
      (i % 2 ? across(Math.floor(i / 40)) : across((i / 2) % 20)));
    const from = cloud ? states[index] : grid, eps = predictor(from, signal, noise);
    const third = from.map((v, i) => v - (noise * eps[i]) / 3);
    const starts = seen(from, wide), ends = seen(third, wide);
    context.strokeStyle = context.fillStyle = coloured ? "#606060" : "#8a7400";
    context.lineWidth = 2;
    for (let i = 0; i < from.length; i += cloud ? 24 : 2) {
      context.beginPath();
      context.moveTo(left(starts[i]), top(starts[i + 1]));
      context.lineTo(left(ends[i]), top(ends[i + 1]));
      context.stroke();
      context.fillRect(left(ends[i]) - 3.5, top(ends[i + 1]) - 3.5, 7, 7);
    }
  }
  const x = seen(states[index], wide), end = coloured && states[total - 1];
  const ends = end && seen(end, 1);
  context.fillStyle = coloured ? "#8f8f8f" : "#000";
  for (let i = 0; i < x.length; i += 2) {
    if (ends) context.fillStyle = `hsl(${Math.atan2(ends[i + 1], ends[i])}rad 90% 62%)`;
    context.fillRect(left(x[i]) - dot, top(x[i + 1]) - dot, 2 * dot, 2 * dot);
  }
  context.fillStyle = coloured ? "#fff" : "#000";
  context.font = "45px system-ui, sans-serif";
  const shrunk = wide > 1.005 ? `, shown / ${digits(wide)}` : "";
  context.fillText(t < 0 ? index ? "t = 0" : "x₀" : `t = ${t + 1} of ${T}${shrunk}`, 25, SIZE - 30);
}

function tell(index, now) {
  const { law, cloud, states, width, seen, others, ranges } = scene;
  const values = measure(seen(states[index], width(index)), law);
  if (ranges.length < 10) ranges.push(measure(draw(law, PARTICLES, others), law));
  document.querySelectorAll("tbody tr").forEach((line, k) => {
    const found = ranges.map((drawn) => drawn[k]), print = (v) => v.toFixed(k < 2 ? 0 : 2);
    const [low, high] = [Math.min(...found), Math.max(...found)].map(print);
    line.cells[1].textContent = print(values[k]);
    line.cells[2].textContent = cloud || !ranges[9] ? "" : low === high ? low : `${low} to ${high}`;
  });
  [measured, told] = [index, now];
}

function frame(now) {
  requestAnimationFrame(frame);
  const passed = Math.min(now - before, 100);
  before = now;
  if (!scene) return;
  const { states, path, total, ranges } = scene, until = performance.now() + 10;
  // A frame either tells or computes, so that none takes long.
  const idle = !playing && states.length === total, due = shown !== measured || ranges.length < 10;
  if (shown >= 0 && due && (idle || now - told > 100)) tell(shown, now);
  else while (states.length < total && performance.now() < until) {
    states.push(path.next().value);
    if (states.length === total) shown = -1; // now the colours are known
  }
  const whole = Math.min(Math.max(80 * total, 6000), 15000); // milliseconds
  if (playing) wanted = Math.min(wanted + (passed * total) / whole, states.length - 1);
  const index = Math.min((time.value = Math.floor(wanted)), states.length - 1);
  if (index !== shown) {
    render(index);
    time.ariaValueText = step.textContent =
      index + 1 < wanted ? `Computing: ${index} of ${total - 1}.` : words(index);
    about.textContent = notes();
    shown = index;
  }
  if (playing && index === total - 1) { go(false); remember(); }
}

function go(on, index = wanted) {
  const last = scene ? scene.total - 1 : 0;
  play.disabled = time.disabled = !scene;
  playing = on && last > 0;
  wanted = playing && index >= last ? 0 : Math.floor(Math.min(Math.max(index, 0), last));
  play.textContent = playing ? "Pause" : "Play";
}

// The settings and the time are mirrored in the address, so that a scene can be linked to.
function remember() {
  if (playing) return;
  const data = new URLSearchParams(new FormData(settings));
  data.set("at", wanted);
  history.replaceState(null, "", `#${data}`);
}

function recall() {
  const asked = new URLSearchParams(location.hash.slice(1));
  settings.reset();
  for (const [name, value] of asked) {
    const field = fields.namedItem(name) ?? {}, was = field.value;
    if (field.type === "checkbox") field.checked = value === "on";
    else field.value = value;
    if (field.value !== value || field.validity?.valid === false) field.value = was;
  }
  build();
  const calm = asked.has("at") || matchMedia("(prefers-reduced-motion: reduce)").matches;
  go(!calm, Number.parseInt(asked.get("at"), 10) || 0);
  remember();
}

const half = (scene, back) => (!scene ? 1 : back ? scene.total - 1 - scene.T : scene.T);

function change(event) {
  const back = scene && wanted > scene.T, share = (wanted - (back && scene.T)) / half(scene, back);
  shown = -1;
  if (!["arrows", "colours"].includes(event?.target.name)) build();
  if (scene) wanted = Math.round((back && scene.T) + share * half(scene, back));
}

// The sketch pad

function sketched() {
  const { data } = ink.getImageData(0, 0, GRID, GRID), found = [];
  for (let k = 0; k < GRID * GRID; k++) if (data[4 * k + 3] > 127) found.push(k);
  const count = Math.min(found.length, MOST), kept = Array.from(spaced(0, found.length - 1, count));
  const places = kept.map((k) => found[Math.round(k)])
    .flatMap((k) => [(k % GRID) / 25 - 3, 4 - Math.floor(k / GRID) / 25]);
  own = kept.length > 1 ? Float64Array.from(places) : null;
  build();
  go(false, 0);
}

Object.assign(ink, { lineWidth: 3, lineCap: "round", lineJoin: "round" });
Object.assign(ink, { font: "130px system-ui, sans-serif", textAlign: "center" });

function stroke(event, more = 0) {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  const box = pad.getBoundingClientRect(), scale = GRID / box.width;
  ink.lineTo((event.clientX - box.left) * scale + more, (event.clientY - box.top) * scale);
  ink.stroke();
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary) return;
  pad.setPointerCapture(event.pointerId);
  ink.beginPath();
  [0, 0.1].forEach((more) => stroke(event, more)); // a dot
});
pad.addEventListener("pointermove", (event) => stroke(event));
pad.addEventListener("lostpointercapture", sketched);
// Or else the tap that follows a finger's stroke would not click.
pad.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
function type(letter) {
  ink.clearRect(0, 0, GRID, GRID);
  ink.fillText(letter, GRID / 2, 120);
  sketched();
}

clear.addEventListener("click", () => type(""));
reseed.addEventListener("click", () => { fields.seed.value++; change(); });
play.addEventListener("click", () => go(!playing));
time.addEventListener("input", () => go(false, Number(time.value)));
settings.addEventListener("change", change);
addEventListener("hashchange", recall);
// Not at each move of the slider, as browsers refuse many in a row.
["change", "click", "keyup", "pointerup"].forEach((name) => addEventListener(name, remember));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const typed = !sketch.hidden && !event.target.matches?.("select, [name=seed]");
  if (typed && event.key.trim().length === 1) return type(event.key);
  const taken = event.key === " " ? "button, select, input:not(#time)" : "select, input:not(#time)";
  if (event.target.matches?.(taken)) return; // which hear it themselves
  const moves = { ArrowRight: wanted + 1, ArrowLeft: wanted - 1, Home: 0, End: Infinity };
  if (event.key === " ") go(!playing);
  else if (event.key in moves) go(false, moves[event.key]);
  else return;
  event.preventDefault();
});

recall();
requestAnimationFrame(frame);
