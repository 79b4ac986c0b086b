"use strict";

// Letters: K codebooks, T frames, S steps, k a codebook and f a frame, counted from 0. Code f of codebook k is decided in
// step f + delays[k], and so it has seen the codes of the steps before that one.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };

  function unpack([dtype, shape, content]) {
    const text = atob(content);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return { shape, values: new KINDS[dtype](bytes.buffer) };
  }

  const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, packed]) => [name, unpack(packed)]));
  const sounds = data.sounds.map((sound) => ({ ...sound, ...unpack(sound.samples) }));
  const [K, T] = arrays.codes.shape;
  const delays = data.delays;
  const S = T + Math.max(...delays);
  const at = (name, k, f) => arrays[name].values[k * T + f];
  const surprise = (k, f) => Math.max(0, -Math.log2(at("probability", k, f)));
  const percent = (p) => `${(100 * p).toPrecision(p > 0.9995 ? 4 : 3)} %`;
  const timeOf = (f) => `${(f / data.frameRate).toFixed(2)} s`;

  // What the reader has chosen.
  const state = { view: "frames", colour: "code", block: -1, head: -1, sound: sounds.length - 1, cell: null, held: false };
  let pixels = 3; // width of a frame, of which a picture takes whole ones: see left()
  let playing = false;

  const left = (column) => Math.round(column * pixels);

  // Colours come from the stylesheet, which has two sets of them.

  let paint = {};

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["paper", "panel", "ink", "faint", "line", "accent", "warm"])
      paint[name] = style.getPropertyValue(`--${name}`).trim();
    const [paper, accent] = [paint.paper, paint.accent].map((hex) =>
      [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)),
    );
    paint.ramp = (x) => paper.map((from, i) => Math.round(from + (accent[i] - from) * Math.min(1, Math.max(0, x))));
    paint.mixed = (x) => `rgb(${paint.ramp(x).join(" ")})`;
  }

  function surface(canvas, width, height) {
    // Browsers draw nothing on a canvas of more than about 16,000 pixels.
    const scale = Math.min(window.devicePixelRatio || 1, 16000 / width);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    return context;
  }

  // Waveform and spectrogram of the sound that is chosen.

  function drawWaveform() {
    const width = left(S);
    const height = 64;
    const context = surface($("waveform"), width, height);
    const { shape, values, rate } = sounds[state.sound];
    const [channels, samples] = shape;
    context.fillStyle = paint.accent;
    for (let c = 0; c < channels; c++) {
      const middle = (height * (c + 0.5)) / channels;
      const scale = height / channels / 2 / 32768;
      const perPixel = rate / data.frameRate / pixels;
      for (let x = 0; x < left(T); x++) {
        let low = 0;
        let high = 0;
        for (let i = Math.floor(x * perPixel); i < Math.min(samples, (x + 1) * perPixel); i++) {
          const value = values[c * samples + i];
          if (value < low) low = value;
          if (value > high) high = value;
        }
        context.fillRect(x, middle - high * scale, 1, Math.max(1, (high - low) * scale));
      }
    }
    $("waveform").setAttribute("aria-label", `Waveform of ${soundName(state.sound)}`);
  }

  function fourier(real, imaginary) {
    // In place, a power of two long.
    const n = real.length;
    for (let i = 1, j = 0; i < n; i++) {
      let bit = n >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [real[i], real[j]] = [real[j], real[i]];
        [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
      }
    }
    for (let size = 2; size <= n; size <<= 1) {
      const half = size >> 1;
      for (let i = 0; i < half; i++) {
        const angle = (-2 * Math.PI * i) / size;
        const cos = Math.cos(angle);
        const sin = Math.sin(angle);
        for (let a = i; a < n; a += size) {
          const b = a + half;
          const re = real[b] * cos - imaginary[b] * sin;
          const im = real[b] * sin + imaginary[b] * cos;
          real[b] = real[a] - re;
          imaginary[b] = imaginary[a] - im;
          real[a] += re;
          imaginary[a] += im;
        }
      }
    }
  }

  const ROWS = 96; // of the spectrogram
  const LOWEST = 50; // Hz

  function spectrogram(sound) {
    // Decibels below the loudest, one column a frame, rows of equal ratio from LOWEST to the highest frequency.
    if (sound.spectrogram) return sound.spectrogram;
    const { shape, values, rate } = sound;
    const [channels, samples] = shape;
    const size = 2 ** Math.max(5, Math.min(11, Math.round(Math.log2(rate / 16))));
    const window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    const lowest = Math.min(LOWEST, rate / 8);
    const bin = (row) => ((lowest * (rate / 2 / lowest) ** (row / ROWS)) / rate) * size;
    const levels = new Float32Array(T * ROWS);
    let loudest = -Infinity;
    for (let f = 0; f < T; f++) {
      const real = new Float64Array(size);
      const imaginary = new Float64Array(size);
      const first = Math.round(((f + 0.5) * rate) / data.frameRate - size / 2);
      for (let i = 0; i < size; i++) {
        if (first + i < 0 || first + i >= samples) continue;
        for (let c = 0; c < channels; c++) real[i] += values[c * samples + first + i] / 32768 / channels;
        real[i] *= window[i];
      }
      fourier(real, imaginary);
      for (let row = 0; row < ROWS; row++) {
        const from = Math.floor(bin(row));
        const to = Math.max(from + 1, Math.floor(bin(row + 1)));
        let power = 0;
        for (let b = from; b < to; b++) power = Math.max(power, real[b] ** 2 + imaginary[b] ** 2);
        const level = 10 * Math.log10(power + 1e-12);
        levels[f * ROWS + row] = level;
        if (level > loudest) loudest = level;
      }
    }
    sound.spectrogram = levels.map((level) => level - loudest);
    return sound.spectrogram;
  }

  function drawSpectrogram() {
    const height = ROWS;
    const levels = spectrogram(sounds[state.sound]);
    const picture = new ImageData(T, ROWS);
    for (let f = 0; f < T; f++)
      for (let row = 0; row < ROWS; row++) {
        const place = 4 * ((ROWS - 1 - row) * T + f);
        picture.data.set([...paint.ramp(1 + levels[f * ROWS + row] / 70), 255], place);
      }
    const context = surface($("spectrogram"), left(S), height);
    context.drawImage(still(picture), 0, 0, left(T), height);
    const highest = (sounds[state.sound].rate / 2000).toPrecision(2);
    $("spectrogram-told").textContent = `to ${highest} kHz, log scale, 70 dB`;
    $("spectrogram").setAttribute("aria-label", `Spectrogram of ${soundName(state.sound)}`);
  }

  function still(picture) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }

  // Codes.

  const rowHeight = K > 4 ? 18 : 26;
  const column = (k, f) => (state.view === "steps" ? f + delays[k] : f);
  const colours = {
    code: ["its number", (k, f) => `hsl(${(at("codes", k, f) * 137.508) % 360} 55% ${45 + (at("codes", k, f) % 3) * 9}%)`],
    probability: ["its probability", (k, f) => paint.mixed(0.06 + 0.94 * at("probability", k, f))],
    surprise: ["its surprise", (k, f) => paint.mixed(0.06 + 0.94 * (surprise(k, f) / Math.log2(data.codebookSize)))],
    entropy: ["the entropy", (k, f) => paint.mixed(0.06 + 0.94 * (at("entropy", k, f) / Math.log2(data.codebookSize)))],
  };
  let codesBelow = null; // the picture without what is pointed at

  function drawCodes() {
    const context = surface($("codes"), left(S), K * rowHeight);
    const gap = pixels > 5 ? 1 : 0;
    for (let k = 0; k < K; k++) {
      context.fillStyle = paint.panel; // special tokens
      if (state.view === "steps") context.fillRect(0, k * rowHeight, left(S), rowHeight - 1);
      for (let f = 0; f < T; f++) {
        context.fillStyle = colours[state.colour][1](k, f);
        const x = left(column(k, f));
        context.fillRect(x, k * rowHeight, left(column(k, f + 1)) - x - gap, rowHeight - 1);
      }
    }
    codesBelow = document.createElement("canvas");
    [codesBelow.width, codesBelow.height] = [$("codes").width, $("codes").height];
    codesBelow.getContext("2d").drawImage($("codes"), 0, 0);
    drawPointed();
  }

  // How many frames of codebook j the code (k, f) had seen.
  const seen = (k, f, j) => Math.min(T, Math.max(0, f + delays[k] - delays[j]));

  function drawPointed() {
    const canvas = $("codes");
    const context = canvas.getContext("2d");
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(codesBelow, 0, 0);
    context.restore();
    if (!state.cell) return;
    const { k, f } = state.cell;
    context.globalAlpha = 0.78;
    context.fillStyle = paint.paper;
    for (let j = 0; j < K; j++) {
      const from = left(column(j, seen(k, f, j)));
      context.fillRect(from, j * rowHeight, left(column(j, T)) - from, rowHeight);
    }
    context.globalAlpha = 1;
    const x = left(column(k, f));
    const width = Math.max(left(column(k, f + 1)) - x, 4);
    context.fillStyle = colours[state.colour][1](k, f);
    context.fillRect(x, k * rowHeight, width, rowHeight - 1);
    context.strokeStyle = paint.ink;
    context.lineWidth = 2;
    context.strokeRect(x - 1, k * rowHeight + 1, width + 2, rowHeight - 3);
  }

  function point(k, f) {
    if (state.cell && state.cell.k === k && state.cell.f === f) return;
    state.cell = { k, f };
    drawPointed();
    tellCell();
  }

  function tellCell() {
    const { k, f } = state.cell;
    const counts = delays.map((_, j) => seen(k, f, j));
    const total = counts.reduce((sum, count) => sum + count, 0);
    const ranges = counts.map((n, j) => (n ? `k = ${j}: ${n === 1 ? "frame 0" : `frames 0 to ${n - 1}`}` : `k = ${j}: none`));
    const number = `number ${at("rank", k, f) + 1} of the ${at("kept", k, f)} codes that could be drawn`;
    $("cell").textContent =
      `Codebook k = ${k}, frame ${f} (${timeOf(f)}): code ${at("codes", k, f)}, decided in step ${f + delays[k]}. ` +
      `Probability ${percent(at("probability", k, f))}, ${data.greedy ? "the likeliest code" : number}. ` +
      `Surprise ${surprise(k, f).toFixed(2)} bits, entropy ${at("entropy", k, f).toFixed(2)} bits` +
      (arrays.moved ? `, guidance moved the logits by ${at("moved", k, f).toFixed(2)}. ` : ". ") +
      `It had seen ${total} of ${K * T} codes (${ranges.join("; ")}).`;
    const count = arrays.likeliest.shape[2];
    const rows = [];
    for (let i = 0; i < count; i++)
      rows.push([arrays.likeliest.values[(k * T + f) * count + i], arrays.likeliest_probability.values[(k * T + f) * count + i]]);
    const own = at("codes", k, f);
    const most = Math.max(1e-9, ...rows.map(([, probability]) => probability)); // where all are unlikely, bars still tell
    if (!rows.some(([code]) => code === own)) rows.push([own, at("probability", k, f)]);
    $("alternatives").replaceChildren(
      ...rows.map(([code, probability]) => {
        const row = document.createElement("li");
        const bar = document.createElement("span");
        bar.style.width = `${(6 * probability) / most}rem`;
        row.append(`code ${code}: ${percent(probability)} `, bar);
        if (code === own) {
          row.setAttribute("aria-current", "true");
          row.append("taken");
        }
        return row;
      }),
    );
    $("likeliest").hidden = false;
    tellRead();
  }

  // What belongs to every code, by codebook, over time.

  function drawStrips(id, areas, lines, name) {
    const width = left(S);
    const height = K > 4 ? 22 : 30;
    const context = surface($(id), width, K * height);
    let most = 1e-6;
    for (let k = 0; k < K; k++)
      for (let f = 0; f < T; f++) most = Math.max(most, areas(k, f), lines ? lines(k, f) : 0);
    const y = (k, value) => (k + 1) * height - 1 - (value / most) * (height - 3);
    for (let k = 0; k < K; k++) {
      context.fillStyle = paint.mixed(0.55);
      for (let f = 0; f < T; f++) {
        const top = y(k, areas(k, f));
        const x = left(column(k, f));
        context.fillRect(x, top, left(column(k, f + 1)) - x, (k + 1) * height - 1 - top);
      }
      if (lines) {
        context.beginPath();
        for (let f = 0; f < T; f++) context.lineTo((column(k, f) + 0.5) * pixels, y(k, lines(k, f)));
        context.strokeStyle = paint.warm;
        context.stroke();
      }
      context.fillStyle = paint.line;
      context.fillRect(0, (k + 1) * height - 1, width, 1);
    }
    $(id).setAttribute("aria-label", `${name} of every code, at most ${most.toFixed(1)}; the table below has the averages`);
  }

  function drawMeasures() {
    drawStrips("surprise", (k, f) => at("entropy", k, f), surprise, "Entropy and surprise, in bits,");
    if (arrays.moved) drawStrips("moved", (k, f) => at("moved", k, f), null, "What guidance moved of the logits");
  }

  function tellMeans() {
    const columns = [
      ["Entropy", (k, f) => at("entropy", k, f), " bits"],
      ["Surprise", surprise, " bits"],
      ["Likeliest taken", (k, f) => (at("rank", k, f) === 0 ? 100 : 0), " %"],
    ];
    if (arrays.moved) columns.push(["Moved by guidance", (k, f) => at("moved", k, f), ""]);
    const head = $("means").tHead.insertRow();
    for (const text of ["Codebook", ...columns.map(([name]) => name)]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = text;
      head.append(cell);
    }
    for (let k = 0; k < K; k++) {
      const row = $("means").tBodies[0].insertRow();
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = `k = ${k}`;
      row.append(name);
      for (const [, value, unit] of columns) {
        let sum = 0;
        for (let f = 0; f < T; f++) sum += value(k, f);
        row.insertCell().textContent = (sum / T).toFixed(2) + unit;
      }
    }
  }

  // Attention to the caption.

  function attended() {
    // (columns, L) of the block and the head that are chosen; -1 is the mean over all.
    const { shape, values } = arrays.attention;
    const [blocks, heads, columns, L] = shape;
    const of = (chosen, count) => (chosen < 0 ? [...Array(count).keys()] : [chosen]);
    const [b, h] = [of(state.block, blocks), of(state.head, heads)];
    const means = new Float32Array(columns * L);
    for (const block of b)
      for (const head of h) {
        const first = (block * heads + head) * columns * L;
        for (let i = 0; i < means.length; i++) means[i] += values[first + i] / 255 / b.length / h.length;
      }
    return means;
  }

  let weights = null;

  function drawAttention() {
    if (!arrays.attention) return;
    weights = attended();
    const [, , columns, L] = arrays.attention.shape;
    const context = surface($("attention"), left(S), L * 14);
    const most = weights.reduce((a, b) => Math.max(a, b), 1e-6);
    for (let c = 0; c < columns; c++) {
      const x = left(c * data.stepsPerColumn);
      const width = left((c + 1) * data.stepsPerColumn) - x;
      for (let t = 0; t < L; t++) {
        // The end of the text takes most of it: the root shows the rest.
        context.fillStyle = paint.mixed(Math.sqrt(weights[c * L + t] / most));
        context.fillRect(x, t * 14, width, 13);
      }
    }
    $("attention").setAttribute("aria-label", `Attention of ${chosenName()} to each token in every step, at most ${percent(most)}`);
    tellRead();
  }

  function chosenName() {
    const block = state.block < 0 ? "all blocks" : `block ${state.block}`;
    return `${block}, ${state.head < 0 ? "all heads" : `head ${state.head}`}`;
  }

  function tellRead() {
    if (!state.cell || !weights) return;
    const L = data.tokens.length;
    const step = state.cell.f + delays[state.cell.k];
    const column = Math.floor(step / data.stepsPerColumn);
    const first = column * L;
    const order = [...Array(L).keys()].sort((a, b) => weights[first + b] - weights[first + a]).slice(0, 3);
    const told = order.map((t) => `"${tokenName(t)}" ${percent(weights[first + t])}`);
    const from = column * data.stepsPerColumn;
    const to = Math.min(S, from + data.stepsPerColumn) - 1;
    const when = from === to ? `step ${step}` : `steps ${from} to ${to}, on average,`;
    $("read").textContent = `In ${when} ${chosenName()} read most of ${told.join(", ")}.`;
  }

  const tokenName = (t) => data.tokens[t] || "␣";

  // Playing. Position is in seconds; while it plays, it is counted from where and when that began.

  let audio = null;
  let voice = null;
  let began = { position: 0, time: 0 };

  const position = () => (playing ? Math.min(data.seconds, began.position + audio.currentTime - began.time) : began.position);
  const FADE = 0.01; // seconds, so that a switch does not click

  function buffered(sound) {
    if (sound.buffer) return sound.buffer;
    const [channels, samples] = sound.shape;
    // Browsers play no less than 8000 Hz.
    const repeat = Math.ceil(8000 / sound.rate);
    sound.buffer = audio.createBuffer(channels, samples * repeat, sound.rate * repeat);
    for (let c = 0; c < channels; c++) {
      const channel = sound.buffer.getChannelData(c);
      for (let i = 0; i < channel.length; i++) channel[i] = sound.values[c * samples + Math.floor(i / repeat)] / 32768;
    }
    return sound.buffer;
  }

  function sing(from) {
    const gain = audio.createGain();
    gain.gain.setValueAtTime(0, audio.currentTime);
    gain.gain.linearRampToValueAtTime(1, audio.currentTime + FADE);
    const source = audio.createBufferSource();
    source.buffer = buffered(sounds[state.sound]);
    source.connect(gain).connect(audio.destination);
    source.start(0, from);
    voice = { source, gain };
    began = { position: from, time: audio.currentTime };
  }

  function hush() {
    voice.gain.gain.setValueAtTime(1, audio.currentTime);
    voice.gain.gain.linearRampToValueAtTime(0, audio.currentTime + FADE);
    voice.source.stop(audio.currentTime + 2 * FADE);
  }

  function play() {
    if (playing) return;
    audio ??= new AudioContext();
    audio.resume();
    sing(began.position >= data.seconds ? 0 : began.position);
    setPlaying(true);
    follow();
  }

  function pause() {
    if (!playing) return;
    const now = position();
    hush();
    setPlaying(false);
    began = { position: now, time: 0 };
    showPosition();
  }

  function setPlaying(on) {
    playing = on;
    $("play").textContent = on ? "Pause" : "Play";
  }

  function seek(to) {
    const target = Math.min(data.seconds, Math.max(0, to));
    if (playing) {
      hush();
      sing(target);
    } else began = { position: target, time: 0 };
    showPosition();
  }

  function follow() {
    if (!playing) return;
    if (position() >= data.seconds) {
      pause();
      return;
    }
    showPosition();
    const view = $("scroll");
    const x = position() * data.frameRate * pixels;
    const room = view.clientWidth - labelWidth();
    if (x < view.scrollLeft || x > view.scrollLeft + room) view.scrollLeft = x - room / 5;
    requestAnimationFrame(follow);
  }

  const labelWidth = () => document.querySelector(".track h2").offsetWidth;

  function showPosition() {
    const now = position();
    $("position").value = now;
    const told = `${now.toFixed(2)} s of ${data.seconds.toFixed(2)} s`;
    $("time").textContent = told;
    $("position").setAttribute("aria-valuetext", told);
    $("cursor").style.transform = `translateX(${now * data.frameRate * pixels}px)`;
  }

  function soundName(i) {
    const { codebooks } = sounds[i];
    if (i === sounds.length - 1) return `all ${codebooks}`;
    return codebooks === 1 ? "the first" : `the first ${codebooks}`;
  }

  function switchTo(i) {
    if (playing) buffered(sounds[i]); // before the time is read: it takes a while
    const now = position();
    if (playing) hush();
    state.sound = i;
    if (playing) sing(now);
    drawWaveform();
    drawSpectrogram();
  }

  // Wiring.

  function choice(name, value, text, checked) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name, value, checked });
    label.append(input, ` ${text}`);
    return label;
  }

  function options(select, entries, chosen) {
    for (const [value, text] of entries) select.add(new Option(text, value));
    select.addEventListener("change", () => chosen(select.value));
  }

  function numbered(count) {
    const all = [[-1, "all (mean)"]];
    return count === 1 ? all : [...all, ...[...Array(count).keys()].map((i) => [i, String(i)])];
  }

  function drawAll() {
    drawWaveform();
    drawSpectrogram();
    drawCodes();
    drawMeasures();
    drawAttention();
    showPosition();
  }

  function widen(factor) {
    pixels = Math.max(Math.min(1, 16000 / S), Math.min(pixels * factor, 24, 16000 / S));
    drawAll();
  }

  function cellAt(event) {
    const box = $("codes").getBoundingClientRect();
    const k = Math.min(K - 1, Math.max(0, Math.floor((event.clientY - box.top) / rowHeight)));
    const f = Math.floor((event.clientX - box.left + 0.5) / pixels) - (state.view === "steps" ? delays[k] : 0);
    return f >= 0 && f < T ? [k, f] : null; // special tokens of the delay pattern have nothing to tell
  }

  function movedBy(key) {
    const second = Math.round(data.frameRate);
    const { k, f } = state.cell;
    const moves = {
      ArrowLeft: [k, f - 1],
      ArrowRight: [k, f + 1],
      ArrowUp: [k - 1, f],
      ArrowDown: [k + 1, f],
      PageUp: [k, f - second],
      PageDown: [k, f + second],
      Home: [k, 0],
      End: [k, T - 1],
    };
    return moves[key];
  }

  function onKey(event) {
    if (event.key === "Enter" && state.cell) {
      seek(state.cell.f / data.frameRate);
      play();
    } else {
      const fresh = !state.cell;
      if (fresh) state.cell = { k: 0, f: 0 };
      const to = movedBy(event.key);
      if (!to) {
        if (fresh) state.cell = null;
        return;
      }
      const [k, f] = fresh ? [0, 0] : to;
      if (fresh) state.cell = null;
      point(Math.min(K - 1, Math.max(0, k)), Math.min(T - 1, Math.max(0, f)));
      const view = $("scroll");
      const x = column(state.cell.k, state.cell.f) * pixels;
      const room = view.clientWidth - labelWidth();
      if (x < view.scrollLeft || x + pixels > view.scrollLeft + room) view.scrollLeft = x - room / 2;
    }
    event.preventDefault();
  }

  function setUp() {
    $("caption").textContent = data.text === null ? "Music of no text" : `“${data.text}”`;
    for (const [name, value] of Object.entries(data.facts)) {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      group.append(term, told);
      $("facts").append(group);
    }
    for (const told of data.leftOut) $("left-out").append(Object.assign(document.createElement("li"), { textContent: told }));

    sounds.forEach((_, i) => $("sounds").append(choice("sound", i, soundName(i), i === state.sound)));
    $("sounds").addEventListener("change", (event) => switchTo(Number(event.target.value)));
    $("play").addEventListener("click", () => (playing ? pause() : play()));
    $("position").max = data.seconds;
    $("position").addEventListener("input", () => seek(Number($("position").value)));
    for (const id of ["waveform", "spectrogram"])
      $(id).addEventListener("click", (event) => seek(event.offsetX / pixels / data.frameRate));

    $("views").addEventListener("change", (event) => {
      state.view = event.target.value;
      drawCodes();
      drawMeasures();
    });
    options($("colour"), Object.entries(colours).map(([value, [text]]) => [value, text]), (value) => {
      state.colour = value;
      drawCodes();
    });
    $("codes").addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      if (cell && !state.held) point(...cell);
    });
    $("codes").addEventListener("click", (event) => {
      const cell = cellAt(event);
      if (!cell) return;
      state.held = !state.held;
      $("cell-title").textContent = state.held ? "The code that is held (another click lets go)" : "The code that is pointed at";
      point(...cell);
    });
    $("codes").addEventListener("keydown", onKey);

    $("moved-track").hidden = !arrays.moved;
    $("attention-track").hidden = !arrays.attention;
    const [blocks, heads] = arrays.attention ? arrays.attention.shape : [1, 1];
    for (const [name, count] of [["block", blocks], ["head", heads]]) {
      $(name).disabled = count === 1;
      options($(name), numbered(count), (value) => {
        state[name] = Number(value);
        drawAttention();
      });
    }
    if (arrays.attention) {
      const list = document.createElement("ol");
      data.tokens.forEach((_, t) => list.append(Object.assign(document.createElement("li"), { textContent: tokenName(t) })));
      const label = document.querySelector("#attention-track h2");
      label.replaceChildren(Object.assign(document.createElement("span"), { textContent: "Attention" }), list);
    }
    tellMeans();

    $("narrower").addEventListener("click", () => widen(1 / 1.5));
    $("wider").addEventListener("click", () => widen(1.5));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      readColours();
      drawAll();
    });
    readColours();
    pixels = Math.max(2, ($("scroll").clientWidth - labelWidth() - 8) / S);
    widen(1);
  }

  setUp();
})();
