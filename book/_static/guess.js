/* Questions of taskvec_mini.explore.guess: what answers them waits behind them until a guess is made.

Loaded only by pages that ask (book/_ext/guess.py). Without it, and in print, everything is shown. What waits has
hidden="until-found", so that the browser's search and links into it still find it. */
(function () {
  "use strict";

  /* The outputs of the next `count` cells that show something, and the paragraphs behind the last of them. */
  function answered(root, count) {
    const waiting = [];
    let one = root.closest(".cell").nextElementSibling;
    for (let left = count; one && left > 0; one = one.nextElementSibling) {
      const output = one.matches(".cell") && one.querySelector(":scope > .cell_output");
      if (!output || output.querySelector(".guess")) continue;
      waiting.push(output);
      left -= 1;
    }
    for (; waiting.length && one && !one.matches(".cell, section"); one = one.nextElementSibling) waiting.push(one);
    return waiting;
  }

  function gate(root) {
    const waiting = answered(root, Number(root.dataset.hides));
    if (!waiting.length) return;
    const said = document.createElement("p");
    said.className = "guess-state";
    said.setAttribute("role", "status");
    const show = document.createElement("button");
    show.type = "button";
    show.className = "guess-show";
    show.textContent = "Show without a guess";
    root.append(said, show);

    function open() {
      if (show.hidden) return;
      waiting.forEach((one) => one.removeAttribute("hidden"));
      show.hidden = true;
      root.dataset.state = "open";
      said.textContent = "The answer is shown below.";
      window.dispatchEvent(new Event("resize"));
    }

    waiting.forEach((one) => {
      one.setAttribute("hidden", "until-found");
      one.addEventListener("beforematch", open);
    });
    root.dataset.state = "waiting";
    said.textContent = "The answer waits below until you have guessed.";
    show.addEventListener("click", () => {
      open();
      root.querySelector("summary").focus({ preventScroll: true }); // the button that had the focus is gone
    });
    root.querySelectorAll(".guess-answer").forEach((answer) => answer.addEventListener("toggle", open));
    const followed = () => {
      const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target && waiting.some((one) => one.contains(target))) {
        open();
        target.scrollIntoView();
      }
    };
    window.addEventListener("hashchange", followed);
    followed();
  }

  document.querySelectorAll(".guess").forEach(gate);
})();
