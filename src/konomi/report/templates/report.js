const radios = { ja: document.getElementById("show-ja"), en: document.getElementById("show-en") };
const first = (navigator.languages || [navigator.language]).find((tag) => /^(ja|en)/.test(tag || "")) || "en";
const chosen = first.slice(0, 2);
radios[chosen].checked = true;
document.documentElement.lang = chosen;
for (const [lang, radio] of Object.entries(radios)) {
  radio.addEventListener("change", () => { document.documentElement.lang = lang; });
}
