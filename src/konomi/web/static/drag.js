// Dragging by pointer events, for mouse, pen and touch alike: from [data-drag] to [data-rank].

/** @param drop is told the key that was dragged and the rank that it was dropped on */
export function dragging(area, drop) {
  let held = null;

  const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-rank]") ?? null;
  const light = (slot) => {
    for (const other of document.querySelectorAll(".slot.over")) other.classList.remove("over");
    slot?.classList.add("over");
  };
  const place = (event) => {
    held.ghost.style.transform = `translate(${event.clientX + 8}px, ${event.clientY + 8}px)`;
  };
  const end = () => {
    held?.ghost.remove();
    held = null;
    light(null);
    document.body.classList.remove("dragging");
  };

  area.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest("[data-drag]");
    if (!grip || event.button !== 0 || held) return;
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    const ghost = document.createElement("div");
    ghost.className = "ghost";
    ghost.textContent = grip.textContent;
    ghost.setAttribute("aria-hidden", "true");
    document.body.append(ghost);
    document.body.classList.add("dragging");
    held = { key: grip.dataset.drag, pointer: event.pointerId, ghost };
    place(event);
  });
  area.addEventListener("pointermove", (event) => {
    if (held?.pointer !== event.pointerId) return;
    place(event);
    light(under(event));
  });
  area.addEventListener("pointerup", (event) => {
    if (held?.pointer !== event.pointerId) return;
    const { key } = held;
    const slot = under(event);
    end();
    if (slot) drop(key, Number(slot.dataset.rank));
  });
  area.addEventListener("pointercancel", end);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && held) end();
  });
}
