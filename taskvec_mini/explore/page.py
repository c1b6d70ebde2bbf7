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
.explore-controls { display: grid; gap: .35rem .9rem; align-items: center; margin: 0 0 .6rem;
  grid-template-columns: max-content minmax(6rem, 1fr) max-content max-content; }
.explore-controls > p { grid-column: 1 / -1; margin: 0; }
.explore-controls input[type=range] { width: 100%; height: 1.5rem; margin: 0; accent-color: #4a74cf; }
.explore-controls output { font-variant-numeric: tabular-nums; }
.explore-controls button { grid-column: 4; grid-row: 1 / span var(--explore-rows); font: inherit;
  font-size: .85em; color: inherit; background: none; border: 1px solid #7b7b7b;
  border-radius: .25rem; padding: .15rem .6rem; cursor: pointer; }
.explore-controls :focus-visible { outline: 2px solid #4a74cf; outline-offset: 2px; }
.explore > .explore-chart { margin: 0; padding: 0; }
.explore-chart svg, .explore-chart img { display: block; max-width: 100%; height: auto; }
.explore-says { margin: .3rem 0 0; font-size: .95em; }
.explore-message { margin: 0; font-size: .9em; }
.explore-hidden { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden;
  clip-path: inset(50%); }
@media (max-width: 520px) {
  .explore-controls { grid-template-columns: minmax(6rem, 1fr) max-content; }
  .explore-controls label { grid-column: 1 / -1; margin-bottom: -.4rem; }
  .explore-controls button { grid-column: 1 / -1; grid-row: auto; justify-self: start; } }
@media print {
  .explore { break-inside: avoid; }
  .explore-controls input, .explore-controls button, .explore-message { display: none; } }
"""

# Plain old script, no module and no fetch: it also runs from a file. NAME and URLS are filled in by `page`.
SCRIPT = """
(function () {
  "use strict";
  const names = ["vega", "vegaLite", "vegaEmbed"], urls = URLS;
  const root = Array.from(document.querySelectorAll("[id='NAME']")).find((one) => !one.dataset.state);
  if (!root) return;
  root.dataset.state = "loading";
  const find = (what) => root.querySelector(".explore-" + what);
  const facts = JSON.parse(root.querySelector("script[type='application/json']").textContent);

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

  function control(slider, i) {
    const id = "NAME-" + i;
    const input = element("input", { type: "range", id: id, min: 0, max: slider.texts.length - 1, step: 1,
                                     name: slider.name });
    const output = element("output", { for: id, "aria-live": "off" });
    output.style.minWidth = Math.max(...slider.texts.map((text) => text.length)) + "ch";
    find("controls").append(element("label", { for: id }, slider.label), input, output);
    return { input: input, output: output, slider: slider };
  }

  function liven(view) {
    find("controls").replaceChildren();
    const controls = facts.sliders.map(control);
    const reset = element("button", { type: "button" }, "Reset");
    find("controls").append(reset);
    find("controls").style.setProperty("--explore-rows", controls.length);

    function show() {
      let at = 0;
      controls.forEach(({ input, output, slider }, i) => {
        const stop = Number(input.value), text = slider.texts[stop];
        at = at * slider.texts.length + stop;
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
        view.signal("position" + i, stop);
      });
      find("says").textContent = facts.says[at];
      return view.runAsync();
    }

    function restart() {
      controls.forEach(({ input, slider }) => { input.value = slider.start; });
      return show();
    }

    controls.forEach(({ input }) => input.addEventListener("input", show));
    reset.addEventListener("click", restart);
    return restart();
  }

  async function start() {
    try {
      // one load for all charts of a page; a failed one may be tried again by the next
      window.exploreLibraries = window.exploreLibraries || loadAll();
      await window.exploreLibraries.catch((error) => { window.exploreLibraries = undefined; throw error; });
      const stage = element("div", {});
      facts.spec.config.font = getComputedStyle(root).fontFamily;
      const made = await window.vegaEmbed(stage, facts.spec,
        { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false });
      await liven(made.view);
      find("chart").replaceChildren(stage);
      root.exploreView = made.view;
      root.dataset.state = "ready";
    } catch (error) {
      root.dataset.state = "failed";
      find("message").textContent = "The sliders could not start (" + error.message +
        "). The picture shows the starting values.";
    }
  }

  // later than the page's own scripts, so that require.js does not arrive halfway
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
"""


def page(
    spec: dict[str, Any],
    sliders: list[dict[str, Any]],
    *,
    question: str,
    description: str,
    says: list[str],
    says_visibly: bool,
    at: int,
    png: bytes,
) -> str:
    """The chart as one piece of HTML. The same arguments give the same bytes: the id is a digest of them.

    Args:
        spec: the Vega-Lite specification, with the parameters position0, position1 ...
        sliders: name, label, texts (one a stop) and start (a stop) of each slider.
        question, description: the heading, and what the chart shows, for readers who do not see it.
        says: a sentence for each position of the sliders, seen by all if `says_visibly`.
        at: the number of the starting position. png: the picture of it.
    """
    facts = json.dumps({"spec": spec, "sliders": sliders, "says": says}, ensure_ascii=False, sort_keys=True)
    inert = facts.replace("<", "\\u003c")  # so that no text in it can end the script element
    name = "explore-" + hashlib.sha256((question + facts).encode()).hexdigest()[:12]
    script = SCRIPT.replace("NAME", name).replace("URLS", json.dumps(VEGA_URLS))
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
        f'<p class="explore-message" role="status"></p>'
        f'<script type="application/json">{inert}</script>'
        f"<script>{script}</script></div>"
    )
