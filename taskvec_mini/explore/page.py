"""The HTML of a static chart: it stands alone, and becomes alive where its scripts may run.

Without scripts (GitHub, a print-out of the stored notebook, a reader offline) the picture of the starting
position stays, with its text. With scripts, Vega draws the chart and native range inputs move it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

# Pinned to the versions this code was tested with, and loaded in this order. A site may serve the same files
# itself: it replaces these three strings in its pages.
VEGA_URLS: tuple[str, str, str] = (
    "https://cdn.jsdelivr.net/npm/vega@6.4.0/build/vega.min.js",
    "https://cdn.jsdelivr.net/npm/vega-lite@6.4.1/build/vega-lite.min.js",
    "https://cdn.jsdelivr.net/npm/vega-embed@7.3.0/build/vega-embed.min.js",
)

STYLE_SHEET = """
.explore { max-width: 700px; margin: 1rem 0; color: inherit; position: relative; }
html[data-theme="dark"] .explore { color-scheme: dark; }
.explore-question { margin: 0 0 .5rem; font-weight: 600; }
.explore-controls { display: grid; gap: 0 .9rem; align-items: center; margin: 0 0 .6rem;
  grid-template-columns: max-content minmax(6rem, 1fr) max-content; }
.explore-controls > p { grid-column: 1 / -1; margin: 0; }
.explore-track { position: relative; height: 44px; }
.explore-track input[type=range] { -webkit-appearance: none; appearance: none; position: relative;
  width: 100%; height: 44px; margin: 0; background: none; cursor: pointer; touch-action: pan-y; }
.explore-track input::-webkit-slider-runnable-track { height: 44px;
  background: linear-gradient(#7b7b7b, #7b7b7b) center / calc(100% - 44px) 3px no-repeat; }
.explore-track input::-moz-range-track { height: 44px;
  background: linear-gradient(#7b7b7b, #7b7b7b) center / calc(100% - 44px) 3px no-repeat; }
.explore-track input::-webkit-slider-thumb { -webkit-appearance: none; width: 44px; height: 44px;
  background: radial-gradient(circle closest-side, #4a74cf 44%, transparent 47%); }
.explore-track input::-moz-range-thumb { width: 44px; height: 44px; border: 0; border-radius: 0;
  background: radial-gradient(circle closest-side, #4a74cf 44%, transparent 47%); }
.explore-mark { position: absolute; top: 11px; width: 0; height: 22px; margin-left: -1px;
  pointer-events: none; left: calc(22px + (100% - 44px) * var(--explore-share));
  border-left: 2px dotted currentColor; }
.explore-mark-last { border-left: 2px solid #7b7b7b; }
.explore-controls output { font-variant-numeric: tabular-nums; }
.explore-buttons { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .5rem; }
.explore-buttons button { min-height: 44px; min-width: 44px; font: inherit; font-size: .9em;
  color: inherit; background: none; border: 1px solid #7b7b7b; border-radius: .25rem;
  padding: .15rem .9rem; cursor: pointer; }
.explore-controls :focus-visible { outline: 2px solid #4a74cf; outline-offset: 2px; }
.explore > .explore-chart { margin: 0; padding: 0; overflow-x: auto; }
.explore-chart svg, .explore-chart img { display: block; }
.explore-chart img { max-width: 100%; height: auto; }
.explore-says { margin: .3rem 0 0; font-size: .95em; }
.explore-ghosts, .explore-message { margin: .3rem 0 0; font-size: .9em; }
.explore-hidden { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden;
  clip-path: inset(50%); }
@media (max-width: 600px) {
  .explore-controls { grid-template-columns: minmax(6rem, 1fr) max-content; }
  .explore-controls label { grid-column: 1 / -1; margin: .3rem 0 -.5rem; } }
@media print {
  .explore { break-inside: avoid; }
  .explore-track, .explore-buttons, .explore-message, .explore-ghosts { display: none; } }
"""

# Plain old script, no module and no fetch: it also runs from a file. CHART_NAME and SCRIPT_ADDRESSES are
# filled in by `page`.
SCRIPT = """
(function () {
  "use strict";
  const names = ["vega", "vegaLite", "vegaEmbed"], urls = SCRIPT_ADDRESSES;
  const root = Array.from(document.querySelectorAll("[id='CHART_NAME']")).find((one) => !one.dataset.state);
  if (!root) return;
  root.dataset.state = "loading";
  const find = (what) => root.querySelector(".explore-" + what);
  const facts = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const controls = [];
  let view = null, drawnFor = 0, moving = false;
  let here = facts.sliders.map((slider) => slider.start), rested = here, last = null;

  function element(kind, attributes, text) {
    const made = document.createElement(kind);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text || "";
    return made;
  }

  function insert(url) {
    return new Promise((resolve, reject) => {
      const script = element("script", { src: url });
      script.onload = resolve;
      script.onerror = () => reject(new Error("could not load " + url));
      document.head.appendChild(script);
    });
  }

  async function load(url, name) {
    // Where require.js is on the page, a library hands itself to it, not to us, unless define.amd is hidden.
    for (let attempt = 0; attempt < 2 && !window[name]; attempt += 1) {
      const define = window.define, amd = define && define.amd;
      if (amd) define.amd = undefined;
      try { await insert(url); } finally { if (amd) define.amd = amd; }
    }
    if (!window[name]) throw new Error(url + " did not define " + name);
  }

  async function loadAll() {
    for (let i = 0; i < urls.length; i += 1) await load(urls[i], names[i]);
  }

  /* the number of a combination of stops; the last slider counts singly */
  const number = (stops) => stops.reduce((at, stop, i) => at * facts.sliders[i].texts.length + stop, 0);
  const inWords = (stops) => facts.sliders.map((slider, i) => slider.label + " = " + slider.texts[stops[i]])
    .join(", ");

  // --- the chart, as wide as there is room: text keeps its size, panels stack

  function crowded(one) {
    // names of bars that do not fit beside each other are tilted, numbers that do not fit are left out
    const bars = one.layer.find((layer) => layer.mark.type === "bar");
    if (!bars) return;
    const words = bars.encoding.x.scale.domain, offset = bars.encoding.xOffset;
    const room = one.width / words.length, series = offset ? offset.scale.domain.length : 1;
    const longest = Math.max(...words.map((word) => word.length));
    one.layer.forEach((layer) => {
      const x = layer.encoding && layer.encoding.x;
      if (x && x.axis && 7 * longest > room) Object.assign(x.axis, { labelAngle: -40, labelOverlap: false });
    });
    if (0.75 * room / series < 28)
      one.layer = one.layer.filter((layer) => layer.mark.type !== "text" || layer.data);
  }

  async function embed(spec) {
    (spec.hconcat || spec.vconcat || [spec]).forEach(crowded);
    const stage = element("div", {});
    const made = await window.vegaEmbed(stage, spec,
      { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false });
    return { view: made.view, stage: stage, width: Number(stage.querySelector("svg").getAttribute("width")) };
  }

  async function draw() {
    const room = find("chart").clientWidth || 700;
    const fresh = () => JSON.parse(JSON.stringify(facts.spec));
    let spec = fresh();
    spec.config.font = getComputedStyle(root).fontFamily;
    let made = await embed(spec);
    if (made.width > room + 2) {
      let width = Math.max(160, room - 80);
      for (let attempt = 0; attempt < 3; attempt += 1) {
        spec = fresh();
        spec.config.font = getComputedStyle(root).fontFamily;
        spec.config.legend.columns = 1;
        if (spec.hconcat) { spec.vconcat = spec.hconcat; delete spec.hconcat; }
        (spec.vconcat || [spec]).forEach((one, i) => {
          one.width = Math.min(width, 560);
          one.height = Math.round(facts.shapes[i] ? one.width / facts.shapes[i] : Math.min(one.height, 240));
        });
        made.view.finalize();
        made = await embed(spec);
        if (Math.abs(made.width - room) <= 2) break;
        width = Math.max(160, width + room - made.width);
      }
    }
    if (view) view.finalize();
    view = root.exploreView = made.view;
    drawnFor = room;
    await show();
    find("chart").replaceChildren(made.stage);
  }

  // --- the sliders, and where they have been

  function control(slider, i) {
    const id = "CHART_NAME-" + i;
    const input = element("input", { type: "range", id: id, min: 0, max: slider.texts.length - 1, step: 1,
                                     name: slider.name });
    const output = element("output", { for: id, "aria-live": "off" });
    output.style.minWidth = Math.max(...slider.texts.map((text) => text.length)) + "ch";
    const track = element("div", { class: "explore-track" });
    const mark = (kind) => {
      const made = element("span", { class: "explore-mark explore-mark-" + kind, "aria-hidden": "true" });
      track.append(made);
      return (stop) => {
        made.hidden = stop === null;
        made.style.setProperty("--explore-share", stop / (slider.texts.length - 1));
      };
    };
    const marks = { start: mark("start"), last: mark("last") };
    track.append(input);
    find("controls").append(element("label", { for: id }, slider.label), track, output);
    marks.start(slider.start);
    marks.last(null);
    input.addEventListener("input", () => {
      if (!moving) last = rested;  // where the sliders rested before this move
      moving = true;
      here = controls.map((one) => Number(one.input.value));
      show();
    });
    input.addEventListener("change", () => { moving = false; rested = here; });
    return { input: input, output: output, slider: slider, marks: marks };
  }

  function show() {
    controls.forEach(({ input, output, slider, marks }, i) => {
      const text = slider.texts[here[i]];
      input.value = here[i];
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
      marks.last(last && last[i]);
      view.signal("position" + i, here[i]);
    });
    view.signal("last", last ? number(last) : -1);
    find("says").textContent = facts.says[number(here)];
    find("ghosts").textContent = (last ? "Pale: the last position (" + inWords(last) + "). " : "") +
      "Dotted: the first position (" + inWords(facts.sliders.map((slider) => slider.start)) + ").";
    const unmoved = facts.sliders.every((slider, i) => here[i] === slider.start);
    find("ghosts").style.visibility = last || !unmoved ? "visible" : "hidden";  // else it lies below
    return view.runAsync();
  }

  function move(stops) {
    last = number(stops) === number(rested) ? last : rested;
    moving = false;
    here = rested = stops;
    return show();
  }

  // --- a link that carries the positions: #explore:words-of-the-question?name=text&name=text

  const words = find("question").textContent.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  const address = "explore:" + words;

  function link() {
    const values = new URLSearchParams();
    facts.sliders.forEach((slider, i) => values.set(slider.name, slider.texts[here[i]]));
    return "#" + address + "?" + values;
  }

  async function share() {
    history.replaceState(null, "", link());
    let said = "The address of this page now holds the positions.";
    try {
      await navigator.clipboard.writeText(location.href);
      said = "Copied: a link to this page with these positions.";
    } catch (error) { /* no clipboard here: the address bar has the link */ }
    find("message").textContent = said;
  }

  function follow() {
    const [name, values] = location.hash.slice(1).split("?");
    if (name !== address || !values) return;
    const wanted = new URLSearchParams(values);
    const hidden = root.closest("[hidden]");
    if (hidden) hidden.dispatchEvent(new Event("beforematch"));
    move(facts.sliders.map((slider, i) => {
      const stop = slider.texts.indexOf(wanted.get(slider.name));
      return stop < 0 ? here[i] : stop;
    }));
    root.scrollIntoView();
  }

  async function start() {
    try {
      // one load for all charts of a page; a failed one may be tried again by the next
      window.exploreLibraries = window.exploreLibraries || loadAll();
      await window.exploreLibraries.catch((error) => { window.exploreLibraries = undefined; throw error; });
      find("controls").replaceChildren();
      controls.push(...facts.sliders.map(control));
      const buttons = element("div", { class: "explore-buttons" });
      const button = (text, act) => {
        const made = element("button", { type: "button" }, text);
        made.addEventListener("click", act);
        buttons.append(made);
      };
      button("Reset", () => move(facts.sliders.map((slider) => slider.start)));
      if (document.querySelector(".bd-article")) button("Copy link", share);  // a page of the book
      find("controls").append(buttons);
      await draw();
      root.dataset.state = "ready";
      follow();
      window.addEventListener("hashchange", follow);
      let waiting = 0;
      window.addEventListener("resize", () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { if (Math.abs(find("chart").clientWidth - drawnFor) > 2) draw(); }, 150);
      });
    } catch (error) {
      root.dataset.state = "failed";
      find("message").textContent = "The sliders could not start (" + error.message +
        "). The picture shows the starting values.";
    }
  }

  // later than the page's own scripts, so that require.js does not arrive halfway; and after the first view
  if (document.readyState === "complete") start();
  else window.addEventListener("load", () => setTimeout(start));
})();
"""


def page(
    spec: dict[str, Any],
    sliders: list[dict[str, Any]],
    *,
    shapes: list[float | None],
    question: str,
    description: str,
    says: list[str],
    says_visibly: bool,
    at: int,
    png: bytes,
) -> str:
    """The chart as one piece of HTML. The same arguments give the same bytes: the id is a digest of them.

    Args:
        spec: the Vega-Lite specification, with the parameters position0, position1 ... and last.
        sliders: name, label, texts (one a stop) and start (a stop) of each slider.
        shapes: width over height of each panel where that has to stay, else None.
        question, description: the heading, and what the chart shows, for readers who do not see it.
        says: a sentence for each position of the sliders, seen by all if `says_visibly`.
        at: the number of the starting position. png: the picture of it.
    """
    content = {"spec": spec, "sliders": sliders, "shapes": shapes, "says": says}
    facts = json.dumps(content, ensure_ascii=False, sort_keys=True)
    inert = facts.replace("<", "\\u003c")  # so that no text in it can end the script element
    name = "explore-" + hashlib.sha256((question + facts).encode()).hexdigest()[:12]
    script = SCRIPT.replace("CHART_NAME", name).replace("SCRIPT_ADDRESSES", json.dumps(VEGA_URLS))
    starts = "; ".join(f"{slider['label']} = {slider['texts'][slider['start']]}" for slider in sliders)
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    quiet = "" if says_visibly else " explore-hidden"
    return (
        f'<div class="explore" id="{name}" role="group" aria-labelledby="{name}-question">'
        f"<style>{STYLE_SHEET}</style>"
        f'<p class="explore-question" id="{name}-question">{html.escape(question)}</p>'
        f'<div class="explore-controls"><p>Drawn for {html.escape(starts)}.</p></div>'
        f'<figure class="explore-chart"><img src="{source}" alt="{html.escape(description)}"></figure>'
        f'<p class="explore-says{quiet}" aria-live="polite">{html.escape(says[at])}</p>'
        f'<p class="explore-ghosts"></p><p class="explore-message" role="status"></p>'
        f'<script type="application/json">{inert}</script>'
        f"<script>{script}</script></div>"
    )
