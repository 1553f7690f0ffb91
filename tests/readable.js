// What a reader can make out of a page; see readable.py. Each function at the end returns what fails, a line each.

const TEXT = 4.5, LARGE = 3, GRAPHIC = 3; // least contrast, by the success criteria 1.4.3 and 1.4.11

const rgba = (css) => {
  const [r, g, b, a = 1] = css.match(/[\d.]+(e-?\d+)?/g).map(Number);
  return css.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
};
const mixed = (top, below, share) => [0, 1, 2].map((i) => share * top[i] + (1 - share) * below[i]);
const over = (css, below) => mixed(rgba(css), below, rgba(css)[3]);
const hex = (colour) => "#" + colour.map((c) => Math.round(c).toString(16).padStart(2, "0")).join("");

const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => colour.reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * linear(c / 255), 0);
const contrast = (pair) => {
  const [low, high] = pair.map(luminance).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

const chain = (element) => (element ? [...chain(element.parentElement), element] : []);
const stops = (style) => style.backgroundImage.match(/(rgba?|color)\([^)]*\)/g) ?? [];

/** The colours that an element lays over what is below it: of a gradient, each. A bar that sticks is translucent to
 * whatever is scrolled beneath it, the ink of the page at worst. */
function grounds(style, below) {
  const isBar = style.position === "sticky" && rgba(style.backgroundColor)[3] < 1;
  const under = isBar ? [below, rgba(getComputedStyle(document.body).color)] : [below];
  const plain = under.map((one) => over(style.backgroundColor, one));
  return [...plain, ...stops(style).flatMap((stop) => plain.map((one) => over(stop, one)))];
}

/** What is seen of a colour of the last element, and what is seen behind it. An opacity pales an element together with
 * all that is in it. `isOnItself`: the colour lies on the element's own background, as its text does. */
function pairs([element, ...inner], css, isOnItself, below) {
  const style = getComputedStyle(element), isLast = !inner.length;
  const found = (isLast && !isOnItself ? [below] : grounds(style, below))
    .flatMap((one) => (isLast ? [[over(css, one), one]] : pairs(inner, css, isOnItself, one)));
  return found.map((pair) => pair.map((colour) => mixed(colour, below, Number(style.opacity))));
}

const selector = (one) => [one.tagName.toLowerCase(), ...one.classList].join(".") + (one.id ? `#${one.id}` : "");
const named = (element, what) => `${chain(element).slice(-3).map(selector).join(" > ")} ${JSON.stringify(what.trim().slice(0, 40))}`;

function faults(element, css, isOnItself, least, what) {
  const page = rgba(getComputedStyle(document.body).backgroundColor);
  const [pair] = pairs(chain(element), css, isOnItself, page).sort((one, other) => contrast(one) - contrast(other));
  if (contrast(pair) >= least) return [];
  return [`${named(element, what)}: ${hex(pair[0])} on ${hex(pair[1])} is ${contrast(pair).toFixed(2)}, of ${least}`];
}

/** Elements with a text of their own that is to be seen. Controls that are off may be pale. */
function written() {
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("body *")].filter((element) => !element.closest(":disabled, option, script")
    && element.checkVisibility({ visibilityProperty: true }) && parseFloat(getComputedStyle(element).fontSize)
    && (element.matches("select") || hasText(element)));
}

function unreadable() {
  return written().flatMap((element) => {
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    return faults(element, style.color, true, isLarge ? LARGE : TEXT, element.textContent);
  });
}

function faint(graphics) {
  return Object.entries(graphics).flatMap(([name, property]) => {
    const [path, pseudo] = name.split("::"), found = [...document.querySelectorAll(path)];
    return !found.length ? [`there is no ${name}`] : found.flatMap((element) => {
      const style = getComputedStyle(element, pseudo && `::${pseudo}`);
      const css = property === "backgroundImage" ? stops(style)[0] : style[property];
      return faults(element, css, Boolean(pseudo), GRAPHIC, `${property} of ${name}`);
    });
  });
}

/** Where an element's text may be seen: on the screen, and inside of what cuts it off. What scrolls can be reached. */
function bounds(element) {
  const found = [];
  for (let one = element; one; one = one.parentElement) {
    const { overflowX } = getComputedStyle(one);
    if (["auto", "scroll"].includes(overflowX)) return found;
    if (overflowX !== "visible") found.push(one.getBoundingClientRect());
  }
  return [...found, { left: 0, right: document.documentElement.clientWidth }];
}

function cutOff() {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  return [...(wide > 0 ? [`the page is ${wide} px wider than the screen`] : []), ...written().filter((element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    const boxes = [...range.getClientRects()].filter((box) => box.width);
    return !element.matches(".skip") && bounds(element).some(({ left, right }) => boxes.some((box) => box.left < left - 1 || box.right > right + 1));
  }).map((element) => named(element, element.textContent))];
}

function unfocused(theme) {
  document.documentElement.dataset.theme = theme;
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  const top = element.closest("header, .skip") ? 0 : document.querySelector("header").getBoundingClientRect().bottom;
  if (box.bottom <= top || box.top >= innerHeight || box.right <= 0) return [`${named(element, "")}: out of view`];
  if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) return [`${named(element, "")}: no outline`];
  return faults(element, style.outlineColor, false, GRAPHIC, "outline");
}

/** Charts whose canvas lacks a colour of their legend, or the grid of this theme. */
function undrawn() {
  const grid = getComputedStyle(document.querySelector("progress")).backgroundColor;
  return [...document.querySelectorAll(".chart:not([hidden])")].flatMap((chart) => {
    const canvas = chart.querySelector("canvas"), { width, height } = canvas, there = new Set();
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, width, height);
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) there.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    const isThere = (css) => there.has(css.match(/\d+/g).reduce((sum, part) => 256 * sum + Number(part), 0));
    const keys = [...chart.querySelectorAll(".key:not(.ring) i")].map((key) => getComputedStyle(key).borderTopColor);
    return [grid, ...keys].filter((css) => !isThere(css)).map((css) => `${chart.dataset.chart} has no ${css}`);
  });
}
