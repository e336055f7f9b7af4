// The forecaster of `make demo` in this browser: drag across the record, and the forecast is computed anew.

import { load } from "./forecaster.js";

const HORIZON = 12; // months that the forecaster looks ahead
const FIRST_YEAR = 1930; // it was not trained on what follows
const MOST = 270; // sunspots at the top of the chart
const MARGIN = 22; // pixels below the chart, for the years
const BRUSH = 5; // months to either side of the pointer
const PLAYED = 2; // months a frame

const scaled = (number) => Math.sqrt(number) / 10; // as it was trained
const sunspots = (value) => (10 * value) ** 2;

/** Draw the forecast into `place`, an element that may be empty. */
export async function start(place) {
  const [model, response] = await Promise.all([load(), fetch(new URL("sunspots.json", import.meta.url))]);
  const { years, numbers } = await response.json();
  const first = years.findIndex((year) => year >= FIRST_YEAR);
  const { canvas, play, undo, words } = elements(place);
  const context = canvas.getContext("2d");
  const stream = model.stream();
  let record = Float32Array.from(numbers);
  let forecast = []; // sunspots, a year after each month
  let shown = years.length; // months that have come

  function compute() {
    const begin = performance.now();
    stream.reset();
    forecast = Array.from(stream.run(record.map(scaled)), sunspots);
    const spent = performance.now() - begin;
    const each = ((1000 * spent) / record.length).toFixed(1);
    words.textContent = `${record.length.toLocaleString("en")} months in ${spent.toFixed(1)} ms: ${each} µs a month.`;
    draw();
  }

  function draw() {
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const style = getComputedStyle(canvas);
    const x = (year) => ((year - FIRST_YEAR) / (years.at(-1) + 1 - FIRST_YEAR)) * canvas.width;
    const y = (number) => (canvas.height - MARGIN * devicePixelRatio) * (1 - number / MOST);
    const line = (values, ahead, until, colour, width) => {
      context.strokeStyle = colour;
      context.lineWidth = width * devicePixelRatio;
      context.beginPath();
      for (let at = first; at < until; at++) context.lineTo(x(years[at] + ahead), y(values[at]));
      context.stroke();
    };
    context.fillStyle = style.color;
    context.font = `${12 * devicePixelRatio}px sans-serif`;
    for (let year = FIRST_YEAR + 10; year < years.at(-1); year += 20) {
      context.fillText(String(year), x(year), canvas.height - 6 * devicePixelRatio);
    }
    line(record, 0, shown, style.color, 1);
    line(forecast, HORIZON / 12, shown, "#e0591b", 2);
  }

  function paint(event) {
    const box = canvas.getBoundingClientRect();
    const at = first + Math.round(((event.clientX - box.left) / box.width) * (years.length - first));
    const number = Math.max(0, MOST * (1 - (event.clientY - box.top) / (box.height - MARGIN)));
    for (let month = at - BRUSH; month <= at + BRUSH; month++) {
      if (month >= first && month < record.length) record[month] = number;
    }
    compute();
  }

  function step() {
    for (let k = 0; k < PLAYED && shown < record.length; k++) {
      forecast[shown] = sunspots(stream.step(scaled(record[shown]))[0]);
      shown += 1;
    }
    draw();
    if (shown < record.length) requestAnimationFrame(step);
    else play.disabled = false;
  }

  play.onclick = () => {
    play.disabled = true;
    stream.reset();
    for (shown = 0; shown < first; shown++) forecast[shown] = sunspots(stream.step(scaled(record[shown]))[0]);
    requestAnimationFrame(step);
  };
  undo.onclick = () => {
    record = Float32Array.from(numbers);
    compute();
  };
  canvas.onpointerdown = (event) => {
    if (play.disabled) return;
    canvas.setPointerCapture(event.pointerId);
    paint(event);
  };
  canvas.onpointermove = (event) => {
    if (event.buttons && !play.disabled) paint(event);
  };
  new ResizeObserver(draw).observe(canvas);
  compute();
  place.dataset.forecast = forecast.at(-1).toFixed(3);
}

function elements(place) {
  place.innerHTML = `
    <canvas role="img" aria-label="Monthly sunspot numbers from ${FIRST_YEAR} on, and the forecast made a year earlier"
      style="width: 100%; height: 20rem; touch-action: none; cursor: crosshair"></canvas>
    <p><button class="md-button">Month by month</button> <button class="md-button">Undo</button></p>
    <p role="status"></p>`;
  const [play, undo] = place.querySelectorAll("button");
  return { canvas: place.querySelector("canvas"), play, undo, words: place.querySelector("[role=status]") };
}
