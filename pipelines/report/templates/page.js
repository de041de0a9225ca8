"use strict";
document.documentElement.classList.add("js");

// Token map: show a token's numbers on hover, focus and tap.
const tip = document.getElementById("tip");

function show(token) {
  const { weight, d, logprob, ref } = token.dataset;
  tip.textContent = weight
    ? `weight ${weight}\nd ${d}\nlog p ${logprob}\nreference ${ref}`
    : "not a target: no weight";
  tip.hidden = false;
  const at = token.getClientRects()[0];
  const below = at.bottom + tip.offsetHeight + 10 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? at.bottom + 6 : at.top - tip.offsetHeight - 6}px`;
}

function hide() {
  tip.hidden = true;
}

for (const tokens of document.querySelectorAll(".tokens")) {
  tokens.addEventListener("mouseover", (event) => {
    if (event.target.matches(".t")) show(event.target);
  });
  tokens.addEventListener("mouseleave", hide);
  tokens.addEventListener("focusin", (event) => show(event.target));
  tokens.addEventListener("focusout", hide);
  tokens.addEventListener("keydown", (event) => {
    const way = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = way && event.target[way];
    if (event.key === "Escape") hide();
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });
}
addEventListener("scroll", hide, { passive: true });

// Open all facts for printing, and collapse them again afterwards.
const closed = new Set();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    closed.add(details);
    details.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  closed.clear();
});

// Filters: the choice is kept in the address, so that it can be linked.
const filters = [...document.querySelectorAll("[data-filter]")];
const sequences = [...document.querySelectorAll(".sequence")];

function apply() {
  let shown = 0;
  for (const sequence of sequences) {
    sequence.hidden = filters.some((f) => f.value && sequence.dataset[f.dataset.filter] !== f.value);
    shown += !sequence.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${sequences.length} texts`;
}

function fromAddress() {
  if (!filters.length || !location.hash.includes("=")) return;
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const filter of filters) filter.value = wanted.get(filter.dataset.filter) ?? "";
  apply();
}

for (const filter of filters) {
  filter.addEventListener("change", () => {
    apply();
    const chosen = filters.filter((f) => f.value).map((f) => [f.dataset.filter, f.value]);
    history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
  });
}
addEventListener("hashchange", fromAddress);
fromAddress();
