/* How Sphinx's search weighs what it finds: tasks and problems first, the reasons behind the code last. */
const weightsOfPages = [
  // the name of another library is made of words that every page has
  [/^how-to\/move-from-/, 5],
  [/^how-to\/(?!index)/, 4],
  [/^reference\/policy$/, 3],
  [/^problems\//, 2],
  [/^(stages|transactions|deploying|conformance|writing-.*|tutorial)$/, 2],
  [/^(design\/|changelog)/, -4],
];

var Scorer = {
  score: ([docname, , , , score]) => score + (weightsOfPages.find(([pages]) => pages.test(docname))?.[1] ?? 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
