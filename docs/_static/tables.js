/* Gives each cell the heading of its column, so that a phone can show a row as a card (pages.css). */
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    if (!heads.length) continue;
    table.classList.add("cards");
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, column) => (cell.dataset.column = heads[column] ?? ""));
    }
  }
});
