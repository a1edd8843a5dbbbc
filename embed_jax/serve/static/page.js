// Arrow keys through the results. The page works without this file.
"use strict";

const query = document.getElementById("q");
const keys = document.getElementById("keys");
if (keys) keys.hidden = false;

// Not in a list where the arrow keys of the browser mean something.
const isFree = (element) => !element.closest("select, details table");

function move(item, key) {
  if (key === "ArrowDown") return item.nextElementSibling;
  if (key === "ArrowUp") return item.previousElementSibling;
  const isOther = key === (item.id[0] === "l" ? "ArrowRight" : "ArrowLeft");
  if (!isOther) return null;
  const rank = item.id.slice(1);
  return document.getElementById(item.dataset.twin || "")
    || document.getElementById((item.id[0] === "l" ? "r" : "l") + rank);
}

function focusOn(item) {
  item.querySelector("a.id").focus();
  item.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.isComposing) return;
  const item = event.target.closest(".results > li");
  if (event.key === "Escape" && query && event.target !== query) {
    query.focus();
    query.select();
    event.preventDefault();
    return;
  }
  if (!event.key.startsWith("Arrow") || !isFree(event.target)) return;
  const first = document.querySelector(".results > li");
  let target = null;
  if (item) {
    target = move(item, event.key);
    if (!target && event.key === "ArrowUp") target = query;
  } else if (event.target === query && event.key === "ArrowDown") {
    target = first;
  }
  if (!target) return;
  event.preventDefault();
  if (target === query) query.focus();
  else focusOn(target);
});

// The same document on the other side is marked while one is pointed at or has the focus.
function markTwin(event) {
  for (const each of document.querySelectorAll(".twin")) each.classList.remove("twin");
  const item = event.target.closest && event.target.closest(".results > li[data-twin]");
  const twin = item && document.getElementById(item.dataset.twin);
  if (twin) {
    twin.classList.add("twin");
    item.classList.add("twin");
  }
}
document.addEventListener("mouseover", markTwin);
document.addEventListener("focusin", markTwin);
