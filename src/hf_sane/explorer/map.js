// The map: one dot per network. A click picks a network, a drag picks all networks inside the loop, Shift adds them.
// The wheel zooms, and so do two fingers.
const canvas = element.querySelector("canvas"), tip = element.querySelector(".tip");
const legend = element.querySelector(".legend");
const RADIUS = 4, REACH = 10, FINGER = 22, DRAGGED = 4; // pixels
const fingers = new Map();
let pinched = false;
let view = { scale: 1, x: 0, y: 0 }, loop = [], dots = [], groups = [], width = 0, height = 0;

const screen = (x, y) => [
  (x * 0.94 + 0.03) * width * view.scale + view.x, (0.97 - y * 0.94) * height * view.scale + view.y,
];
const style = (name) => getComputedStyle(element).getPropertyValue(name).trim() || "currentColor";
const mouse = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

function prepare() { // dots of one colour are drawn together
  const map = props.value;
  dots = map.x.map((x, i) => [x, map.y[i]]);
  groups = map.colours.map(() => []);
  const unknown = [];
  map.of.forEach((colour, i) => (colour < 0 ? unknown : groups[colour]).push(i));
  groups.push(unknown);
  legend.replaceChildren();
  const add = (text, colour) => {
    const item = legend.appendChild(document.createElement("span"));
    if (colour) item.appendChild(document.createElement("i")).style.background = colour;
    item.append(text);
  };
  add(map.title + ":");
  if (map.scale) {
    add(map.scale[1], `linear-gradient(to right, ${map.colours})`);
    legend.lastChild.prepend(map.scale[0] + " ");
    legend.lastChild.className = "scale";
  } else map.labels.forEach((label, i) => add(label, map.colours[i]));
  if (unknown.length) add("not known", "transparent");
  if (map.sampled.x.length) add("◆ sampled");
}

function circle(path, x, y, radius) {
  path.moveTo(x + radius, y);
  path.arc(x, y, radius, 0, 2 * Math.PI);
}

function draw() {
  const start = performance.now(), pen = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
  [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  pen.scale(ratio, ratio);
  groups.forEach((group, colour) => {
    const path = new Path2D();
    for (const i of group) circle(path, ...screen(...dots[i]), RADIUS);
    if (colour < groups.length - 1) {
      pen.fillStyle = props.value.colours[colour];
      pen.fill(path);
    }
    pen.strokeStyle = "#7a7a7a"; // dots of every colour stand out on white and on black
    pen.lineWidth = 1;
    pen.stroke(path);
  });
  pen.strokeStyle = pen.fillStyle = style("--body-text-color");
  pen.lineWidth = 2;
  const ring = new Path2D();
  for (const i of props.selected) if (dots[i]) circle(ring, ...screen(...dots[i]), RADIUS + 3);
  pen.stroke(ring);
  const { x: across, y: up } = props.value.sampled;
  across.forEach((x, i) => {
    const [left, top] = screen(x, up[i]), size = RADIUS + 3;
    pen.fill(new Path2D(`M${left - size} ${top}l${size} ${-size}l${size} ${size}l${-size} ${size}Z`));
  });
  if (loop.length > 1) {
    pen.lineWidth = 1;
    pen.stroke(new Path2D("M" + loop.map((place) => place.join(" ")).join("L") + "Z"));
  }
  const shown = { drawn: dots.length, title: props.value.title, sampled: across.length, scale: view.scale };
  Object.assign(canvas.dataset, shown);
  canvas.dataset.milliseconds = performance.now() - start;
}

function nearest([x, y], reach = REACH) {
  let found = -1, best = reach ** 2;
  dots.forEach((dot, i) => {
    const [left, top] = screen(...dot), distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance < best) [found, best] = [i, distance];
  });
  return found;
}

function inside([x, y]) { // whether a ray from the place crosses the loop an odd number of times
  let odd = false;
  loop.forEach(([ax, ay], i) => {
    const [bx, by] = loop[(i + 1) % loop.length];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  });
  return odd;
}

const pick = (found, event) =>
  trigger("pick", { networks: event.shiftKey ? [...new Set([...props.selected, ...found])] : found });

function zoom([x, y], factor, [across, up] = [0, 0]) { // around a place, which moves
  const step = Math.min(Math.max(view.scale * factor, 1), 50) / view.scale;
  view = { scale: view.scale * step, x: x - (x - view.x) * step + across, y: y - (y - view.y) * step + up };
  if (view.scale === 1) view.x = view.y = 0;
  draw();
}

function pinch(id, place) {
  const other = [...fingers].find(([known]) => known !== id)[1], before = fingers.get(id);
  const apart = (from) => Math.hypot(from[0] - other[0], from[1] - other[1]) || 1;
  const middle = before.map((x, i) => (x + other[i]) / 2), moved = place.map((x, i) => (x - before[i]) / 2);
  fingers.set(id, place);
  zoom(middle, apart(place) / apart(before), moved);
}

canvas.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, mouse(event));
  pinched ||= fingers.size > 1;
  loop = pinched ? [] : [mouse(event)];
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  const place = mouse(event);
  if (fingers.size === 2 && fingers.has(event.pointerId)) {
    pinch(event.pointerId, place);
    return;
  }
  const near = nearest(place);
  tip.textContent = near < 0 ? "" : `${props.value.names[near]}: ${props.value.texts[near]}`;
  const beside = place[0] > width / 2 ? -12 - tip.offsetWidth : 12;  // the tip stays on the page
  [tip.style.left, tip.style.top] = [`${Math.max(0, place[0] + beside)}px`, `${place[1] + 12}px`];
  if (loop.length) {
    loop.push(place);
    draw();
  }
});
canvas.addEventListener("pointerup", (event) => {
  const was = pinched;
  fingers.delete(event.pointerId);
  pinched &&= fingers.size > 0;
  if (was) return;
  const [x, y] = loop[0] || mouse(event);
  const moved = Math.max(...loop.map((place) => Math.hypot(place[0] - x, place[1] - y)));
  const near = nearest(mouse(event), event.pointerType === "touch" ? FINGER : REACH);
  const clicked = near < 0 ? [] : [near];
  const found = moved > DRAGGED ? dots.flatMap((dot, i) => (inside(screen(...dot)) ? [i] : [])) : clicked;
  loop = [];
  pick(found, event);
  draw();
});
canvas.addEventListener("pointercancel", (event) => {
  fingers.delete(event.pointerId);
  pinched &&= fingers.size > 0;
  loop = [];
  draw();
});
canvas.addEventListener("pointerleave", () => { tip.textContent = ""; });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(mouse(event), 1.002 ** -event.deltaY);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) pick([(((props.selected[0] ?? -step) + step) % dots.length + dots.length) % dots.length], event);
});
new ResizeObserver(draw).observe(canvas);
watch("value", () => { prepare(); draw(); });
watch("selected", draw);
prepare();
draw();
