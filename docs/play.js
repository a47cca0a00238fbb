"use strict";
// The models of comparison/ in a browser: first their mathematics, then the page.
// A state is a flat Float64Array, u0, v0, u1, v1, ..., in the coordinate y = x_t / signal = x_0 +
// sigma eps. Levels are sigmas, the largest first and 0 last. A denoiser maps (y, sigma)
// to an estimate of x_0. A sampler is a generator of states, given `normal()` for its noise.

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

// Levels
const spaced = (first, last, count) =>
  Array.from({ length: count }, (_, k) => first + ((last - first) * k) / (count - 1));
const toZero = (sigmas) => [...sigmas, 0];

function fromBetas(betas) {
  let bar = 1;
  return toZero(betas.map((beta) => Math.sqrt(1 / (bar *= 1 - beta) - 1)).reverse());
}

const linear = () => fromBetas(spaced(1e-4, 0.02, 1000));
const scaledLinear = (end) => fromBetas(spaced(0.02, Math.sqrt(end), 30).map((root) => root ** 2));
// Levels of annealed Langevin dynamics, each as often as it is stepped at, and a last one for D.
const repeated = (count, times) => toZero(spaced(Math.log(5), Math.log(0.01), count).map(Math.exp)
  .flatMap((sigma, k) => Array(times + (k === count - 1)).fill(sigma)));
const karras = ([largest, ...others], count, rho = 7) => toZero(
  spaced(largest ** (1 / rho), others.at(-2) ** (1 / rho), count).map((root) => root ** rho));
const respaced = (levels, kept) =>
  toZero(spaced(levels.length - 2, 0, kept).map((t) => levels[levels.length - 2 - Math.round(t)]));
const unit = (sigma) => 1 / Math.hypot(1, sigma); // x_t = unit y

// Denoisers
// E[x_0 | y] of points that are equally likely; `weight` is filled with their posterior weights.
function posterior(data, u, v, sigma, weight) {
  const n = data.length / 2, scale = 1 / (2 * sigma * sigma);
  let least = Infinity, total = 0, meanU = 0, meanV = 0;
  for (let k = 0; k < n; k++) {
    const du = u - data[2 * k], dv = v - data[2 * k + 1];
    weight[k] = (du * du + dv * dv) * scale;
    if (weight[k] < least) least = weight[k];
  }
  for (let k = 0; k < n; k++) {
    const away = weight[k] - least;
    weight[k] = 0;
    if (away > 40) continue; // exp(-40) is below what a sum of 1 can tell
    total += weight[k] = Math.exp(-away);
    meanU += weight[k] * data[2 * k];
    meanV += weight[k] * data[2 * k + 1];
  }
  return [meanU / total, meanV / total];
}

function exact(data) {
  const weight = new Float64Array(data.length / 2);
  return (y, sigma) => {
    const mean = new Float64Array(y.length);
    for (let i = 0; i < y.length; i += 2)
      mean.set(posterior(data, y[i], y[i + 1], sigma, weight), i);
    return mean;
  };
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
// The committed network, whose output is the velocity, as a denoiser.
function network(text, width = 128, directions = 128, levels = 4) {
  const floats = Float64Array.from(new Float32Array(bytes(text).buffer));
  let taken = 0;
  const take = (count) => floats.subarray(taken, (taken += count));
  const waves = take(2 * directions), levelWaves = take(levels), angles = directions + levels;
  const sizes = [2 + 2 * angles, width, width, width, 2], layers = [];
  for (let k = 0; k < 4; k++) layers.push([take(sizes[k] * sizes[k + 1]), take(sizes[k + 1])]);
  return (y, sigma) => {
    const scale = unit(sigma), count = y.length / 2, wide = sizes[0], level = Math.log(sigma);
    let h = new Float64Array((count + (count % 2)) * wide);
    for (let i = 0, row = 0; i < count; i++, row += wide) {
      const u = (h[row] = scale * y[2 * i]), v = (h[row + 1] = scale * y[2 * i + 1]);
      for (let k = 0; k < angles; k++) {
        const angle = k < directions ? u * waves[k] + v * waves[directions + k]
          : level * levelWaves[k - directions];
        h[row + 2 + k] = Math.sin(angle);
        h[row + 2 + angles + k] = Math.cos(angle);
      }
    }
    layers.forEach(([weight, bias], k) => {
      h = affine(h, weight, bias, sizes[k]);
      if (k < 3) for (let i = 0; i < h.length; i++) h[i] /= 1 + Math.exp(-h[i]);
    });
    return y.map((v, i) => scale * (scale * v - sigma * h[i]));
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

// Samplers, and the forward process
const step = (mean, y, ratio, s, normal) =>
  y.map((v, i) => mean[i] + ratio * (v - mean[i]) + (s ? s * normal() : 0));

// What a step from one level to the next keeps of y - D, and the deviation of its noise.
const RULES = {
  forward: (here, there) => [1, Math.sqrt(there ** 2 - here ** 2)],
  ddpm: (here, there) => [(there / here) ** 2,
    there && Math.sqrt(((1 + there ** 2) * (here ** 2 - there ** 2)) / (1 + here ** 2))],
  ddim: (here, there) => [there / here, 0],
  langevin: (here, there) => there ? [0.9, Math.sqrt(0.2) * here] : [0, 0],
};

function* stepwise(rule, denoiser, levels, y, normal) {
  yield y;
  for (let t = 0; t + 1 < levels.length; t++)
    yield (y = step(denoiser(y, levels[t]), y, ...rule(levels[t], levels[t + 1]), normal));
}
const forward = (levels, ...how) =>
  stepwise(RULES.forward, (y) => y, [...levels].reverse(), ...how);

// The probability flow, dy / dsigma = (y - D) / sigma, by Heun's method; at last by Euler's.
function* heun(denoiser, levels, y) {
  yield y;
  for (let t = 0; t + 1 < levels.length; t++) {
    const [here, there] = [levels[t], levels[t + 1]], x = denoiser(y, here);
    const euler = step(x, y, there / here, 0), then = there && denoiser(euler, there);
    yield (y = !there ? euler : y.map((v, i) =>
      v + ((there - here) / 2) * ((v - x[i]) / here + (euler[i] - then[i]) / there)));
  }
}

// The points of a drawing as a data set, and how far samples are from it
function normalised(points) {
  const n = points.length / 2, centre = [0, 0];
  points.forEach((v, i) => (centre[i % 2] += v / n));
  const shifted = points.map((v, i) => v - centre[i % 2]);
  const scale = Math.sqrt(shifted.reduce((sum, v) => sum + v * v, 0) / points.length);
  return { points: shifted.map((v) => v / scale), centre, scale, pixel: 6 / 150 / scale };
}

const draw = ({ points }, count, uniform) => Float64Array.from(Array.from({ length: count },
  () => 2 * Math.floor((uniform() * points.length) / 2))
  .flatMap((k) => [points[k], points[k + 1]]));

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

// Precision and coverage, in per cent, and sliced W1, in pixels.
function measure(samples, { points, pixel }) {
  const within = 1.001 * pixel;
  const shares = [shareNear(samples, points, within), shareNear(points, samples, within)];
  return [...shares.map((share) => 100 * share), sliced(samples, points) / pixel];
}

// The page
const PARTICLES = 1000, PART = 100, MOST = 2500, GRID = 230; // the pad's
const SIZE = 1000, VIEW = 9.2, UNIT = SIZE / VIEW, TOP = VIEW / 2 + 0.75; // as main.py's film
const LEVELS = {
  ddpm: (steps) => respaced(linear(), steps),
  ddim: (steps) => respaced(linear(), steps),
  heun: (steps) => karras(linear(), steps),
  langevin: (steps) => repeated(Math.min(steps, 10), Math.max(steps / 10, 1)),
};
const sample = (name, ...how) => RULES[name] ? stepwise(RULES[name], ...how) : heun(...how);
const [view, key, time, state, said, about, play, settings, pad, reseed, ...rows] =
  "view key time state step notes play settings pad reseed clear ways chain denoisers table towards"
    .split(" ").map((id) => document.getElementById(id));
const fields = settings.elements, { seed } = fields, ink = Object.assign(pad.getContext("2d", {
  willReadFrequently: true }), { lineWidth: 3, lineCap: "round", strokeStyle: "#0050c8" });
const learned = network(NETWORK);
const face = Float64Array.from(bytes(DRAWING), (v, i) => v / 25 - (i % 2 ? 2 : 3));
let own, scene, hover, playing = false, wanted = 0, shown = -1, measured = -1, before = 0, told = 0;

function build() {
  const vector = fields.treat.value === "vector", mine = fields.data.value === "own";
  [!mine, vector, !vector, vector || mine, vector, vector].forEach((x, k) => (rows[k].hidden = x));
  [scene, hover, shown, measured] = [null, null, -1, -1];
  if (mine && !own) {
    said.textContent = "Draw on the yellow square: the points become the data.";
    [view.width, view.height, time.value, key.hidden] = [SIZE, SIZE, 0, true]; // clears the view
    Object.assign(view.getContext("2d"), { font: "4em system-ui" }).fillText("draw here", 370, 500);
    [state, about, ...document.querySelectorAll("tbody td")].forEach((x) => (x.textContent = ""));
    return go(false, 0);
  }
  const points = mine ? own : face, data = normalised(points);
  const name = vector ? "ddpm" : fields.sampler.value, levels = vector
    ? scaledLinear(Number(fields.beta.value)) : LEVELS[name](Number(fields.steps.value));
  const { uniform, normal } = randomness(Number(seed.value)), T = levels.length - 1;
  const x_0 = vector ? points : draw(data, PARTICLES, uniform);
  const trained = !vector && !mine && fields.denoiser.value === "network";
  const denoiser = vector ? () => x_0 : trained ? learned : exact(data.points);
  function* path(y) {
    for (y of forward(levels, y, normal)) yield y;
    if (fields.start.value === "noise") y = y.map(() => normal() / unit(levels[0]));
    yield* sample(name, denoiser, levels, y, normal);
  }
  // Some particles at a time, as a network takes long for all.
  const parts = [], size = vector ? x_0.length : 2 * PART;
  for (let k = 0; k < x_0.length; k += size) parts.push(path(x_0.slice(k, k + size)));
  const level = (index) => index <= T ? T - index : index - T - 1;
  // A state as it is shown, x_t, in the data's units.
  const seen = (y, sigma) => y.map((v, i) => vector
    ? (v * unit(sigma) - data.centre[i % 2]) / data.scale : v * unit(sigma));
  scene = { data, vector, mine, name, trained, denoiser, levels, T, total: 2 * T + 2, level, seen,
    parts, done: [], states: [], references: [], others: randomness(0) };
  time.max = scene.total - 1;
}

const digits = (value) => Number(value.toPrecision(2)).toString();
// What the next step does.
function words(index) {
  const { name, levels, T, total, level } = scene, t = level(index);
  if (index === total - 1) return "Done. Play starts again from the data.";
  if (index === T) return fields.start.value === "noise"
    ? "Next, the noised data are replaced with pure noise." : "From here on, noise is removed.";
  if (index < T) return `Next, noise is added: σ goes to ${digits(levels[t - 1])}.`;
  const [ratio, s] = (RULES[name] ?? RULES.ddim)(levels[t], levels[t + 1]);
  return `Next, σ goes to ${digits(levels[t + 1])}: ${digits(100 * (1 - ratio))} % of the ` +
    `estimated noise is removed${name === "heun" ? ", corrected by a second estimate" : ""}; ` +
    `${s ? `new noise, ${digits((100 * s) / levels[t])} % of σ,` : "no new noise"} is added.`;
}

// What is seen.
function notes() {
  const { vector, mine, name, trained } = scene, own = mine ? "your drawing" : "the drawing";
  const texts = [vector ? `All points together are one training example, so the best estimate, D, is
      ${own} itself, from any start.`
    : trained ? "The network has learned its estimate, D, from noised points of the face."
    : `The exact denoiser's estimate, D, is the mean of the points of ${own}, each weighted by the
      probability that the noised point came from it. Practically only these points come back.`];
  if (!vector) texts.push(`Point at the picture: the larger a point is drawn, the greater its weight
    there; a line leads to ${trained ? "the exact D, a blue one to the network's" : "D"}.`);
  if (fields.colours.checked) texts.unshift(`The colour shows where a point ends. ${vector
    ? "Each returns to its own place." : ["ddim", "heun"].includes(name)
    ? "No noise is added on the way back, so most neighbours end together."
    : "New noise on the way back decides that, so neighbours part."}`);
  if (name === "langevin") texts.push("Langevin dynamics lags behind σ with fewer than 500 steps.");
  return texts.join(" ");
}

function render(index) {
  const { data, vector, trained, denoiser, levels, T, states, total, level, seen } = scene;
  const sigma = levels[level(index)], coloured = fields.colours.checked, dot = 3.5;
  const size = Math.round(view.clientWidth * devicePixelRatio);
  if (view.width !== size) view.width = view.height = size;
  const context = view.getContext("2d");
  context.setTransform(size / SIZE, 0, 0, size / SIZE, 0, 0);
  const left = (u) => (data.centre[0] + data.scale * u + VIEW / 2) * UNIT;
  const top = (v) => (TOP - data.centre[1] - data.scale * v) * UNIT;
  const square = (u, v, half = dot) =>
    context.fillRect(left(u) - half, top(v) - half, 2 * half, 2 * half);
  const line = (points, color, width = 1.5) => {
    Object.assign(context, { strokeStyle: color, lineWidth: width }).beginPath();
    points.forEach(([u, v]) => context.lineTo(left(u), top(v)));
    context.stroke();
  };
  const [paper, faint, thin, dark, look] = coloured
    ? ["#141414", "#333", "#777", "#fff", "#fff"]
    : ["#ffd90f", "#e3bf00", "#8a7400", "#000", "#d0021b"];
  context.fillStyle = paper;
  context.fillRect(0, 0, SIZE, SIZE);
  context.fillStyle = faint;
  for (let i = 0; i < data.points.length; i += 2) square(data.points[i], data.points[i + 1]);
  if (fields.arrows.checked && sigma && !vector) {
    const across = spaced(-0.475 * VIEW, 0.475 * VIEW, 20).map((x) => x / data.scale / unit(sigma));
    const y = Float64Array.from(across.flatMap((u) => across.flatMap((v) => [u, v])));
    const third = seen(step(denoiser(y, sigma), y, 2 / 3, 0), sigma);
    context.fillStyle = thin;
    seen(y, sigma).forEach((u, i, from) => {
      if (i % 2) return;
      line([[u, from[i + 1]], third.subarray(i, i + 2)], thin);
      square(third[i], third[i + 1], 2);
    });
  }
  const at = (k, ...part) => seen(states[k].subarray(...part), levels[level(k)]), now = at(index);
  const ends = coloured && states.length === total && at(total - 1);
  const hue = (u, v) => `hsl(${Math.atan2(v, u)}rad 90% 62%)`;
  context.fillStyle = coloured ? "#8f8f8f" : "#000";
  for (let i = 0; i < now.length; i += 2) {
    if (ends) context.fillStyle = hue(ends[i], ends[i + 1]);
    square(now[i], now[i + 1]);
  }
  const every = 2 * Math.floor(now.length / 60);
  if (fields.trails.checked && index > T) for (let i = 0; i < 30 * every; i += every)
    line(Array.from({ length: index - T }, (_, k) => at(T + 1 + k, i, i + 2)),
      ends ? hue(ends[i], ends[i + 1]) : thin, 2);
  if (hover && sigma && !vector) {
    const u = (hover[0] / UNIT - VIEW / 2 - data.centre[0]) / data.scale;
    const v = (TOP - data.centre[1] - hover[1] / UNIT) / data.scale;
    const y = Float64Array.of(u, v).map((x) => x / unit(sigma)), weight = [];
    const mean = posterior(data.points, ...y, sigma, weight);
    const share = weight.reduce((sum, w) => sum + w, 0);
    context.fillStyle = look;
    weight.forEach((w, k) => square(data.points[2 * k], data.points[2 * k + 1],
      Math.min(80 * Math.sqrt(w / share), 12)));
    line([[u, v], mean], look, 6);
    square(...mean, 9);
    if (trained) line([[u, v], learned(y, sigma)], "#0050c8", 3);
  }
  context.fillStyle = dark;
  context.font = "40px system-ui, sans-serif";
  context.fillText(`t = ${T - level(index)} of ${T}` +
    `${coloured && !ends ? ", computing the colours" : ""}`, 25, SIZE - 30);
  key.hidden = !coloured;
  const bar = (name, value) =>
    `<span>${name} ${digits(value)} <meter value="${value}"></meter></span>`;
  state.innerHTML = bar("signal", unit(sigma)) + bar("noise", sigma * unit(sigma)) +
    `<span>σ = noise / signal = ${digits(sigma)}</span>`;
}

function tell(index, now) {
  const { data, vector, levels, level, states, seen, others, references } = scene;
  const values = measure(seen(states[index], levels[level(index)]), data);
  if (references.length < 11) references.push(measure(references.length
    ? draw(data, PARTICLES, others.uniform)
    : Float64Array.from({ length: 2 * PARTICLES }, others.normal), data));
  document.querySelectorAll("tbody tr").forEach((row, k) => {
    const [noise, ...fresh] = references.map((drawn) => drawn[k]);
    const print = (v) => v.toFixed(k < 2 ? 0 : 2);
    const [low, high] = [Math.min(...fresh), Math.max(...fresh)].map(print);
    const goal = fresh.reduce((sum, v) => sum + v, 0) / fresh.length;
    const share = (values[k] - noise) / (goal - noise) || 0, cells = [print(values[k]),
      print(noise), `<meter value="${share}"></meter>`, low === high ? low : `${low} to ${high}`];
    cells.forEach((x, k) => (row.cells[k + 1].innerHTML = k && (vector || !fresh[9]) ? "" : x));
  });
  [measured, told] = [index, now];
}

function frame(now) {
  requestAnimationFrame(frame);
  const passed = Math.min(now - before, 100);
  before = now;
  if (!scene) return;
  const { states, parts, done, total, references } = scene, until = performance.now() + 10;
  // A frame either tells or computes, so that none takes long.
  const idle = !playing && states.length === total;
  const due = shown !== measured || references.length < 11;
  if (shown >= 0 && due && (idle || now - told > 100)) tell(shown, now);
  else while (states.length < total && performance.now() < until) {
    done.push(parts[done.length].next().value);
    if (done.length < parts.length) continue;
    states.push(Float64Array.from(done.splice(0).flatMap((part) => [...part])));
    if (states.length === total) shown = -1; // now the colours are known
  }
  const length = Math.min(Math.max(80 * total, 6000), 15000); // milliseconds
  const most = Math.max(wanted, states.length - 1); // a setting may have begun them anew
  if (playing) wanted = Math.min(wanted + (passed * total) / length, most);
  const index = Math.min((time.value = Math.floor(wanted)), states.length - 1);
  if (index >= 0 && index !== shown) {
    render(index);
    said.textContent = index + 1 < wanted ? `Computing: ${index} of ${total - 1}.` : words(index);
    about.textContent = notes();
    if (!playing) time.ariaValueText = said.textContent; // not at every frame
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
  pad.hidden = fields.data.value !== "own" || playing || wanted > 0;
}

// The settings and the time are mirrored in the address, so that a scene can be linked to.
function remember() {
  if (playing || !settings.checkValidity()) return;
  const data = new URLSearchParams(new FormData(settings));
  data.set("at", wanted);
  try { history.replaceState(null, "", `#${data}`); } catch { /* a page under another's address */ }
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

function change(event) {
  if (!settings.reportValidity()) return; // the browser says what is wrong with the seed
  const T = scene?.T ?? 1, back = wanted > T, share = (wanted - back * (T + 1)) / T;
  shown = -1;
  if (!["arrows", "colours", "trails"].includes(event?.target.name)) build();
  if (scene) go(playing, Math.round(back * (scene.T + 1) + share * scene.T));
}

// The sketch pad
function sketched() {
  const { data } = ink.getImageData(0, 0, GRID, GRID), found = [];
  for (let k = 0; k < GRID * GRID; k++) if (data[4 * k + 3] > 127) found.push(k);
  const kept = spaced(0, found.length - 1, Math.min(found.length, MOST)), honest = truthful();
  const places = kept.map((k) => found[Math.round(k)])
    .flatMap((k) => [(k % GRID + 0.5) / 25 - VIEW / 2, TOP - (Math.floor(k / GRID) + 0.5) / 25]);
  own = kept.length > 1 && honest ? Float64Array.from(places) : null;
  build();
  go(false, 0);
  if (!honest) said.textContent = "To protect your privacy, this browser returns random " +
    "pixels instead of the sketch (in Firefox, privacy.resistFingerprinting).";
}

// Whether what is read from a canvas is what was drawn on it.
function truthful() {
  const context = document.createElement("canvas").getContext("2d");
  context.fillRect(0, 0, 16, 8);
  const { data } = context.getImageData(0, 0, 16, 16);
  return data.every((v, k) => v === (k % 4 === 3 && k < 512 ? 255 : 0));
}

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
rows[0].addEventListener("click", () => { ink.clearRect(0, 0, GRID, GRID); sketched(); });
document.querySelector("nav").addEventListener("click", ({ target }) => {
  if (target.hash === location.hash) recall(); // of which the address tells nothing
});
reseed.addEventListener("click", () => { seed.value = (+seed.value || 1) + 1; change(); });
play.addEventListener("click", () => go(!playing));
time.addEventListener("input", () => go(false, Number(time.value)));
settings.addEventListener("change", change);
["pointermove", "pointerdown", "pointerleave"].forEach((name) =>
  view.addEventListener(name, (event) => {
    const scale = SIZE / view.clientWidth;
    const left = name === "pointerleave" && event.pointerType === "mouse"; // a tap stays
    hover = left ? null : [scale * event.offsetX, scale * event.offsetY];
    shown = -1;
  }));
addEventListener("resize", () => (shown = -1)); addEventListener("hashchange", recall);
// Not at each move of the slider, as browsers refuse many in a row.
["change", "click", "keyup", "pointerup"].forEach((name) => addEventListener(name, remember));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const taken = event.key === " " ? "a, button, select, input:not(#time)"
    : "select, input:not(#time)";
  if (event.target.matches?.(taken)) return; // which hear it themselves
  const moves = { ArrowRight: wanted + 1, ArrowLeft: wanted - 1, Home: 0, End: Infinity };
  if (event.key === " ") go(!playing);
  else if (event.key in moves) go(false, moves[event.key]);
  else return;
  event.preventDefault();
});

recall();
requestAnimationFrame(frame);
