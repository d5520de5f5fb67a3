const pills = [...document.querySelectorAll("nav button")], search = document.querySelector("nav input");
const show = () => {
  const kind = pills.find((p) => p.ariaPressed === "true").dataset.kind, word = search.value.trim().toLowerCase();
  let left = 0;
  for (const card of document.querySelectorAll("article")) {
    let any = false;
    for (const one of card.querySelectorAll("section")) {
      one.hidden = (kind !== "" && one.dataset.kind !== kind) || !one.textContent.toLowerCase().includes(word);
      any = any || !one.hidden;
      left += !one.hidden;
    }
    card.hidden = !any;
  }
  document.getElementById("empty").hidden = left > 0;
};
for (const pill of pills) pill.addEventListener("click", () => {
  for (const other of pills) other.ariaPressed = String(other === pill);
  show();
});
search.addEventListener("input", show);
